"""Which pipelines a booster accepts, by the spec of their latents."""

import types

import pytest

from fmboost_jax.boosting.diffusers import check_pipeline
from fmboost_jax.errors import InputError
from fmboost_jax.models.first_stage import LatentSpec

KL = LatentSpec("kl", "sd", 4, 8, scaling_factor=0.18215)
AutoencoderTiny = type("AutoencoderTiny", (), {})
AutoencoderKL = type("AutoencoderKL", (), {})


def check(kind, spec=KL, channels=4, scale=1.0):
    vae = kind()
    vae.config = {"latent_channels": channels, "block_out_channels": [64] * 4, "scaling_factor": scale}
    booster = types.SimpleNamespace(first_stage=types.SimpleNamespace(spec=spec))
    # The function itself, without the checker of argument types.
    check_pipeline.__wrapped__(types.SimpleNamespace(vae=vae), booster)


def test_a_kl_booster_takes_a_pipeline_with_a_tiny_autoencoder():
    check(AutoencoderTiny)
    check(AutoencoderKL, scale=0.18215)


def test_other_latents_are_refused():
    with pytest.raises(InputError, match="channels 16"):
        check(AutoencoderTiny, channels=16)
    with pytest.raises(InputError, match=r"scaling_factor 0\.5"):
        check(AutoencoderTiny, scale=0.5)
    with pytest.raises(InputError, match=r"scaling_factor 1\.0"):
        check(AutoencoderKL)
