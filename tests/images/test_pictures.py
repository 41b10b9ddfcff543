"""PNG files and grids."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fmboost_jax.images.grid import grid
from fmboost_jax.images.png import write_png
from fmboost_jax.images.value_range import to_float, to_uint8


@given(st.integers(0, 255))
def test_grey_levels_survive_the_round_trip(level):
    pixels = np.full((1, 2, 2, 3), level, np.uint8)
    np.testing.assert_array_equal(to_uint8(to_float(pixels)), pixels)


def test_values_outside_are_clipped():
    image = np.array([-7, -1, 0, 1, 7], np.float32).reshape(1, 1, 5, 1)
    assert to_uint8(image).ravel().tolist() == [0, 0, 128, 255, 255]


def test_same_arguments_same_bytes_and_settings_inside(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    for name in ("a.png", "b.png"):
        write_png(str(tmp_path / "deep" / name), pixels, {"seed": 3})
    assert (tmp_path / "deep" / "a.png").read_bytes() == (tmp_path / "deep" / "b.png").read_bytes()
    with Image.open(tmp_path / "deep" / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
        assert json.loads(image.text["fmboost"]) == {"seed": 3}
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["a.png", "b.png"]


def test_grid_shows_every_picture_at_one_height():
    red, blue = np.array([200, 10, 10], np.uint8), np.array([10, 10, 200], np.uint8)
    small, large = np.tile(red, (8, 6, 1)), np.tile(blue, (32, 24, 1))
    sheet = grid([[small, large], [large, small]], ["small", "large"])
    assert (sheet == red).all(-1).sum() == (sheet == blue).all(-1).sum() == 2 * 32 * 24
