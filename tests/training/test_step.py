"""The training step: its loss by hand, overfitting, skipped updates, and the same numbers on every mesh."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmboost_jax.configuration import read_config
from fmboost_jax.flow.coupling import noise_augment, record_keys, sample_noise, source_keys
from fmboost_jax.models.first_stage import LatentSpec
from fmboost_jax.parallel.mesh import make_mesh
from fmboost_jax.parallel.sharding import batch_sharding, example_sharding, state_shardings
from fmboost_jax.training.config import TrainingConfig
from fmboost_jax.training.step import init_state, make_train_step
from tests.commands import PIXELS

TINY = (
    *PIXELS,
    "--config.unet.model_channels=32",
    "--config.unet.channel_mult=(1,)",
    "--config.unet.dim_head=16",
    "--config.unet.pool_factor=1",
    "--config.optim.warmup_steps=0",
    "--config.optim.clip_norm=0.0",
    "--config.train.batch_size=8",
)


def tiny_config(*overrides):
    return read_config("demo.py", (*TINY, *overrides), TrainingConfig)


def batch_of(seed, size=8, side=16):
    key_low, key_high = jax.random.split(jax.random.key(seed))
    return {
        "low": jax.random.normal(key_low, (size, side, side, 3)).astype(jnp.float16),
        "high": jax.random.normal(key_high, (size, side, side, 3)).astype(jnp.float16),
        "position": jnp.arange(size, dtype=jnp.uint32),
    }


@functools.cache
def programs(config, latents):
    """Compiled once for all tests of a config."""
    return functools.partial(jax.jit(init_state, static_argnums=0), config), jax.jit(make_train_step(config, latents))


def run_steps(config, batches, **latents):
    init, step = programs(config, LatentSpec("identity", "", 3, 1, **latents))
    state, losses = init(), []
    for batch in batches:
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return state, losses


def test_first_loss_is_the_mean_square_of_the_target():
    """The last convolution starts at zero, so the first velocity is 0 and the loss is mean (x1 − x0)²."""
    config = tiny_config("--config.source.noise_step=0")
    batch = batch_of(0)
    _, (loss,) = run_steps(config, [batch], scaling_factor=0.5, shift_factor=0.25)
    high, low = (np.asarray(batch[name], np.float64) for name in ("high", "low"))
    # At step 0 ᾱ is 1: x0 is the low-res latent itself; the shift cancels and the scale is squared.
    assert loss == pytest.approx(np.mean((0.5 * (high - low)) ** 2), rel=1e-3)


def test_a_records_noise_depends_on_its_number_alone():
    """As above, at noise step 400; two steps see the same x0, whatever the positions in the stream."""
    config = tiny_config("--config.source.noise_step=400")
    batch = batch_of(0) | {"record": jnp.arange(5, 13, dtype=jnp.uint32)}
    step = jax.jit(make_train_step(config, LatentSpec("identity", "", 3, 1), noise_seed=7))
    keys, _ = source_keys(record_keys(7, batch["record"]))
    low, high = (batch[name].astype(jnp.float32) for name in ("low", "high"))
    x0 = noise_augment(low, 400, sample_noise(keys, low.shape[1:]))
    state = jax.jit(init_state, static_argnums=0)(config)
    for position in (0, 1000):
        _, metrics = step(state, batch | {"position": batch["position"] + position})
        assert float(metrics["loss"]) == pytest.approx(float(jnp.mean((high - x0) ** 2)), rel=1e-3)


def test_overfits_one_batch():
    config = tiny_config("--config.source.noise_step=0", "--config.optim.lr=3e-3")
    batch = batch_of(1, size=1, side=8)
    _, losses = run_steps(config, [batch] * 250)
    assert losses[0] > 1
    assert np.mean(losses[-10:]) < 0.02 * losses[0]


def test_accumulation_changes_memory_and_not_the_result():
    batches = [batch_of(seed) for seed in range(2)]
    whole, losses = run_steps(tiny_config(), batches)
    parts, losses_of_parts = run_steps(tiny_config("--config.optim.accumulate=4"), batches)
    np.testing.assert_allclose(losses, losses_of_parts, rtol=1e-5)
    for name, value in whole.parameters.items():
        # Adam's first steps have the gradient's sign: where it is near zero, rounding shows.
        assert np.mean(np.abs(value - parts.parameters[name])) < 1e-4, name


def test_a_step_that_is_not_finite_changes_only_the_count():
    config = tiny_config()
    good = batch_of(0)
    bad = {**good, "high": good["high"].at[3, 2, 1, 0].set(jnp.inf)}
    before, _ = run_steps(config, [good])
    after, losses = run_steps(config, [good, bad])
    assert not np.isfinite(losses[1])
    assert int(after.step) == 2
    for part in ("parameters", "ema", "optimizer"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, part), getattr(after, part))


def test_random_numbers_depend_on_seed_step_and_position_alone():
    """The same examples in another order give the same loss; another seed or other positions do not."""
    config, batch = tiny_config("--config.source.noise_step=400"), batch_of(0)
    order = np.array([5, 2, 7, 0, 1, 6, 4, 3])
    shuffled = {name: array[order] for name, array in batch.items()}
    elsewhere = {**batch, "position": batch["position"] + 8}
    loss = run_steps(config, [batch])[1][0]
    assert run_steps(config, [shuffled])[1][0] == pytest.approx(loss, rel=1e-6)
    assert run_steps(config, [elsewhere])[1][0] != pytest.approx(loss, rel=1e-4)
    other = tiny_config("--config.source.noise_step=400", "--config.seed=1")
    assert run_steps(other, [batch])[1][0] != pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize(
    "overrides", [("data.upsampling=lsu", "source.context_mode=nearest"), ("data.upsampling=psu", "source.start=noise")]
)
def test_training_runs_with_each_source(overrides):
    config = tiny_config(*(f"--config.{override}" for override in overrides))
    batch = batch_of(0)
    if config.data.upsampling == "lsu":
        assert config.coupling.resize_modes == ("bilinear", "nearest")
        batch["low"] = batch["low"][:, ::2, ::2]
    _, losses = run_steps(config, [batch] * 3)
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]


def two_steps(mesh):
    """State and losses after two steps on a mesh, and the bytes that each device needs for a step."""
    config, batch = tiny_config("--config.unet.channel_mult=(1,2)"), batch_of(0)
    shardings = {"low": batch_sharding(mesh), "high": batch_sharding(mesh), "position": example_sharding(mesh)}
    batch = jax.device_put(batch, shardings)
    shapes = jax.jit(init_state, static_argnums=0).eval_shape(config)
    placed = state_shardings(mesh, shapes, config.architecture.replicated)
    state, losses = jax.jit(init_state, static_argnums=0, out_shardings=placed)(config), []
    step = make_train_step(config, LatentSpec("identity", "", 3, 1), mesh=mesh)
    step = jax.jit(step, out_shardings=(placed, None)).lower(state, batch).compile()
    for _ in range(2):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    memory = step.memory_analysis()
    sums = sum(found.count("f32[") for found in re.findall(r" = (.*) all-reduce\(", step.as_text()))
    return state, losses, {"state": memory.argument_size_in_bytes, "work": memory.temp_size_in_bytes, "sums": sums}


@pytest.fixture(scope="module")
def one_device():
    return two_steps(make_mesh({"data": 1, "fsdp": 1, "spatial": 1}, jax.devices()[:1]))


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2), (1, 1, 8)])
def test_every_mesh_gives_one_devices_numbers_in_less_memory(one_device, shape):
    state, losses, bytes_ = two_steps(make_mesh(dict(zip(("data", "fsdp", "spatial"), shape, strict=True))))
    expected, expected_losses, expected_bytes = one_device
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    difference = [np.mean(np.abs(expected.parameters[n] - v)) for n, v in jax.device_get(state.parameters).items()]
    assert max(difference) < 2e-4
    if shape == (8, 1, 1):
        assert bytes_["sums"] == 1  # of all gradients and the loss: over gloo, each array takes 1 ms
    # What a device works in falls with the eight devices, its state with fsdp; small parameters stay whole.
    assert bytes_["work"] < expected_bytes["work"] / 4
    if shape[1] > 1:
        largest = max(state.parameters.values(), key=lambda array: array.size)
        assert largest.addressable_shards[0].data.size == largest.size // shape[1]
        assert bytes_["state"] < expected_bytes["state"] * (1 / shape[1] + 0.25)
