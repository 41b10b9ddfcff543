"""Checks of the images and seeds that a `Booster` accepts; ambiguous input is refused."""

import dataclasses
import operator
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt
from PIL import Image

from fmboost_jax.errors import InputError, one_line
from fmboost_jax.images.photos import UnusablePhoto, photo_from_pillow, with_alpha

# A PIL image, one array (h, w, 3), a batch (b, h, w, 3), or a list of the first two, of different sizes.
Images: TypeAlias = Any
# Image i draws its noise from seed + i, or from its own number of a sequence.
Seed: TypeAlias = Any

EXPECTED = "a PIL image, an array (h, w, 3) or (b, h, w, 3) of uint8 or uint16 in RGB order, or a list of the first two"
SEEDS = 2**64


@dataclasses.dataclass(frozen=True)
class CheckedImages:
    """Images as arrays.

    Attributes:
        arrays: one an image, uint8 or uint16 (h, w, 3).
        restore: converts the same number of images, of any size, back to the input's kind.
    """

    arrays: list[UInt[np.ndarray, "_ _ 3"]]
    restore: Callable[[list[np.ndarray]], Any]

    def stacked(self, multiple: int) -> UInt[np.ndarray, "b h w 3"]:
        """Return the images as one array, for an autoencoder whose images have sides that are multiples of `multiple`.

        Raises:
            InputError: images of several sizes, or of a size that does not fit.
        """
        if len({array.shape for array in self.arrays}) > 1:
            raise InputError("encode takes images of one size; call it once for each size")
        height, width = self.arrays[0].shape[:2]
        if height % multiple or width % multiple:
            raise InputError(
                f"images of {height}×{width}: this autoencoder needs sides that are multiples of {multiple}"
            )
        return np.stack(self.arrays)


def check_images(images: Images) -> CheckedImages:
    """Check and convert images.

    PIL images are converted to upright sRGB, as photographs are; `restore` resizes and attaches their alpha channel.

    Args:
        images: see `EXPECTED`. Arrays are numpy's, JAX's or of any kind that numpy converts.

    Raises:
        InputError: anything else: floats, other integers, uint16 of 8-bit values, channels first, grey, alpha in an
            array, an empty list, a path. The message says how to convert it.
    """
    if isinstance(images, (list, tuple)):
        if not images:
            raise InputError(f"an empty list of images; expected {EXPECTED}")
        checked = [_one(image, f"image {index} of the list") for index, image in enumerate(images)]
        restores = [restore for _, restore in checked]
        return CheckedImages(
            [array for array, _ in checked],
            lambda results: [restore(result) for restore, result in zip(restores, results, strict=True)],
        )
    if isinstance(images, Image.Image):
        array, restore = _one(images, "the image")
        return CheckedImages([array], lambda results: restore(results[0]))
    array = _array(images, "the images")
    if array.ndim == 3:
        return CheckedImages([array], lambda results: results[0])
    return CheckedImages(list(array), np.stack)


def _one(image: object, name: str) -> tuple[UInt[np.ndarray, "h w 3"], Callable[[np.ndarray], Any]]:
    if isinstance(image, Image.Image):
        try:
            photo = photo_from_pillow(image)
        except UnusablePhoto as error:
            raise InputError(f"{name}: {error}") from error
        alpha = photo.alpha
        if alpha is None:
            return photo.pixels, Image.fromarray
        return photo.pixels, lambda result: Image.fromarray(with_alpha(result, alpha))
    array = _array(image, name)
    if array.ndim != 3:
        raise InputError(f"{name} has shape {array.shape}; in a list each must be one image (h, w, 3)")
    return array, lambda result: result


