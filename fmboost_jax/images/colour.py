"""Colour correction: a result's statistics or frequencies are replaced by those of its input."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, UInt
from PIL import Image

from fmboost_jax.registry import choose

# Blurs of 1, 2, 4, 8 and 16 pixels: frequencies below all of them are colour, the rest is detail.
WAVELET_LEVELS = 5


# Iterations of back-projection; further ones change every value by less than half a level.
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
    """The image, corrected so that its area average equals the small one.

    It restores the frequencies of the small image that an autoencoder loses; the detail above them is unchanged.

    Source: iterative back-projection, Irani and Peleg, "Improving resolution by image registration", 1991, equation 3,
    with area averaging as the blur and bicubic interpolation as the back-projection.
    """
    for _ in range(ROUNDS):
        image = image + enlarge(low - _area_average(image, low.shape[:2]), image.shape[:2])
    return image


FIXES: dict[str, Callable] = {"adain": adain, "wavelet": wavelet, "consistency": consistency}
# Reach of a pixel's correction in rows of the small image and of the large one. Other fixes need all rows.
REACH = {"wavelet": (3, 2**WAVELET_LEVELS), "consistency": (3 * ROUNDS, 0)}
STRIP = 2**25  # values of a large image that a thread corrects at once, where the correction's reach allows it
THREADS = 2  # more take more memory
NO_FIX = "none"  # choice of commands and pages for no correction


def fix_colour(
    images: UInt[np.ndarray, "b H W 3"], low_res: UInt[np.ndarray, "b h w 3"], fix: str, strength: float = 1.0
) -> UInt[np.ndarray, "b H W 3"]:
    """Give boosted images the colours of their low-res inputs.

    Args:
        images: boosted; uint8 or uint16.
        low_res: their inputs, of the same type.
        strength: share of the correction that is applied, 0 to 1. Default: 1.
        fix: a key of `FIXES`: "adain" for a drift of the whole image, "wavelet" for one that varies within it,
            "consistency" for all that the small image shows.

    Raises:
        InputError: an unknown fix.
    """
    correct = choose("colour fix", fix, FIXES)
    result = np.empty_like(images)

    def fix_strip(image, low, fixed, rows: slice, inner: slice, small: slice) -> None:
        before = image[rows].astype(np.float32)
        strip = before[inner]
        strip = strip + strength * (correct(before, low[small].astype(np.float32))[inner] - strip)
        top = rows.start + inner.start
        fixed[top : top + len(strip)] = np.clip(np.round(strip), 0, np.iinfo(images.dtype).max)

    with ThreadPoolExecutor(THREADS) as pool:
        waiting = [
            pool.submit(fix_strip, image, low, fixed, *strip)
            for image, low, fixed in zip(images, low_res, result, strict=True)
            for strip in _strips(image.shape, low.shape, REACH.get(fix))
        ]
        for strip in waiting:
            strip.result()
    return result


def _strips(
    shape: tuple[int, ...], low_shape: tuple[int, ...], reach: tuple[int, int] | None
) -> Iterator[tuple[slice, slice, slice]]:
    """Rows of a large image with those they depend on; the rows of a strip within these; rows of the small image."""
    height, low_height = shape[0], low_shape[0]
    factor, rest = divmod(height, low_height)
    if reach is None or rest:
        yield slice(0, height), slice(0, height), slice(0, low_height)
        return
    margin = reach[0] + -(-reach[1] // factor)
    step = max(STRIP // (shape[1] * shape[2] * factor), 1)
    for top in range(0, low_height, step):
        first, last = max(top - margin, 0), min(top + step + margin, low_height)
        end = min(top + step, low_height)
        inner = slice((top - first) * factor, (end - first) * factor)
        yield slice(first * factor, last * factor), inner, slice(first, last)


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
