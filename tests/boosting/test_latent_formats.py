"""Latents of pipelines become the scaled latents that a booster accepts, or are refused."""

import dataclasses
import types
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.bundle import BundleConfig, write_bundle
from fmboost_jax.boosting.checks import latents_array, warn_of_scale
from fmboost_jax.boosting.diffusers import check_pipeline, to_jax
from fmboost_jax.boosting.latent_formats import flux2_statistics, pipeline_latents, scaled_latents
from fmboost_jax.errors import InputError
from fmboost_jax.flow.coupling import Coupling
from fmboost_jax.images.value_range import to_uint8
from fmboost_jax.models.autoencoder_kl import AutoencoderKLConfig
from fmboost_jax.models.autoencoder_tiny import AutoencoderTinyConfig
from fmboost_jax.models.first_stage import LatentSpec, LatentStatistics
from fmboost_jax.models.parameters import split
from fmboost_jax.models.unet import UNet, UNetConfig
from tests.random_models import random_model

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TAEF2 = LatentSpec.from_config("tiny", "taef2", AutoencoderTinyConfig(latent_channels=4, pool=True))
WIDE_KL = LatentSpec.from_config("kl", "wide", AutoencoderKLConfig(latent_channels=4, scaling_factor=1.0))


def pipeline(name, vae=None, **attributes):
    """An object of a pipeline's class name; its own `__init__` would want every network."""
    return type(name, (), {"vae": vae, "vae_scale_factor": 8, "default_sample_size": 4, **attributes})()


def flux2_vae():
    vae = diffusers.AutoencoderKLFlux2(block_out_channels=(32,) * 4, latent_channels=4, layers_per_block=1)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(2.0, 4.0)
    return vae


@pytest.mark.parametrize("name", ["FluxPipeline", "ChromaPipeline", "QwenImagePipeline"])
def test_tokens_become_planes(name):
    tokens = torch.randn(2, 3 * 5, 64, requires_grad=True)
    found = to_jax(scaled_latents(pipeline(name), tokens.bfloat16(), (48, 80)))
    expected = getattr(diffusers, name)._unpack_latents(tokens.bfloat16(), 48, 80, 8).float().detach()
    np.testing.assert_array_equal(found, expected.reshape(2, 16, 6, 10).numpy().transpose(0, 2, 3, 1))
    with pytest.raises(InputError, match="expected 4 tokens, found 15 of 64 channels"):
        scaled_latents(pipeline(name), tokens)
    with pytest.raises(InputError, match=r"expected latents \(batch, tokens, channels\), found \(1, 16, 2, 2\)"):
        scaled_latents(pipeline(name), torch.zeros(1, 16, 2, 2))


def test_flux2_is_normalised_whatever_the_pipeline_does():
    vae = flux2_vae()
    normalised = torch.randn(2, 16, 3, 3)
    mean, variance = (table.reshape(1, -1, 1, 1) for table in (vae.bn.running_mean, vae.bn.running_var))
    klein = diffusers.Flux2KleinPipeline
    raw = klein._unpatchify_latents(normalised * (variance + vae.config.batch_norm_eps).sqrt() + mean)
    tokens = klein._pack_latents(normalised)
    expected = klein._unpatchify_latents(normalised).numpy()
    found = scaled_latents(pipeline("Flux2KleinPipeline", vae), raw).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(scaled_latents(pipeline("Flux2Pipeline", vae), tokens, (48, 48)), expected)


def test_boosters_of_normalised_and_of_raw_latents_refuse_each_other():
    raw_vae = diffusers.AutoencoderKL(block_out_channels=(32,) * 4, latent_channels=4, scaling_factor=1.0)
    booster = lambda spec: types.SimpleNamespace(first_stage=types.SimpleNamespace(spec=spec))  # noqa: E731
    check = check_pipeline.__wrapped__
    check(pipeline("Flux2KleinPipeline", flux2_vae()), booster(TAEF2))
    check(pipeline("Any", raw_vae), booster(WIDE_KL))
    with pytest.raises(InputError, match=r"latents are normalised .*, this booster was trained on .* not normalised"):
        check(pipeline("Flux2KleinPipeline", flux2_vae()), booster(WIDE_KL))
    with pytest.raises(InputError, match=r"latents are not normalised, this booster was trained on .* normalised"):
        check(pipeline("Any", raw_vae), booster(TAEF2))


