"""Image metrics against scikit-image's."""

import numpy as np
import pytest
import skimage.data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fmboost_jax.images.value_range import to_float
from fmboost_jax.metrics.images import gradient_energy, psnr, ssim, ssim_torchmetrics


@pytest.fixture(scope="module")
def photographs():
    original = to_float(np.stack([skimage.data.astronaut()[:96, :80], skimage.data.chelsea()[:96, :80]]))
    noise = np.random.default_rng(0).normal(0, 0.1, original.shape).astype(np.float32)
    return original, original + noise * np.array([1, 3], np.float32)[:, None, None, None]


def test_psnr_and_ssim_agree_with_scikit_image(photographs):
    original, noisy = photographs
    expected = [peak_signal_noise_ratio(o, n, data_range=2) for o, n in zip(original, noisy, strict=True)]
    np.testing.assert_allclose(psnr(noisy, original), expected, rtol=1e-5)
    # Of brightness from 0 to 1, in float64.
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    pairs = zip(original.astype(np.float64) / 2 + 0.5, noisy.astype(np.float64) / 2 + 0.5, strict=True)
    expected = [structural_similarity(o, n, channel_axis=-1, **options) for o, n in pairs]
    np.testing.assert_allclose(ssim(noisy, original), expected, atol=1e-5)


def test_equal_and_constant_images(photographs):
    original, _ = photographs
    assert np.isinf(psnr(original, original)).all()
    np.testing.assert_allclose(ssim(original, original), 1, atol=1e-5)
    grey = np.zeros((1, 32, 32, 3), np.float32)
    np.testing.assert_allclose(ssim(grey, grey), 1, atol=1e-6)
    assert gradient_energy(grey)[0] == 0


def test_gradient_energy_falls_with_blur(photographs):
    original, noisy = photographs
    blurred = (original[:, 1:] + original[:, :-1]) / 2
    assert (gradient_energy(blurred) < gradient_energy(original)).all()
    assert (gradient_energy(noisy) > gradient_energy(original)).all()
    ramp = np.arange(4, dtype=np.float32)[None, :, None, None] * np.ones((1, 1, 5, 3), np.float32)
    assert gradient_energy(ramp)[0] == 1


def test_ssim_of_torchmetrics_counts_the_border(photographs):
    original, noisy = photographs
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    expected = []
    for pair in zip(original.astype(np.float64) / 2 + 0.5, noisy.astype(np.float64) / 2 + 0.5, strict=True):
        padded = (np.pad(image, ((5, 5), (5, 5), (0, 0)), mode="reflect") for image in pair)
        expected.append(structural_similarity(*padded, channel_axis=-1, **options))
    np.testing.assert_allclose(ssim_torchmetrics(noisy, original), expected, atol=1e-5)
    assert np.abs(ssim_torchmetrics(noisy, original) - ssim(noisy, original)).max() > 1e-5