def _array(images: object, name: str) -> UInt[np.ndarray, "*b h w 3"]:
    if isinstance(images, (str, bytes, os.PathLike)):
        raise InputError(f"{name}: found the path {images!r}; open it first: PIL.Image.open(path)")
    try:
        array = np.asarray(images)
    # Arrays raise exceptions of any type: TypeError (a GPU's tensor), RuntimeError (a tensor with a gradient), …
    except Exception as error:
        raise InputError(f"{name} cannot become an array ({one_line(error)}); expected {EXPECTED}") from error
    _check_shape(array.shape, name)
    if array.dtype == np.uint8 or (array.dtype == np.uint16 and array.max() > 255):
        return array
    raise InputError(f"{name} must be uint8 or uint16, found {array.dtype}{_advice(array)}")


def _check_shape(shape: tuple[int, ...], name: str) -> None:
    if len(shape) in (3, 4) and shape[-1] == 3 and all(shape):
        return
    if len(shape) == 4 and shape[1] == 3:
        advice = "channels first: use images.transpose(0, 2, 3, 1)"
    elif len(shape) == 3 and shape[0] == 3:
        advice = "channels first: use image.transpose(1, 2, 0)"
    elif len(shape) in (3, 4) and shape[-1] == 4:
        advice = "4 channels: drop alpha with image[..., :3], or give a PIL image, whose alpha is kept"
    elif len(shape) in (3, 4) and shape[-1] == 1:
        advice = "1 channel: use np.repeat(image, 3, axis=-1)"
    elif len(shape) in (2, 3) and all(shape):
        advice = "no colour channels: use np.stack([image] * 3, axis=-1)"
    else:
        advice = f"expected {EXPECTED}"
    raise InputError(f"{name} has shape {shape}; {advice}")


def _advice(array: np.ndarray) -> str:
    """Advice on converting an array of another type to uint8."""
    kind = array.dtype.kind
    if kind in "iu" and array.min() >= 0 and array.max() <= 255:
        return "; use images.astype(np.uint8)"
    try:
        low, high = float(array.min()), float(array.max())
    except (TypeError, ValueError):
        return f"; expected {EXPECTED}"
    found = f" from {low:.3g} to {high:.3g}"
    if low >= 0 and high <= 1:
        return f"{found}; for values in [0, 1] use np.round(255 * images).astype(np.uint8)"
    if low >= -1 and high <= 1:
        return f"{found}; for values in [−1, 1] use fmboost_jax.images.to_uint8(images)"
    if low >= 0 and high <= 255:
        return f"{found}; for values in [0, 255] use np.round(images).astype(np.uint8)"
    return f"{found}, an unknown range"


def check_seeds(seed: Seed, count: int) -> list[int]:
    """Seeds of `count` images.

    Args:
        seed: an integer, 0 to 2^64 − 1, of Python or numpy: image i takes seed + i, modulo 2^64; or a sequence of them.
        count: images.

    Raises:
        InputError: another number of seeds, a negative or too large one, or no integer.
    """
    if isinstance(seed, Sequence) or np.ndim(seed) == 1:
        seeds = [_seed(one) for one in seed]
        if len(seeds) != count:
            raise InputError(f"{count} images need as many seeds, found {len(seeds)}")
        return seeds
    first = _seed(seed)
    return [(first + index) % SEEDS for index in range(count)]


def _seed(seed: object) -> int:
    try:
        if isinstance(seed, (bool, np.bool_)):
            raise TypeError
        number = operator.index(seed)  # pyright: ignore[reportArgumentType]: the TypeError is the check
    except TypeError:
        raise InputError(f"a seed must be an integer from 0 to 2^64 − 1, found {seed!r}") from None
    if not 0 <= number < SEEDS:
        raise InputError(f"a seed must be from 0 to 2^64 − 1, found {number}")
    return number


def noise_keys(seeds: Sequence[int]) -> Key[Array, "b"]:
    """One random key for each seed, from all 64 bits; below 2^32 equal to `jax.random.key(seed)`."""
    words = [(seed >> 32, seed & 0xFFFFFFFF) for seed in seeds]
    return jax.random.wrap_key_data(jnp.array(np.array(words, np.uint32)), impl="threefry2x32")
