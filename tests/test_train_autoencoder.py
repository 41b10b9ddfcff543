"""`fmboost_jax.train_autoencoder`: learns, resumes bit for bit, writes files for diffusers, refuses bad input."""

import dataclasses
import functools
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from fmboost_jax import train_autoencoder as command
from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.bundle import BundleConfig, write_bundle
from fmboost_jax.configuration import read_config
from fmboost_jax.data import crops
from fmboost_jax.errors import InputError
from fmboost_jax.flow.coupling import Coupling
from fmboost_jax.images.resize import shrink
from fmboost_jax.images.value_range import to_float, to_uint8
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.metrics.efficientnet import EfficientNetConfig, EfficientNetLite
from fmboost_jax.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from fmboost_jax.models.first_stage import Identity
from fmboost_jax.models.parameters import abstract, merge, split
from fmboost_jax.models.unet import UNet, UNetConfig
from fmboost_jax.training import loop
from fmboost_jax.training.autoencoder import (
    decaying_optimizer,
    enlarge,
    enlargement_loss,
    initial_parameters,
    load_initial,
    make_train_step,
    moments_loss,
    picture_loss,
    principal_components,
)
from fmboost_jax.training.config import AutoencoderTrainingConfig
from fmboost_jax.training.perceptual import BLOCKS, perceptual_distance, perceptual_maps
from fmboost_jax.training.state import TrainState

WEIGHTS = "autoencoder/diffusion_pytorch_model.safetensors"


def tiny_config(photographs, *overrides):
    return read_config(
        "autoencoder_demo.py",
        (
            f"--config.data.dir={photographs}",
            "--config.data.crop=32",
            "--config.autoencoder.patch_size=2",
            "--config.autoencoder.width=8",
            "--config.autoencoder.latent_channels=4",
            "--config.autoencoder.encoder_blocks=(1,)",
            "--config.autoencoder.decoder_blocks=(1,)",
            "--config.train.batch_size=2",
            "--config.train.steps=24",
            "--config.train.log_every=4",
            "--config.optim.warmup_steps=4",
            "--config.ema.copy_until=4",
            "--config.checkpoint.every=10",
            "--config.evaluate.every=0",
            "--config.evaluate.size=32",
            *overrides,
        ),
        AutoencoderTrainingConfig,
    )


