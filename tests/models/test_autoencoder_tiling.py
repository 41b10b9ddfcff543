"""Tiled decoding: exact for pointwise decoders, close for others, without visible seams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from fmboost_jax.errors import InputError
from fmboost_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from fmboost_jax.models.tiling import decode_tiled
from tests.conftest import relative_error
from tests.random_models import random_model


def enlarge(latent, factor: int = 4):
    """A decoder that looks at one position at a time: tiles change nothing."""
    return np.asarray(latent).repeat(factor, axis=1).repeat(factor, axis=2) * 2 - 1


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    tile=st.integers(2, 16),
    overlap=st.integers(0, 15),
    factor=st.integers(1, 4),
)
def test_pointwise_decoder_is_reproduced(height, width, tile, overlap, factor):
    overlap = min(overlap, tile - 1)
    latent = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    shapes = set()

    def decode(part):
        shapes.add(part.shape)
        return enlarge(part, factor)

    found = decode_tiled(decode, latent, tile=tile, overlap=overlap)
    np.testing.assert_allclose(found, enlarge(latent, factor), atol=1e-5)
    assert shapes == {(2, min(tile, height), min(tile, width), 3)}


def test_seams_are_blended():
    """Tiles that differ by a constant are blended in steps of 1 / overlap."""
    brightness = iter([0.0, 1.0])
    found = decode_tiled(
        lambda part: np.full(part.shape, next(brightness)), np.zeros((1, 8, 24, 1)), tile=16, overlap=8
    )
    row = found[0, 0, :, 0]
    np.testing.assert_allclose(row[:8], 0)
    np.testing.assert_allclose(row[16:], 1)
    np.testing.assert_allclose(np.diff(row[8:16]), 1 / 8, atol=1e-6)


def test_whole_image_in_one_tile_is_exact_and_more_overlap_is_closer():
    model = random_model(AutoencoderKL, AutoencoderKLConfig(channels=(32, 32), blocks=1))
    graphdef, state = nnx.split(model)
    decode = jax.jit(lambda latent: nnx.merge(graphdef, state).decode(latent))
    latent = jax.random.normal(jax.random.key(0), (1, 24, 24, 4))
    exact = decode(latent)
    np.testing.assert_array_equal(decode_tiled(decode, latent, tile=24, overlap=8), exact)
    errors = [relative_error(decode_tiled(decode, latent, tile=16, overlap=overlap), exact) for overlap in (0, 12)]
    assert 0 < errors[1] < errors[0] < 0.5


def test_overlap_as_large_as_the_tile_is_refused():
    with pytest.raises(InputError, match="less than the tile's 8, found 8"):
        decode_tiled(enlarge, jnp.zeros((1, 16, 16, 4)), tile=8, overlap=8)
