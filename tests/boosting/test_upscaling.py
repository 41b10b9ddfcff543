"""Images of any size: programs of a few shapes, and tiles that share one field of noise."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.folder import boost_folder
from fmboost_jax.boosting.inputs import noise_keys
from fmboost_jax.boosting.program import jitted_flow
from fmboost_jax.boosting.upscaling import square_for
from fmboost_jax.errors import InputError
from fmboost_jax.flow.coupling import Coupling, noise_augment, sample_noise_field
from fmboost_jax.images.colour import fix_colour
from fmboost_jax.images.resize import upsample
from fmboost_jax.images.value_range import to_float, to_uint8
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.parameters import merge, split
from fmboost_jax.models.unet import UNet, UNetConfig
from tests.random_models import random_model

UNET = UNetConfig(in_channels=6, out_channels=3, model_channels=32, channel_mult=(1,), num_res_blocks=1, dim_head=16)
COUPLING = Coupling(noise_step=300)


def still(devices=None, spatial=1, coupling=COUPLING):
    """A booster whose velocity is zero: it returns where the flow starts."""
    graph, parameters = split(random_model(UNet, UNET))
    network = merge(graph, jax.tree.map(jnp.zeros_like, parameters))
    return Booster(network, load_first_stage("identity"), coupling, 2, devices=devices, spatial=spatial)


@pytest.fixture(scope="module")
def booster():
    return still()


def image(height, width):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def test_a_folder_of_any_sizes_needs_at_most_four_shapes(booster, monkeypatch):
    shapes = set()

    def watched(graph, parameters, low, *arguments, **options):
        shapes.add(low.shape)
        return jitted_flow(graph, parameters, low, *arguments, **options)

    monkeypatch.setattr("fmboost_jax.boosting.booster.jitted_flow", watched)
    before = jitted_flow._cache_size()
    sizes = [(16, 16), (21, 40), (13, 9), (7, 8), (40, 5), (3, 2), (1, 1)]
    for height, width in sizes:
        assert booster.upscale(image(height, width), steps=1, tile=16).shape == (2 * height, 2 * width, 3)
    assert shapes == {(1, side, side, 3) for side in (32, 16, 8, 4)}
    assert jitted_flow._cache_size() - before <= 4
    compiled = jitted_flow._cache_size()
    several = booster.upscale([image(*size) for size in sizes], steps=1, tile=16, batch_size=1, seed=[0] * len(sizes))
    assert jitted_flow._cache_size() == compiled
    for size, result in zip(sizes, several, strict=True):
        np.testing.assert_array_equal(result, booster.upscale(image(*size), steps=1, tile=16))


def test_tiles_draw_one_field_of_noise(booster):
    """Overlapping tiles start from the same noise; the mean of two draws would have a smaller deviation."""
    grey = np.full((24, 40, 3), 128, np.uint8)
    seen = []
    found = booster.upscale(grey, steps=1, tile=16, seed=5, colour_fix=None, progress=lambda *done: seen.append(done))
    assert seen == [(number, 6) for number in range(1, 7)]
    keys = jax.vmap(lambda key: jax.random.split(key, 2))(noise_keys([5]))[:, 0]
    noise = sample_noise_field(keys, jnp.zeros((1, 2), jnp.int32), (48, 80, 3))
    start = noise_augment(to_float(jnp.full((1, 48, 80, 3), 128, jnp.uint8)), COUPLING.noise_step, noise)
    assert np.abs(found.astype(int) - to_uint8(np.asarray(start))[0]).max() <= 1
    many = still(jax.devices()[:2]).upscale(grey, steps=1, tile=16, seed=5, colour_fix=None)
    assert np.abs(many.astype(int) - found).max() <= 1


def test_images_that_are_not_tiled(booster):
    low, plain = image(20, 18), {"steps": 1, "colour_fix": None}
    whole = booster.upscale(low, tile=0, **plain)
    assert np.abs(whole.astype(int) - booster.upscale(low, tile=16, **plain)).max() > 9
    assert booster.upscale(low, **plain).shape == whole.shape
    np.testing.assert_array_equal(booster.upscale(low, tile=16, return_trajectory=True, **plain)[-1], whole)
    shared = still(jax.devices()[:2], spatial=2).upscale(low, tile=16, **plain)
    assert np.abs(shared.astype(int) - whole).max() <= 1
    with pytest.raises(InputError, match="tile must be 0"):
        booster.upscale(low, tile=-1)


def test_the_alpha_of_a_large_image_is_kept(booster):
    alpha = np.full((20, 33), 255, np.uint8)
    alpha[:, 20:] = 0
    large = booster.upscale(Image.fromarray(np.dstack([image(20, 33), alpha])), steps=1, tile=16)
    assert (large.mode, large.size) == ("RGBA", (66, 40))
    assert (np.asarray(large)[:, 50:, 3] == 0).all()


def test_results_agree_with_their_images(booster):
    """Shrunk, they are the images: of any size, in tiles or whole, with 8 bits or 16, with alpha."""
    grey = [image(*size) // 4 + 96 for size in ((20, 33), (7, 8), (13, 20), (9, 9))]
    deep, opaque = grey[2].astype(np.uint16) * 200, np.full((9, 9), 255, np.uint8)
    images = [*grey[:2], deep, Image.fromarray(np.dstack([grey[3], opaque]))]
    found = booster.upscale(images, steps=1, tile=16)
    for small, large, unit in zip(images, found, (1, 1, 200, 1), strict=True):
        small, large = (np.asarray(x)[..., :3] / unit for x in (small, large))
        assert np.abs(large.reshape(len(small), 2, -1, 2, 3).mean((1, 3)) - small).mean() < 1
    plain = booster.upscale(images[0], steps=1, tile=16, colour_fix=None)
    np.testing.assert_array_equal(found[0], fix_colour(plain[None], images[0][None], "consistency")[0])
    adain = booster.upscale(images[0], steps=1, tile=16, colour_fix="adain")
    np.testing.assert_array_equal(adain, fix_colour(plain[None], images[0][None], "adain")[0])
    with pytest.raises(InputError, match="colour fix 'warm' is unknown"):
        booster.upscale(images[0], steps=1, tile=16, colour_fix="warm")


def test_a_folder_goes_through_tiles_of_the_given_size(booster, tmp_path):
    Image.fromarray(image(18, 33)).save(tmp_path / "wide.png")
    for tile in (16, 0):
        boost_folder(booster, tmp_path / "wide.png", tmp_path / str(tile), steps=1, tile=tile)
        with Image.open(tmp_path / str(tile) / "wide.png") as found:
            np.testing.assert_array_equal(np.asarray(found), booster.upscale(image(18, 33), steps=1, tile=tile))
            assert json.loads(found.text["fmboost"])["tile"] == tile


def test_padded_squares_have_few_sizes():
    assert [square_for(side, 1, 256, 8) for side in (1, 32, 33, 64, 128, 129, 256)] == [32, 32, 64, 64, 128, 256, 256]
    assert square_for(1, 257, 256, 8) is None
    assert square_for(20, 1, 20, 8) == 24


@pytest.mark.parametrize(("upsampling", "pixel_filter"), [("psu", "bilinear"), ("psu_bicubic", "bicubic")])
def test_the_flow_starts_from_the_image_enlarged_as_in_training(upsampling, pixel_filter):
    """Without velocity and noise the enlarged image comes back: from photographs and from latents alike."""
    plain = still(coupling=Coupling(noise_step=0, upsampling=upsampling))
    small = image(8, 16)
    expected = to_uint8(np.asarray(upsample(jnp.asarray(to_float(small[None])), (16, 32), pixel_filter)))[0]
    np.testing.assert_array_equal(plain.upscale(small, steps=1, tile=0, colour_fix=None), expected)
    found = plain.decode(plain.boost(to_float(small[None]), steps=1))
    np.testing.assert_array_equal(np.asarray(found)[0], expected)


@pytest.mark.parametrize(
    ("upsampling", "factor", "expected"), [("psu", 2, 2), ("psu", 3, 4), ("psu", 8, 1), ("lsu", 3, 2)]
)
def test_sides_that_autoencoder_and_network_can_halve(booster, upsampling, factor, expected):
    """One halving in the network, none (identity) in the autoencoder; and an autoencoder of 2×."""
    network = random_model(UNet, dataclasses.replace(UNET, channel_mult=(1, 1, 1) if upsampling == "psu" else (1, 1)))
    one = Booster(network, booster.first_stage, dataclasses.replace(COUPLING, upsampling=upsampling), factor)
    assert one._image_multiple() == expected
