"""Against drift of colours: the result's statistics or coarse frequencies are taken from what it was made of."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fmboost_jax.errors import InputError

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
    """Boosted images in the colours of the low-res ones, which are enlarged bicubically for it.

    Args:
        images: boosted.
        low_res: what they were made of.
        fix: "adain", where all colours drifted alike, or "wavelet", where they drifted here and there.

    Raises:
        InputError: a fix that there is not.
    """
    if fix not in FIXES:
        raise InputError(f"colour fix {fix!r} is unknown; expected one of {', '.join(FIXES)}")
    size = images.shape[2], images.shape[1]
    fixed = []
    for image, low in zip(images, low_res, strict=True):
        reference = np.asarray(Image.fromarray(low).resize(size, Image.Resampling.BICUBIC), np.float32)
        fixed.append(FIXES[fix](image.astype(np.float32), reference))
    return np.clip(np.round(fixed), 0, 255).astype(np.uint8)


def _coarse(image: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w c"]:
    for level in range(WAVELET_LEVELS):
        for axis in (0, 1):
            image = _blur(image, 2**level, axis)
    return image


def _blur(image: Float[np.ndarray, "h w c"], reach: int, axis: int) -> Float[np.ndarray, "h w c"]:
    places = np.arange(image.shape[axis])
    before, after = np.maximum(places - reach, 0), np.minimum(places + reach, len(places) - 1)
    return (image.take(before, axis) + 2 * image + image.take(after, axis)) / 4
