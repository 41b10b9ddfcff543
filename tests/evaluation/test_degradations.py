"""Degraded images: the effect of each kind; they depend on name and seed alone."""

import io

import numpy as np
import pytest
import scipy.ndimage
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fmboost_jax.evaluation.degradations import (
    DEGRADATIONS,
    add_noise,
    blur,
    degrade,
    gaussian_kernel,
    jpeg,
    random_kernel,
    sinc_kernel,
)


@pytest.fixture(scope="module")
def photograph():
    return np.ascontiguousarray(skimage.data.astronaut()[60:188, 150:278])


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_a_degradation_depends_on_name_and_seed(photograph, kind):
    options = {"size": 32, "kind": kind, "resize": "bicubic"}
    first = degrade(photograph, "a", seed=0, **options)
    assert (first.shape, first.dtype) == ((32, 32, 3), np.uint8)
    assert np.array_equal(first, degrade(photograph, "a", seed=0, **options))
    others = degrade(photograph, "b", seed=0, **options), degrade(photograph, "a", seed=1, **options)
    if kind == "none":
        plain = Image.fromarray(photograph).resize((32, 32), Image.Resampling.BICUBIC)
        assert all(np.array_equal(image, np.asarray(plain)) for image in (first, *others))
    else:
        assert not any(np.array_equal(first, other) for other in others)


def test_jpeg_is_pillows(photograph):
    file = io.BytesIO()
    Image.fromarray(photograph).save(file, "JPEG", quality=40, subsampling=2)
    assert np.array_equal(jpeg(photograph, 40), np.asarray(Image.open(file)))
    errors = [np.square(jpeg(photograph, quality) - photograph.astype(float)).mean() for quality in (30, 95)]
    assert errors[0] > 2 * errors[1] > 0


def test_stronger_degradations_lose_more(photograph):
    def error(kind):
        made = [degrade(photograph, str(i), size=64, kind=kind, resize="bicubic", seed=0) for i in range(8)]
        plain = degrade(photograph, "", size=64, kind="none", resize="bicubic", seed=0)
        return np.mean([np.square(image - plain.astype(float)).mean() for image in made])

    assert error("none") == 0
    assert 0 < error("jpeg") < error("blur_noise")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_kernels_keep_the_brightness(seed):
    kernel = random_kernel(np.random.default_rng(seed))
    assert kernel.shape[0] == kernel.shape[1]
    assert kernel.shape[0] % 2 == 1
    assert kernel.sum() == pytest.approx(1)
    np.testing.assert_allclose(blur(np.full((24, 30, 3), 0.3), kernel), 0.3, atol=1e-9)


def test_blur_is_scipys_gaussian(photograph):
    kernel = gaussian_kernel(15, 1.4, 1.4, 0.3)
    found = blur(photograph / 255, kernel)
    expected = scipy.ndimage.gaussian_filter(photograph / 255, (1.4, 1.4, 0), mode="mirror", radius=(7, 7, 0))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # Turned by a right angle, the axes change places.
    np.testing.assert_allclose(gaussian_kernel(9, 2.0, 0.5, np.pi / 2), gaussian_kernel(9, 2.0, 0.5, 0.0).T, atol=1e-12)


def test_sinc_passes_what_is_below_its_cutoff():
    kernel = sinc_kernel(21, np.pi / 2)
    response = np.abs(np.fft.fft2(kernel, (128, 128)))[0]
    assert response[128 // 8] == pytest.approx(1, abs=0.1)  # π/4
    assert response[128 * 3 // 8] < 0.1  # 3π/4


def test_noise_has_the_mean_of_the_image():
    grey = np.full((64, 64, 3), 120, np.uint8)
    kinds = set()
    for seed in range(12):
        noisy = add_noise(grey, np.random.default_rng(seed)).astype(float)
        assert abs(noisy.mean() - 120) < 3
        kinds.add(bool((noisy[..., 0] == noisy[..., 1]).all()))
    assert kinds == {True, False}
