"""Fidelity metrics of images, NHWC in [−1, 1], and their originals. Each returns one number per image."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

WINDOW, SIGMA = 11, 1.5


def psnr(
    image: Float[Array | np.ndarray, "b h w c"], original: Float[Array | np.ndarray, "b h w c"]
) -> Float[Array, "b"]:
    """Return the peak signal-to-noise ratio in dB for values in [−1, 1]; it is infinite for equal images."""
    return 10 * jnp.log10(4 / jnp.mean(jnp.square(image - original), axis=(1, 2, 3)))


def ssim(
    image: Float[Array | np.ndarray, "b h w c"], original: Float[Array | np.ndarray, "b h w c"]
) -> Float[Array, "b"]:
    """Return the structural similarity, the mean over channels and over windows inside the image (at least 11×11).

    Source: Wang et al. 2004, "Image quality assessment", equation 13, with K1 = 0.01, K2 = 0.03 and an 11×11 Gaussian
    window of σ = 1.5. Values are first shifted to [0, 2], because the first factor depends on the zero point.
    """
    image, original = image + 1, original + 1  # [0, 2]
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    mean_x, mean_y = _blur(image), _blur(original)
    var_x = _blur(image**2) - mean_x**2
    var_y = _blur(original**2) - mean_y**2
    covariance = _blur(image * original) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return jnp.mean(luminance * structure, axis=(1, 2, 3))


def ssim_torchmetrics(
    image: Float[Array | np.ndarray, "b h w c"], original: Float[Array | np.ndarray, "b h w c"]
) -> Float[Array, "b"]:
    """Return `ssim` with windows at every pixel and images reflected at their borders, as torchmetrics computes it."""
    margin = WINDOW // 2
    widths = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    return ssim(*(jnp.pad(array, widths, mode="reflect") for array in (image, original)))


def sharpness(
    image: Float[Array | np.ndarray, "b h w c"], original: Float[Array | np.ndarray, "b h w c"]
) -> Float[Array, "b"]:
    """Return the gradient energy divided by the original's; below 1 for a blurred image."""
    return gradient_energy(image) / gradient_energy(original)


def gradient_energy(image: Float[Array | np.ndarray, "b h w c"]) -> Float[Array, "b"]:
    """Return the mean square of differences between neighbouring pixels, a measure of fine detail."""
    rows, columns = jnp.diff(image, axis=1), jnp.diff(image, axis=2)
    return jnp.mean(jnp.square(rows), axis=(1, 2, 3)) + jnp.mean(jnp.square(columns), axis=(1, 2, 3))


def _blur(x: Float[Array | np.ndarray, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = jnp.asarray(weights / weights.sum(), jnp.float32)
    channels = x.shape[-1]

    def along(x, shape):
        kernel = jnp.broadcast_to(weights.reshape(shape), (*shape[:2], 1, channels))
        return lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
            precision="highest",
        )

    return along(along(x, (WINDOW, 1, 1, 1)), (1, WINDOW, 1, 1))
