"""Autoencoders with a mean and a deviation for each channel of their latents, against diffusers."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fmboost_jax.boosting.latent_formats import pipeline_latents
from fmboost_jax.convert import from_autoencoder, to_autoencoder
from fmboost_jax.errors import InputError
from fmboost_jax.interop import load_autoencoder_kl, state_dict
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from fmboost_jax.models.first_stage import FirstStage, LatentSpec
from tests.random_models import random_model

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SMALL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
IMAGE = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
LATENT = np.random.default_rng(1).standard_normal((2, 4, 6, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def flux2():
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLFlux2(**SMALL, decoder_block_out_channels=(16, 24), batch_norm_eps=1e-2).eval()
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.2, 4.0)
    return vae


@pytest.fixture(scope="module")
def folder(flux2, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flux2")
    flux2.save_pretrained(folder)
    return folder


def planes(array):
    return torch.from_numpy(array.transpose(0, 3, 1, 2).copy())


def norm(vae):
    """Mean and deviation of the 128 channels of patches, as FLUX.2's pipeline takes them from its autoencoder."""
    deviation = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    return vae.bn.running_mean[None, :, None, None], deviation[None, :, None, None]


@torch.no_grad()
def test_flux2_s_latents_are_normalised_as_its_pipeline_does(flux2, folder):
    stage, pipe, (mean, deviation) = load_first_stage("kl", folder), diffusers.Flux2KleinPipeline, norm(flux2)
    raw = flux2.encode(planes(IMAGE)).latent_dist.mode()
    normalised = pipe._unpatchify_latents((pipe._patchify_latents(raw) - mean) / deviation)
    np.testing.assert_allclose(stage.encode(jnp.asarray(IMAGE)), normalised.numpy().transpose(0, 2, 3, 1), atol=1e-5)
    raw = pipe._unpatchify_latents(pipe._patchify_latents(planes(LATENT)) * deviation + mean)
    image = flux2.decode(raw).sample.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(stage.decode(jnp.asarray(LATENT)), image, atol=1e-5)


@torch.no_grad()
def test_the_log_variance_is_that_of_the_normalised_latent(flux2, folder):
    raw = flux2.encode(planes(IMAGE)).latent_dist.logvar
    pipe = diffusers.Flux2KleinPipeline
    expected = pipe._unpatchify_latents(pipe._patchify_latents(raw) - 2 * norm(flux2)[1].log())
    found = load_first_stage("kl", folder).model.encode(jnp.asarray(IMAGE))[1]
    np.testing.assert_allclose(found, expected.numpy().transpose(0, 2, 3, 1), atol=1e-4)


def test_flux2_has_its_known_sizes(flux2, folder):
    stage = load_first_stage("kl", folder)
    pipe = type("Flux2KleinPipeline", (), {"vae": flux2})()
    stage.spec.check(pipeline_latents(pipe), "pipeline")
    assert (stage.channels, stage.downsampling, stage.image_multiple, stage.spec.normalized) == (32, 2, 4, True)
    for call in (
        lambda: stage.encode(jnp.zeros((1, 6, 8, 3))),
        lambda: stage.decode(jnp.zeros((1, 3, 4, 32))),
    ):
        with pytest.raises(InputError, match=r"needs multiples of [24]"):
            call()


def test_statistics_are_kept_by_both_formats(flux2, folder, tmp_path):
    """Through this package's folder and through a single file, which needs no config."""
    stage = load_first_stage("kl", folder)
    from_autoencoder("kl", str(folder), str(tmp_path / "ours"))
    assert load_first_stage("kl", tmp_path / "ours").model.config == stage.model.config
    to_autoencoder("kl", str(folder), str(tmp_path / "x.safetensors"))
    written, theirs = load_file(tmp_path / "x.safetensors"), flux2.state_dict()
    assert written.keys() == theirs.keys() - {"bn.num_batches_tracked"}
    np.testing.assert_array_equal(written["bn.running_mean"], theirs["bn.running_mean"])


