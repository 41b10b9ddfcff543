"""Updates of the paper's config against the reference's own trainer (recorded) and against a PyTorch model."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import torch

from fmboost_jax.configuration import read_config
from fmboost_jax.flow.coupling import cosine_alpha_bar, sample_noise
from fmboost_jax.flow.loss import TIME_SAMPLERS, sample_time
from fmboost_jax.interop import load_unet, state_dict
from fmboost_jax.models.first_stage import LatentSpec
from fmboost_jax.models.parameters import merge, split
from fmboost_jax.models.unet import UNetConfig
from fmboost_jax.training import step as training_step
from fmboost_jax.training.config import TrainingConfig
from fmboost_jax.training.optimizer import learning_rate, make_optimizer
from fmboost_jax.training.state import TrainState
from tests.conftest import relative_error
from tests.torch_reference import randomised, unet

SCALE = 0.18215
LATENTS = LatentSpec("kl", "", channels=4, downsampling=8, scaling_factor=SCALE)
NOISE_STEP = 400


def paper_config(architecture: UNetConfig, **optim) -> TrainingConfig:
    """cfm1024 with a small network and a short warm-up."""
    config = read_config("cfm1024.py", [], TrainingConfig)
    return dataclasses.replace(
        config,
        architecture=architecture,
        optim=dataclasses.replace(config.optim, **optim),
        ema=dataclasses.replace(config.ema, copy_until=optim["warmup_steps"]),
    )


def keys_of(config: TrainingConfig, step: int, examples: int) -> jax.Array:
    """The keys that the train step has for noise and time, (2, examples)."""
    step_key = jax.random.fold_in(jax.random.key(config.seed), step)
    keys = jax.vmap(lambda position: jax.random.fold_in(step_key, position))(jnp.arange(examples, dtype=jnp.uint32))
    return jax.vmap(lambda key: jax.random.split(key, 4))(keys).T[:2]


def trained(config: TrainingConfig, weights: dict, low: np.ndarray, high: np.ndarray):
    """The network after a step on each batch (steps, b, h, w, c), the average's, and the metrics of each step."""
    graph, parameters = split(load_unet(weights, config.architecture, config.architecture.attention_layout))
    state = TrainState.create(parameters, make_optimizer(config.optim))
    step = jax.jit(training_step.make_train_step(config, LATENTS))
    metrics = []
    for pair in zip(low, high, strict=True):
        batch = dict(zip(("low", "high"), pair, strict=True), position=jnp.arange(len(pair[0]), dtype=jnp.uint32))
        state, values = step(state, batch)
        metrics.append(values)
    metrics = {name: np.asarray([values[name] for values in metrics]) for name in metrics[0]}
    return *(state_dict(merge(graph, tree)) for tree in (state.parameters, state.ema)), metrics


def distance(found: dict, expected: dict) -> float:
    """Relative error of all parameters as one vector."""
    assert found.keys() == expected.keys()
    vectors = (np.concatenate([np.ravel(tree[name]) for name in expected]) for tree in (found, expected))
    return relative_error(*vectors)


def test_ten_updates_of_the_references_trainer(golden, monkeypatch):
    file = golden("training.npz")
    architecture = UNetConfig.from_dict(json.loads(str(file["config"])) | {"attention_layout": "interleaved"})
    config = paper_config(architecture, lr=float(file["lr"]), warmup_steps=int(file["warmup"]))
    low, high, noise = (file[name].transpose(0, 1, 3, 4, 2) for name in ("low", "high", "noise"))
    steps, examples = low.shape[:2]

    def recorded(values, table, keys, *_):
        """What was drawn with these keys in the reference's run."""
        same = (jax.random.key_data(keys)[:, None] == jax.random.key_data(table)[None]).all(axis=-1)
        return jnp.asarray(values.reshape(steps * examples, *values.shape[2:]))[jnp.argmax(same, axis=1)]

    noise_keys, time_keys = jnp.stack([keys_of(config, step, examples) for step in range(steps)], axis=1).reshape(2, -1)
    monkeypatch.setattr(training_step, "sample_noise", functools.partial(recorded, noise, noise_keys))
    times = functools.partial(recorded, file["t"], time_keys)
    monkeypatch.setitem(TIME_SAMPLERS, "recorded", lambda: times)
    config = dataclasses.replace(config, objective="flow(time='recorded')")
    weights = {name.removeprefix("init/"): value for name, value in file.items() if name.startswith("init/")}
    found, average, metrics = trained(config, weights, low, high)
    np.testing.assert_array_equal(metrics["learning_rate"], file["rates"].astype(np.float32))
    np.testing.assert_allclose(metrics["loss"], file["losses"], rtol=1e-6)
    for tree, prefix in ((found, "p10/"), (average, "e10/")):
        expected = {name.removeprefix(prefix): value for name, value in file.items() if name.startswith(prefix)}
        assert distance(tree, expected) < 1e-6
        for name, value in expected.items():
            np.testing.assert_allclose(tree[name], value, atol=1e-6, err_msg=name)


def test_many_updates_agree_with_the_pytorch_model():
    """The same batches, times and noise; Adam, warm-up and average as the reference orders them."""
    architecture = UNetConfig(
        model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), num_heads=1, dim_head=16
    )
    config = paper_config(architecture, lr=3e-4, warmup_steps=50)
    steps, random, shape = 120, np.random.default_rng(0), (2, 4, 4, 4)
    low, high = (random.normal(size=(steps, *shape)).astype(np.float32) / SCALE for _ in range(2))
    network = randomised(unet.UNet(architecture), 0).requires_grad_(True)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    found, average, metrics = trained(config, weights, low, high)

    torch.set_num_threads(1)  # more of them cost more than layers this small gain
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: min(1.0, (update + 1) / 50))
    expected_average = weights
    alpha_bar = float(cosine_alpha_bar()[NOISE_STEP])

    @jax.jit
    def draws(step):
        noise_keys, time_keys = keys_of(config, step, shape[0])
        return sample_noise(noise_keys, shape[1:]), sample_time(time_keys)

    def nchw(array):
        return torch.from_numpy(np.array(array).transpose(0, 3, 1, 2))

    losses = []
    for step in range(steps):
        noise, t = draws(step)
        noise, t, context, x1 = (
            nchw(noise),
            torch.from_numpy(np.array(t)),
            nchw(SCALE * low[step]),
            nchw(SCALE * high[step]),
        )
        x0 = alpha_bar**0.5 * context + (1 - alpha_bar) ** 0.5 * noise
        at = t[:, None, None, None]
        loss = (network(at * x1 + (1 - at) * x0, t, context) - (x1 - x0)).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        decay = max(0.0, min(0.999, 1 - max(step + 1 - 50, 1) ** -0.75)) if step + 1 > 52 else 0.0
        before = network.state_dict()
        expected_average = {
            name: decay * value + (1 - decay) * before[name].clone() for name, value in expected_average.items()
        }
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-3)
    assert np.mean(losses[-20:]) < np.mean(losses[:20])
    assert distance(found, network.state_dict()) < 1e-3
    assert distance(average, expected_average) < 1e-3


def test_the_order_of_version_0_1_is_available():
    """Version 0.1's warm-up: the first update changes nothing."""
    optim = read_config("demo.py", ["--config.optim.lr=1.0", "--config.optim.warmup_steps=4"], TrainingConfig).optim
    rates = [[float(learning_rate(dataclasses.replace(optim, warmup_offset=o))(k)) for k in range(6)] for o in (0, 1)]
    assert rates == [[0.0, 0.25, 0.5, 0.75, 1.0, 1.0], [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]]
