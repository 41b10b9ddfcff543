"""Colour correction: a result's statistics or coarse frequencies are replaced by those of its input."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

from fmboost_jax.images.resize import resize_pixels
from fmboost_jax.registry import choose

# Blurs of 1, 2, 4, 8 and 16 pixels: what is coarser than all of them is colour, the rest detail.
WAVELET_LEVELS = 5


def adain(image: Float[np.ndarray, "h w c"], reference: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w c"]:
    """The image with the reference's mean and standard deviation in each channel.

    Source: Huang and Belongie, "Arbitrary style transfer in real-time with adaptive instance normalization", 2017,
    arXiv 1703.06868, equation 8.
    """
    axes = (0, 1)
    normalised = (image - image.mean(axes)) / np.maximum(image.std(axes), 1e-5)
    return normalised * reference.std(axes) + reference.mean(axes)


def wavelet(image: Float[np.ndarray, "h w c"], reference: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w c"]:
    """The image's detail on the reference's coarsest frequencies.

    Source: the undecimated (à trous) wavelet transform, Holschneider et al. 1989, with the kernel (1, 2, 1) / 4.
    """
    return image - _coarse(image) + _coarse(reference)


FIXES: dict[str, Callable] = {"adain": adain, "wavelet": wavelet}


def fix_colour(
    images: UInt8[np.ndarray, "b H W 3"], low_res: UInt8[np.ndarray, "b h w 3"], fix: str
) -> UInt8[np.ndarray, "b H W 3"]:
    """Give boosted images the colours of their low-res inputs, which are enlarged bicubically for it.

    Args:
        images: boosted.
        low_res: their inputs.
        fix: a key of `FIXES`: "adain" for a drift of the whole image, "wavelet" for one that varies within it.

    Raises:
        InputError: an unknown fix.
    """
    correct = choose("colour fix", fix, FIXES)
    fixed = []
    for image, low in zip(images, low_res, strict=True):
        reference = resize_pixels(low, image.shape[:2]).astype(np.float32)
        fixed.append(correct(image.astype(np.float32), reference))
    return np.clip(np.round(fixed), 0, 255).astype(np.uint8)


def _coarse(image: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w c"]:
    for level in range(WAVELET_LEVELS):
        for axis in (0, 1):
            image = _blur(image, 2**level, axis)
    return image


def _blur(image: Float[np.ndarray, "h w c"], radius: int, axis: int) -> Float[np.ndarray, "h w c"]:
    index = np.arange(image.shape[axis])
    before, after = np.maximum(index - radius, 0), np.minimum(index + radius, len(index) - 1)
    return (image.take(before, axis) + 2 * image + image.take(after, axis)) / 4
