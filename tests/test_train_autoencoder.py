"""`fmboost_jax.train_autoencoder`: learns, resumes to the bit, writes what diffusers reads, refuses bad input."""

import json
import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fmboost_jax import train_autoencoder as command
from fmboost_jax.configuration import load_config
from fmboost_jax.errors import InputError
from fmboost_jax.models.first_stage import load_first_stage

WEIGHTS = "autoencoder/diffusion_pytorch_model.safetensors"


def tiny_config(photographs, *overrides):
    return load_config(
        "configs/autoencoder_demo.py",
        (
            f"--config.data.dir={photographs}",
            "--config.data.crop=32",
            "--config.autoencoder.width=8",
            "--config.autoencoder.latent_channels=4",
            "--config.autoencoder.encoder_blocks=(0,1)",
            "--config.autoencoder.decoder_blocks=(1,0)",
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
    )


@pytest.fixture(scope="module")
def whole_run(photographs, tmp_path_factory):
    """A run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("autoencoder") / "run"
    command.train_autoencoder(tiny_config(photographs), str(workdir))
    return workdir


def test_it_learns(whole_run):
    lines = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    assert lines[-1]["step"] == 24
    assert lines[-1]["evaluate/psnr"] > 8
    assert (whole_run / "pictures" / "round_trip_00000024.png").exists()


def test_latents_are_scaled_to_unit_variance(whole_run, photographs):
    """With the written scale and shift the measured photographs' latents have mean 0 and deviation 1."""
    stage = load_first_stage("tiny", str(whole_run / "autoencoder"))
    latents = stage.scale(stage.encode(jnp.asarray(command.centres(str(photographs), 32))))
    assert abs(float(jnp.mean(latents))) < 0.02
    assert abs(float(jnp.std(latents)) - 1) < 0.02
    assert stage.channels == 4
    assert stage.downsampling == 2


def test_diffusers_reads_it(whole_run):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    twin = diffusers.AutoencoderTiny.from_pretrained(str(whole_run / "autoencoder"), torch_dtype=torch.float32)
    stage = load_first_stage("tiny", str(whole_run / "autoencoder"))
    image = np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        latent = twin.encode(torch.from_numpy(image).permute(0, 3, 1, 2)).latents
        decoded = twin.decode(latent).sample.permute(0, 2, 3, 1).numpy()
    ours = stage.encode(jnp.asarray(image))
    np.testing.assert_allclose(ours, latent.permute(0, 2, 3, 1).numpy(), atol=1e-4)
    np.testing.assert_allclose(stage.decode(stage.scale(ours)), decoded, atol=1e-4)
    assert twin.config.scaling_factor == stage.scaling_factor


@pytest.mark.parametrize("how", ["killed", "SIGTERM"])
def test_resumed_runs_end_with_the_same_bits(whole_run, photographs, tmp_path, monkeypatch, how):
    add = command.FiniteWatch.add

    def disturb(self, step, *arguments):
        if step == 13 and how == "killed":
            raise KeyboardInterrupt
        if step == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        return add(self, step, *arguments)

    config, before = tiny_config(photographs), signal.getsignal(signal.SIGTERM)
    try:
        monkeypatch.setattr(command.FiniteWatch, "add", disturb)
        if how == "killed":
            with pytest.raises(KeyboardInterrupt):
                command.train_autoencoder(config, str(tmp_path))
        else:
            command.train_autoencoder(config, str(tmp_path))
        steps = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert steps == (["10"] if how == "killed" else ["10", "13"])
        assert not (tmp_path / "autoencoder").exists()
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
    refused("data.dir: the folder of photographs is missing", "--config.data.dir=")
    refused("none of 4 photographs has 512×512 pixels", "--config.data.crop=512")
    refused("that run is finished", workdir=whole_run)
    refused("encoder and decoder must have as many levels", "--config.autoencoder.encoder_blocks=(0,1,1)")


def test_a_changed_config_is_refused(photographs, tmp_path):
    command.Checkpoints(str(tmp_path)).close()
    stopped = tiny_config(photographs, "--config.train.steps=1")
    command.train_autoencoder(stopped, str(tmp_path))
    (tmp_path / "autoencoder").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"train\.steps: 1 → 24"):
        command.train_autoencoder(tiny_config(photographs), str(tmp_path))


def test_loss_is_zero_only_for_equal_pictures_and_white_latents(photographs):
    config = tiny_config(photographs).loss
    generator = np.random.default_rng(0)
    image = jnp.asarray(generator.uniform(-1, 1, (2, 32, 32, 3)), jnp.float32)
    raw = generator.standard_normal((2048, 4))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False)).T)
    latent = jnp.asarray(white.reshape(2, 32, 32, 4), jnp.float32)
    assert float(command.reconstruction_loss(image, image, latent, config)) < 1e-6
    twice = latent.at[..., 1].set(latent[..., 0])
    np.testing.assert_allclose(command.reconstruction_loss(image, image, twice, config), 2 * config.moments, rtol=1e-2)
    shifted = command.reconstruction_loss(image, image, latent + 0.5, config)
    np.testing.assert_allclose(shifted, 4 * 0.25 * config.moments, rtol=1e-3)
    # A constant error of 0.1 has no gradients and is the same at every size.
    np.testing.assert_allclose(
        command.reconstruction_loss(image + 0.1, image, latent, config), 0.1 * config.scales, rtol=1e-3
    )