@pytest.mark.parametrize("names", ["compvis", "diffusers"])
@pytest.mark.filterwarnings("error::UserWarning")
def test_a_single_file_of_flux2(tmp_path, names):
    """With CompVis' names, two convolutions are where Black Forest Labs' code has them."""
    mean, std = tuple(np.linspace(-1, 1, 128).tolist()), tuple(np.linspace(0.5, 2, 128).tolist())
    config = AutoencoderKLConfig(
        channels=(32,), blocks=1, latent_channels=32, scaling_factor=1.0, latents_mean=mean, latents_std=std
    )
    model = random_model(AutoencoderKL, config)
    weights = state_dict(model, names)
    if names == "compvis":
        for side, convolution in (("encoder", "quant_conv"), ("decoder", "post_quant_conv")):
            for kind in ("weight", "bias"):
                weights[f"{side}.{convolution}.{kind}"] = weights.pop(f"{convolution}.{kind}")
    save_file(weights, tmp_path / "ae.safetensors")
    found = load_first_stage("kl", tmp_path / "ae.safetensors")
    expected = FirstStage(LatentSpec.from_config("kl", "", config), model)
    np.testing.assert_allclose(found.decode(jnp.asarray(LATENT)), expected.decode(jnp.asarray(LATENT)), atol=1e-5)
    assert found.spec == dataclasses.replace(expected.spec, path=str(tmp_path / "ae.safetensors"))


@torch.no_grad()
def test_playground_s_statistics_of_channels(tmp_path):
    """Scaled = (latent − mean) · scaling factor / deviation, as in diffusers' pipelines."""
    mean, std, scale = (-1.5, 2.0, -1.25, 2.5), (8.0, 6.0, 6.5, 4.0), 0.5
    vae = diffusers.AutoencoderKL(**SMALL, latents_mean=mean, latents_std=std, scaling_factor=scale).eval()
    vae.save_pretrained(tmp_path)
    stage = load_first_stage("kl", tmp_path)
    assert (stage.spec.normalized, stage.spec.scaling_factor, stage.image_multiple) == (True, scale, 2)
    raw = vae.encode(planes(IMAGE)).latent_dist.mode().numpy().transpose(0, 2, 3, 1)
    mean, std = np.float32(mean), np.float32(std)
    np.testing.assert_allclose(stage.encode(jnp.asarray(IMAGE)), (raw - mean) * scale / std, atol=1e-5)
    image = vae.decode(planes(LATENT[..., :4] * std / scale + mean)).sample.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(stage.decode(jnp.asarray(LATENT[..., :4])), image, atol=1e-5)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"latents_mean": [0.1, 0.2, 0.3, 0.4]}, r"latents_mean .*expected 4 or 16 values, as many as latents_std"),
        ({"latents_mean": [0.1] * 3, "latents_std": [1.0] * 3}, "expected 4 or 16 values"),
        ({"latents_mean": [0.1] * 4, "latents_std": [1.0, 2.0, 0.0, 1.0]}, "latents_std .*expected values above 0"),
        ({"latents_mean": [0.1] * 4, "latents_std": [1.0, 2.0, float("nan"), 1.0]}, "latents_std"),
        ({"latents_mean": "x", "latents_std": "y"}, "latents_mean"),
        ({"_class_name": "AutoencoderKLFlux2"}, r"missing keys: bn\.running_mean, bn\.running_var"),
    ],
)
def test_impossible_statistics_are_refused(statistics, message):
    with pytest.raises(InputError, match=message):
        load_autoencoder_kl({}, {"block_out_channels": [8, 16], "norm_num_groups": 8, **statistics})


@pytest.mark.parametrize("value", [np.nan, -1.0])
def test_impossible_variances_are_refused(folder, flux2, value):
    tensors = {**flux2.state_dict(), "bn.running_var": torch.full((128,), value)}
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(InputError, match="impossible values"):
        load_autoencoder_kl(tensors, config)
