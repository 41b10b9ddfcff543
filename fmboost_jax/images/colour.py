"""Colour correction: a result's statistics or frequencies are replaced by those of its input."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt
from PIL import Image

from fmboost_jax.registry import choose

# Blurs of 1, 2, 4, 8 and 16 pixels: what is coarser than all of them is colour, the rest detail.
WAVELET_LEVELS = 5


# Rounds of back-projection; more change no value by half a level.
ROUNDS = 5


def adain(image: Float[np.ndarray, "H W c"], low: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "H W c"]:
    """The image with the mean and standard deviation of the small one in each channel.

    Source: Huang and Belongie, "Arbitrary style transfer in real-time with adaptive instance normalization", 2017,
    arXiv 1703.06868, equation 8.
    """
    axes, reference = (0, 1), enlarge(low, image.shape[:2])
    normalised = (image - image.mean(axes)) / np.maximum(image.std(axes), 1e-5)
    return normalised * reference.std(axes) + reference.mean(axes)


def wavelet(image: Float[np.ndarray, "H W c"], low: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "H W c"]:
    """The image's detail on the coarsest frequencies of the small one.

    Source: the undecimated (à trous) wavelet transform, Holschneider et al. 1989, with the kernel (1, 2, 1) / 4.
    """
    return image - _coarse(image) + _coarse(enlarge(low, image.shape[:2]))


def consistency(image: Float[np.ndarray, "H W c"], low: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "H W c"]:
    """The image changed until its area average is the small one.

    What an autoencoder loses of the frequencies that the small image has comes back; the detail above them stays.

    Source: iterative back-projection, Irani and Peleg, "Improving resolution by image registration", 1991, equation 3,
    with area averaging as the blur and bicubic interpolation as the back-projection.
    """
    for _ in range(ROUNDS):
        image = image + enlarge(low - _area_average(image, low.shape[:2]), image.shape[:2])
    return image


FIXES: dict[str, Callable] = {"adain": adain, "wavelet": wavelet, "consistency": consistency}
NO_FIX = "none"  # the name of no correction, where commands and pages offer a choice


def fix_colour(
    images: UInt[np.ndarray, "b H W 3"], low_res: UInt[np.ndarray, "b h w 3"], fix: str
) -> UInt[np.ndarray, "b H W 3"]:
    """Give boosted images the colours of their low-res inputs.

    Args:
        images: boosted; uint8 or uint16.
        low_res: their inputs, of the same type.
        fix: a key of `FIXES`: "adain" for a drift of the whole image, "wavelet" for one that varies within it,
            "consistency" for all that the small image shows.

    Raises:
        InputError: an unknown fix.
    """
    correct, dtype = choose("colour fix", fix, FIXES), images.dtype
    pairs = zip(images.astype(np.float32), low_res.astype(np.float32), strict=True)
    fixed = (np.clip(np.round(correct(image, low)), 0, np.iinfo(dtype).max) for image, low in pairs)
    return np.stack([image.astype(dtype) for image in fixed])


def enlarge(image: Float[np.ndarray, "h w c"], size: tuple[int, int]) -> Float[np.ndarray, "H W c"]:
    """Resize to (height, width), bicubically."""
    return _by_channel(image, lambda channel: channel.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _area_average(image: Float[np.ndarray, "H W c"], size: tuple[int, int]) -> Float[np.ndarray, "h w c"]:
    """Means of equal blocks; `size` divides the image's."""
    height, width = (before // after for before, after in zip(image.shape[:2], size, strict=True))
    return _by_channel(image, lambda channel: channel.reduce((width, height)))


def _by_channel(image: Float[np.ndarray, "h w c"], act: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Apply a function of Pillow images with one float32 channel."""
    channels = (Image.fromarray(np.ascontiguousarray(channel)) for channel in np.moveaxis(image, -1, 0))
    return np.stack([np.asarray(act(channel)) for channel in channels], axis=-1)


def _coarse(image: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w c"]:
    for level in range(WAVELET_LEVELS):
        for axis in (0, 1):
            image = _blur(image, 2**level, axis)
    return image


def _blur(image: Float[np.ndarray, "h w c"], radius: int, axis: int) -> Float[np.ndarray, "h w c"]:
    index = np.arange(image.shape[axis])
    before, after = np.maximum(index - radius, 0), np.minimum(index + radius, len(index) - 1)
    return (image.take(before, axis) + 2 * image + image.take(after, axis)) / 4
