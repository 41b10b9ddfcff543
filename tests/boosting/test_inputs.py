"""Inputs of a Booster: images of several kinds give results of the same kind; ambiguous values are refused."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fmboost_jax.boosting.inputs import check_images, check_seeds, noise_keys
from fmboost_jax.errors import InputError

RANDOM = np.random.default_rng(0)
ONE = RANDOM.integers(0, 256, (4, 6, 3), np.uint8)
BATCH = RANDOM.integers(0, 256, (2, 4, 6, 3), np.uint8)


def restored(images):
    """What comes back where nothing is changed."""
    checked = check_images(images)
    return checked.restore(list(checked.arrays))


def test_arrays_come_back_as_they_are():
    np.testing.assert_array_equal(restored(ONE), ONE)
    np.testing.assert_array_equal(restored(BATCH), BATCH)
    np.testing.assert_array_equal(restored(jnp.asarray(BATCH)), BATCH)
    assert isinstance(restored(jnp.asarray(ONE)), np.ndarray)
    np.testing.assert_array_equal(restored(ONE.astype(np.uint16) * 257), ONE.astype(np.uint16) * 257)


def test_pillow_images_come_back_as_pillow_images():
    found = restored(Image.fromarray(ONE))
    assert isinstance(found, Image.Image)
    np.testing.assert_array_equal(np.asarray(found), ONE)
    grey = restored(Image.fromarray(ONE[..., 0]))
    np.testing.assert_array_equal(np.asarray(grey), np.repeat(ONE[..., :1], 3, axis=-1))


def test_alpha_of_a_pillow_image_comes_back():
    image = Image.new("RGBA", (6, 4), (200, 10, 20, 128))
    found = np.asarray(restored(image))
    assert found.shape == (4, 6, 4)
    assert np.abs(found.astype(int) - (200, 10, 20, 128)).max() <= 1


def test_an_upright_image_comes_back(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(ONE).save(tmp_path / "turned.png", exif=turned)
    with Image.open(tmp_path / "turned.png") as image:
        assert restored(image).size == (4, 6)


def test_a_list_of_several_sizes_and_kinds():
    images = [ONE, Image.fromarray(BATCH[0]), ONE[:2]]
    checked = check_images(images)
    array, image, small = checked.restore(list(checked.arrays))
    assert isinstance(image, Image.Image)
    assert (array.shape, image.size, small.shape) == ((4, 6, 3), (6, 4), (2, 6, 3))


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (ONE / 255.0, r"float64 from 0.* to .*np.round\(255 \* images\).astype\(np.uint8\)"),
        (ONE / 127.5 - 1, r"fmboost_jax.images.to_uint8\(images\)"),
        (ONE.astype(np.float32), r"np.round\(images\).astype\(np.uint8\)"),
        (ONE * 100.0, "an unknown range"),
        (ONE * np.nan, "an unknown range"),
        (ONE.astype(np.uint16), r"found uint16; use images.astype\(np.uint8\)"),
        (ONE.astype(np.int64), r"images.astype\(np.uint8\)"),
        (ONE > 9, "found bool"),
        (ONE.astype(ml_dtypes.bfloat16) / 255, "found bfloat16"),
        (ONE.astype(str), "found <U"),
        (ONE.transpose(2, 0, 1), r"image.transpose\(1, 2, 0\)"),
        (BATCH.transpose(0, 3, 1, 2), r"images.transpose\(0, 2, 3, 1\)"),
        (ONE[..., 0], r"np.stack\(\[image\] \* 3, axis=-1\)"),
        (ONE[..., :1], r"np.repeat\(image, 3, axis=-1\)"),
        (np.dstack([ONE, ONE[..., :1]]), r"image\[..., :3\]"),
        (BATCH[:0], "expected a PIL image"),
        (BATCH[None], "expected a PIL image"),
        (np.uint8(3), "expected a PIL image"),
        ([], "an empty list"),
        ([ONE, BATCH], r"image 1 of the list has shape \(2, 4, 6, 3\)"),
        ([ONE, ONE / 255.0], "image 1 of the list must be uint8 or uint16"),
        ([[1, 2], [3, 4]], "image 0 of the list has shape"),
        ("photo.jpg", "PIL.Image.open"),
        (pathlib.Path("photo.jpg"), "PIL.Image.open"),
        (None, "the images has shape|must be uint8"),
        ({"a": 1}, "the images"),
    ],
)
def test_other_inputs_are_refused_in_one_sentence(images, expected):
    with pytest.raises(InputError, match=expected) as caught:
        check_images(images)
    assert "\n" not in str(caught.value)


def test_seeds_count_up():
    assert check_seeds(3, 3) == [3, 4, 5]
    assert check_seeds(np.int64(3), 1) == [3]
    assert check_seeds(np.array([5, 2]), 2) == [5, 2]
    assert check_seeds(2**64 - 1, 2) == [2**64 - 1, 0]
    assert check_seeds([np.uint64(2**64 - 1)], 1) == [2**64 - 1]


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "3", None, True, [1, 2, 3], [1, -1], np.zeros((2, 2), int)])
def test_other_seeds_are_refused(seed):
    with pytest.raises(InputError, match="seed"):
        check_seeds(seed, 2)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_small_seeds_are_those_of_jax(seed):
    np.testing.assert_array_equal(
        jax.random.key_data(noise_keys([seed])[0]), jax.random.key_data(jax.random.key(np.uint32(seed)))
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=2, unique=True))
def test_different_seeds_have_different_keys(seeds):
    first, second = np.asarray(jax.random.key_data(noise_keys(seeds)))
    assert (first != second).any()


IMPORTED = """
import sys
from flax import nnx  # imports optax itself
before = set(sys.modules)
import fmboost_jax
assert {"Booster", "Solver", "flow", "images"} <= set(dir(fmboost_jax))
from fmboost_jax import Booster
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new & {"orbax", "grain", "optax", "array_record", "torch", "tensorflow"}))
"""


def test_importing_the_booster_imports_no_training_package():
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