@pytest.fixture(scope="module")
def whole_run(photographs, tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("autoencoder") / "run"
    command.train_autoencoder(tiny_config(photographs), str(workdir))
    return workdir


def test_a_run_writes_its_records(whole_run):
    lines = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [4, 8, 12, 16, 20, 24]
    assert lines[-1]["step"] == 24
    assert lines[-1]["evaluate/psnr"] > 20
    assert (whole_run / "pictures" / "round_trip_00000024.png").exists()


def test_steps_lower_the_loss_below_the_linear_code(photographs):
    *_, losses = trained(photographs, "--config.train.steps=200", "--config.loss.enlarged=0.0")
    assert losses[-1] < 0.8 * losses[0]


def test_training_improves_the_decoding_of_enlarged_latents(photographs):
    """With the term, enlarged latents decode closer to the enlarged image than without it."""
    errors = []
    for weight in (0.0, 1.0):
        config, images, graph, state, _ = trained(
            photographs, "--config.train.steps=200", f"--config.loss.enlarged={weight}"
        )
        autoencoder, pictures = merge(graph, state.parameters), jnp.asarray(images / 127.5 - 1, jnp.float32)
        errors.append([enlargement_loss(autoencoder, pictures, factor, config.loss) for factor in (2, 4)])
    assert np.all(np.divide(errors[1], errors[0]) < 0.9), errors


def test_the_round_trip_of_enlarged_small_images_is_part_of_the_loss(photographs):
    """Of one image enlarged by 2 and of another by 4, a quarter of the batch each."""
    (_, images, graph, state, without), (config, *_, with_term) = (
        trained(
            photographs,
            "--config.train.steps=1",
            "--config.optim.lr=1e-30",
            "--config.optim.bias_lr=1e-30",
            f"--config.loss.blurred={weight}",
        )
        for weight in (0.0, 0.5)
    )
    autoencoder, expected = merge(graph, state.parameters), 0.0
    for image, factor in zip(jnp.asarray(images[:2] / 127.5 - 1, jnp.float32), (2, 4), strict=True):
        blurred = enlarge(shrink(image[None], len(image) // factor), factor)
        expected += picture_loss(autoencoder.decode(autoencoder.encode(blurred)[0]) - blurred, config.loss)
    assert expected > 0.01
    np.testing.assert_allclose(with_term[0] - without[0], 0.5 * expected, rtol=1e-3)


def test_enlargement_loss_measures_decoding_of_enlarged_latents(photographs):
    """With pixels as latents the loss is 0. A decoder with an error of 0.1 has that loss at every size."""

    class Brighter(Identity):
        def decode(self, latent):
            return latent + 0.1

    config = tiny_config(photographs).loss
    image = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
    assert enlarge(image, 2).shape == (2, 64, 64, 3)
    for factor in (2, 4):
        assert enlargement_loss(Identity(), image, factor, config) == 0
        brighter = enlargement_loss(Brighter(), image, factor, config)
        np.testing.assert_allclose(brighter, 0.1 * config.scales, rtol=1e-3)


@functools.cache
def trained(photographs, *overrides):
    """The config, its first batch, the network, the state after the config's steps on that batch, and the losses."""
    config = tiny_config(photographs, "--config.optim.bias_lr=2e-3", "--config.train.batch_size=4", *overrides)
    images = crops.first_crops(
        crops.read_photographs(str(photographs), 32), config.data, seed=0, batch_size=4, batches=1
    )
    graph = split(AutoencoderTiny(config.autoencoder, rngs=nnx.Rngs(0)))[0]
    parameters, optimizer = initial_parameters(config, images), decaying_optimizer(config)
    state = TrainState.create(parameters, optimizer)
    step = jax.jit(make_train_step(config, graph, optimizer))
    losses = []
    for _ in range(config.train.steps):
        state, metrics = step(state, jnp.asarray(images))
        losses.append(float(metrics["loss"]))
    return config, images, graph, state, losses


def test_latents_are_scaled_to_unit_variance(whole_run, photographs):
    """With the saved scale and shift, latents of the measured photographs have mean 0 and deviation 1."""
    stage = load_first_stage("tiny", str(whole_run / "autoencoder"))
    latents = stage.encode(jnp.asarray(crops.centres(str(photographs), 32)))
    assert abs(float(jnp.mean(latents))) < 0.02
    assert abs(float(jnp.std(latents)) - 1) < 0.02
    assert stage.channels == 4
    assert stage.downsampling == 2


def test_diffusers_reads_it(whole_run):
    """diffusers' AutoencoderTiny has no patches; it is the network between them."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    twin = diffusers.AutoencoderTiny.from_pretrained(str(whole_run / "autoencoder"), torch_dtype=torch.float32)
    stage = load_first_stage("tiny", str(whole_run / "autoencoder"))
    image = np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    patches = image.reshape(1, 8, 2, 8, 2, 3).transpose(0, 2, 4, 5, 1, 3).reshape(1, 12, 8, 8)
    with torch.no_grad():
        latent = twin.encode(torch.from_numpy(patches)).latents
        decoded = twin.decode(latent).sample.numpy()
    decoded = decoded.reshape(1, 2, 2, 3, 8, 8).transpose(0, 4, 1, 5, 2, 3).reshape(1, 16, 16, 3)
    ours = stage.encode_raw(jnp.asarray(image))
    np.testing.assert_allclose(ours, latent.permute(0, 2, 3, 1).numpy(), atol=1e-4)
    np.testing.assert_allclose(stage.decode(stage.spec.scale(ours)), decoded, atol=1e-4)
    assert twin.config.scaling_factor == stage.spec.scaling_factor


def test_training_starts_from_the_best_linear_code(photographs):
    """Before training, the round trip is numpy's projection on the principal components of the patches."""
    config = tiny_config(photographs)
    pictures = crops.first_crops(
        crops.read_photographs(str(photographs), 32), config.data, seed=0, batch_size=2, batches=20
    )
    graph = split(AutoencoderTiny(config.autoencoder, rngs=nnx.Rngs(0)))[0]
    autoencoder = merge(graph, initial_parameters(config, pictures))
    mean, _, directions = principal_components(pictures, 2, 4)
    # Of little contrast, so that the decoder's bound on latents bends nothing.
    image = 2 * mean.mean() - 1 + 0.2 * crops.centres(str(photographs), 32)[:1].astype(np.float32)
    patches = ((image + 1) / 2).reshape(16, 2, 16, 2, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 12)
    projected = mean + (patches - mean) @ directions @ directions.T
    expected = 2 * projected.reshape(16, 16, 2, 2, 3).transpose(0, 2, 1, 3, 4).reshape(1, 32, 32, 3) - 1
    found = autoencoder.decode(autoencoder.encode(jnp.asarray(image, jnp.float32))[0])
    assert np.abs(found - expected).mean() < 2e-3 < 5e-3 < np.abs(image - expected).mean()


def test_a_decoder_alone_is_trained_from_given_weights(whole_run, photographs, tmp_path):
    config = tiny_config(
        photographs,
        f"--config.train.init_from={whole_run / 'autoencoder'}",
        "--config.train.decoder_only=True",
        "--config.train.steps=4",
        "--config.optim.lr=0.05",
    )
    command.train_autoencoder(config, str(tmp_path / "run"))
    before, after = (load_file(folder / WEIGHTS) for folder in (whole_run, tmp_path / "run"))
    changed = {name.partition(".")[0] for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"decoder"}
    with pytest.raises(InputError, match=r"train\.init_from .*: expected the architecture"):
        load_initial(dataclasses.replace(config, autoencoder=AutoencoderTinyConfig()))


def test_a_decoder_learns_to_decode_what_a_booster_makes(whole_run, photographs, tmp_path):
    """Latents that a booster moves by a constant decode closer to the photographs after training on them."""
    path = str(whole_run / "autoencoder")
    stage = load_first_stage("tiny", path)
    unet = UNetConfig(
        in_channels=8, out_channels=4, model_channels=32, channel_mult=(1,), num_res_blocks=1, dim_head=16
    )
    bundle = BundleConfig(unet, Coupling(noise_step=0), "linear", 2, 16, 32, stage.spec, 1, steps=1)
    (tmp_path / "booster").mkdir()
    shapes = split(abstract(UNet, unet))[1].items()
    velocity = {name: jnp.full(shape.shape, 0.5 * (name == "conv_out.bias"), jnp.float32) for name, shape in shapes}
    write_bundle(tmp_path / "booster", velocity, bundle)
    small = crops.centres(str(photographs), 32)

    def error(autoencoder):
        booster = Booster.load(tmp_path / "booster", first_stage=autoencoder)
        boosted = booster.upscale(to_uint8(pooled(small, 2)), colour_fix=None)
        return np.sqrt(np.mean((to_float(boosted) - small) ** 2))

    options = f"--config.train.init_from={path}", "--config.train.decoder_only=True", "--config.train.steps=60"
    boosters = f"--config.train.boosters=('{tmp_path / 'booster'}',)"
    errors = [error(path)]
    for name, more in (("without", ()), ("with", (boosters,))):
        command.train_autoencoder(tiny_config(photographs, *options, *more), str(tmp_path / name))
        errors.append(error(str(tmp_path / name / "autoencoder")))
    before, without, trained = errors
    assert trained < 0.85 * min(before, without)
    with pytest.raises(InputError, match="decoder_only is False, expected True where boosters are"):
        tiny_config(photographs, boosters)
    other = tiny_config(photographs, "--config.train.decoder_only=True", boosters)
    with pytest.raises(InputError, match="booster booster: it was trained on the latents of another encoder"):
        command.train_autoencoder(other, str(tmp_path / "other"))
    write_bundle(tmp_path / "booster", velocity, dataclasses.replace(bundle, factor=3))
    thrice = tiny_config(photographs, *options, boosters)
    with pytest.raises(InputError, match=r"data\.crop is 32: booster .* needs a multiple of 3"):
        command.train_autoencoder(thrice, str(tmp_path / "other"))


def pooled(images, factor):
    n, height, width, channels = images.shape
    return images.reshape(n, height // factor, factor, width // factor, factor, channels).mean((2, 4))


def test_a_refused_config_leaves_nothing(photographs, tmp_path):
    with pytest.raises(InputError, match=r"data\.crop is 30"):
        command.train_autoencoder(tiny_config(photographs, "--config.data.crop=30"), str(tmp_path / "a" / "run"))
    assert not (tmp_path / "a").exists()


def test_perceptual_loss_grows_with_distance_and_is_bounded():
    features = EfficientNetLite(EfficientNetConfig(), rngs=nnx.Rngs(0))
    image, other = jax.random.uniform(jax.random.key(0), (2, 2, 32, 32, 3), minval=-1, maxval=1)
    losses = [
        float(perceptual_distance(*(perceptual_maps(features, x) for x in (image + share * (other - image), image))))
        for share in (0, 0.1, 0.3, 1)
    ]
    assert losses[0] == 0
    assert losses == sorted(losses)
    assert losses[-1] <= 4 * (1 + BLOCKS)  # of vectors of length 1


def test_a_killed_and_stopped_run_ends_with_the_same_bits(whole_run, photographs, tmp_path, monkeypatch):
    """Killed at step 13, stopped by SIGTERM at step 16, and finished."""
    add, killed = loop.NonFiniteMonitor.add, []

    def disturb(self, step, *arguments):
        if step == 13 and not killed:
            killed.append(step)
            raise KeyboardInterrupt
        if step == 16:
            os.kill(os.getpid(), signal.SIGTERM)
        return add(self, step, *arguments)

    def saved():
        assert not (tmp_path / "autoencoder").exists()
        return sorted(path.name for path in (tmp_path / "checkpoints").iterdir())

    config, before = tiny_config(photographs), signal.getsignal(signal.SIGTERM)
    try:
        monkeypatch.setattr(loop.NonFiniteMonitor, "add", disturb)
        with pytest.raises(KeyboardInterrupt):
            command.train_autoencoder(config, str(tmp_path))
        assert saved() == ["10"]
        command.train_autoencoder(config, str(tmp_path))
        assert saved() == ["10", "16"]
        monkeypatch.undo()
        command.train_autoencoder(config, str(tmp_path))
    finally:
        signal.signal(signal.SIGTERM, before)
    found, expected = load_file(tmp_path / WEIGHTS), load_file(whole_run / WEIGHTS)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_bad_input_is_refused(whole_run, photographs, tmp_path):
    def refused(match, *overrides, workdir=tmp_path / "run"):
        with pytest.raises(InputError, match=match):
            command.train_autoencoder(tiny_config(photographs, *overrides), str(workdir))

    refused("photo folder nowhere does not exist", "--config.data.dir=nowhere")
    refused("data.dir is empty: set it to a folder of photographs", "--config.data.dir=")
    refused("none of 4 photographs has 512×512 pixels", "--config.data.crop=512")
    refused("data.crop is 36: enlarged latents need a multiple of 8", "--config.data.crop=36")
    refused("that run is finished", workdir=whole_run)
    refused(
        "expected 1 level", "--config.autoencoder.encoder_blocks=(1,1)", "--config.autoencoder.decoder_blocks=(1,1)"
    )
    refused("latent_channels ≤ width ≤ 12", "--config.autoencoder.width=16")


def test_a_changed_config_is_refused(whole_run, photographs, tmp_path):
    shutil.copytree(whole_run / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(InputError, match=r"train\.steps: 24 → 25"):
        command.train_autoencoder(tiny_config(photographs, "--config.train.steps=25"), str(tmp_path))


def test_loss_is_zero_only_for_equal_pictures_and_white_latents(photographs):
    config = tiny_config(photographs).loss
    generator = np.random.default_rng(0)
    image = jnp.asarray(generator.uniform(-1, 1, (2, 32, 32, 3)), jnp.float32)
    raw = generator.standard_normal((2048, 4))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False)).T)
    latent = jnp.asarray(white.reshape(2, 32, 32, 4), jnp.float32)
    latent = config.deviation * latent
    assert float(moments_loss(latent, config.deviation)) < 1e-6
    twice = latent.at[..., 1].set(latent[..., 0])
    np.testing.assert_allclose(moments_loss(twice, config.deviation), 2, rtol=1e-2)
    np.testing.assert_allclose(moments_loss(latent + 0.5 * config.deviation, config.deviation), 4 * 0.25, rtol=1e-3)
    assert float(picture_loss(image - image, config)) == 0
    # A constant error of 0.1 has no gradients and is the same at every size.
    np.testing.assert_allclose(picture_loss(0.1 + 0 * image, config), 0.1 * config.scales, rtol=1e-3)