def test_raw_latents_of_flux2_give_a_warning():
    usual = jnp.asarray(0.8 * np.random.default_rng(0).standard_normal((1, 32, 32, 4)), jnp.float32)
    with pytest.warns(UserWarning, match=r"standard deviation is 1\.4.*normalised latents"):
        warn_of_scale(1.77 * usual, TAEF2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_scale(usual, TAEF2)


def test_latents_of_another_scale_give_a_warning():
    """The comparison is by channel: the deviation over channels of 0.1 and of 1 shows little."""
    rng, widths = np.random.default_rng(0), np.geomspace(0.1, 1, 4)
    drawn = [jnp.asarray(widths * rng.standard_normal((2, 16, 16, 4)) + 0.3, jnp.float32) for _ in range(2)]
    statistics = LatentStatistics.of(drawn[0])
    np.testing.assert_allclose(statistics.deviation, widths, rtol=0.1)
    np.testing.assert_allclose(statistics.mean, 0.3, atol=0.1)
    for factor in (0.5, 1.77):
        spec = dataclasses.replace(TAEF2, normalized=factor > 1)
        with pytest.warns(UserWarning, match=rf"is {factor // 1:.0f}\.\d\d times .* trained on") as warned:
            warn_of_scale(factor * drawn[1], spec, statistics)
        assert ("normalised" in str(warned[0].message)) == spec.normalized
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_scale(drawn[1], TAEF2, statistics)
        warn_of_scale(0.01 * drawn[1], TAEF2, statistics)  # a flat picture


def test_autoencoders_that_are_refused():
    with pytest.raises(InputError, match="latents of VQModel cannot be boosted; expected those of AutoencoderDC"):
        pipeline_latents(pipeline("Any", type("VQModel", (), {"config": {}})()))
    with pytest.raises(InputError, match="AutoencoderKL: its config has no latent_channels"):
        pipeline_latents(pipeline("Any", type("AutoencoderKL", (), {"config": {}})()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_with_a_gradient_are_taken(dtype):
    tensor = torch.randn(1, 2, 2, 4, requires_grad=True).to(dtype)
    np.testing.assert_array_equal(latents_array(tensor, WIDE_KL), tensor.detach().float().numpy())


def test_flux2s_autoencoder_replaces_the_tiny_one(tmp_path):
    """A bundle names TAEF2; with FLUX.2's VAE folder the same latents are decoded by it."""
    unet = UNetConfig(
        in_channels=8, out_channels=4, model_channels=32, channel_mult=(1,), num_res_blocks=1, dim_head=16
    )
    config = BundleConfig(unet, Coupling(noise_step=0), "linear", 2, 16, 32, TAEF2, 7)
    write_bundle(tmp_path, split(random_model(UNet, unet))[1], config)
    vae = flux2_vae()
    vae.save_pretrained(tmp_path / "vae")
    booster = Booster.load(tmp_path, first_stage=str(tmp_path / "vae"))
    assert booster.first_stage.kind == "kl"
    large = booster.boost(0.8 * np.random.default_rng(0).standard_normal((1, 4, 4, 4), np.float32))
    assert large.shape == (1, 8, 8, 4)
    mean, deviation = flux2_statistics(vae)
    planes = torch.from_numpy(np.array(large)).permute(0, 3, 1, 2).reshape(1, 4, 4, 2, 4, 2)
    with torch.no_grad():
        images = vae.decode((planes * deviation + mean).reshape(1, 4, 8, 8)).sample
    expected = to_uint8(images.permute(0, 2, 3, 1).numpy())
    assert np.abs(booster.decode(large).astype(int) - expected.astype(int)).max() <= 1
    diffusers.AutoencoderKL(block_out_channels=(32,), latent_channels=4).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="its autoencoder has downsampling 1, this booster was trained for 8"):
        Booster.load(tmp_path, first_stage=str(tmp_path / "other"))
