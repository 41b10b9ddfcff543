"""Photographs as a person means them: upright, sRGB, 8 bits, on white; and the square crops that are taken of them.

- EXIF rotation and mirroring are applied.
- Colours become sRGB by the file's ICC profile or a PNG's gamma and primaries; CMYK without a profile is converted by
  Pillow's plain formula.
- Greyscale becomes RGB. 16-bit greyscale and floats in [0, 1] are scaled to 8 bits; other floats and 32-bit integers,
  whose white is unknown, are refused.
- Colours are composited on white, because what is under a transparent pixel is often black or noise. The alpha channel
  is kept beside them.
- Of an animation, the first frame is taken.
"""

import contextlib
import functools
import hashlib
import importlib
import io
import os
from typing import IO, NamedTuple, cast

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from fmboost_jax.errors import one_line
from fmboost_jax.images.profiles import to_srgb
from fmboost_jax.images.resize import resize_pixels

ImageFile = str | os.PathLike | io.BufferedIOBase

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that turn an image by a quarter
_PHOTOMETRIC = 262  # a TIFF tag; 0: white is zero


# Formats that Pillow opens by running another program, or only recognises.
_NOT_PHOTOS = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}


class UnusablePhoto(ValueError):
    """A photograph that cannot be used; the message says why."""


class Square(NamedTuple):
    """A square region of a photograph, in pixels."""

    left: int
    top: int
    side: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom), the last two exclusive."""
        return self.left, self.top, self.left + self.side, self.top + self.side


class Photo(NamedTuple):
    """A decoded photograph.

    Attributes:
        rgb: its colours on white, of mode RGB.
        alpha: its alpha channel; None where every pixel is opaque.
    """

    rgb: Image.Image
    alpha: UInt8[np.ndarray, "h w"] | None

    @property
    def pixels(self) -> UInt8[np.ndarray, "h w 3"]:
        """The colours as an array."""
        return np.asarray(self.rgb)


def load_photo(file: ImageFile) -> Photo:
    """Decode an image file.

    Raises:
        UnusablePhoto: not an image, a damaged one, one whose values have no known range, or one so large that decoding
            it may exhaust memory.
    """
    try:
        with Image.open(cast(IO[bytes], file)) as image:
            return photo_from_pillow(image)
    except UnusablePhoto:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnusablePhoto("not an image, or one of an unknown kind") from error
    # A decoder may raise anything over broken bytes: OSError, SyntaxError, struct.error, zlib.error, …
    except Exception as error:
        raise UnusablePhoto(one_line(error)) from error


def photo_from_pillow(image: Image.Image) -> Photo:
    """Convert an image that Pillow has opened or made, as `load_photo` does.

    Raises:
        UnusablePhoto: as for `load_photo`.
    """
    try:
        return _decode(image)
    except UnusablePhoto:
        raise
    # A decoder may raise anything over broken bytes: OSError, SyntaxError, struct.error, zlib.error, …
    except Exception as error:
        raise UnusablePhoto(one_line(error)) from error


@functools.cache
def photo_suffixes() -> frozenset[str]:
    """Lower-case suffixes, such as ".jpg", of the image files that can be read; HEIC and JPEG XL with their plugins."""
    with contextlib.suppress(ImportError):
        pillow_heif = importlib.import_module("pillow_heif")
        pillow_heif.register_heif_opener()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_jxl")
    Image.init()
    kinds = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in kinds if kind in Image.OPEN and kind not in _NOT_PHOTOS)


def photo_size(file: ImageFile) -> tuple[int, int] | None:
    """Width and height of an upright photograph, from its file's header; None where it cannot be read."""
    try:
        with Image.open(cast(IO[bytes], file)) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(_ORIENTATION) in _SIDEWAYS else (width, height)
    # A decoder may raise anything over broken bytes.
    except Exception:
        return None


def with_alpha(image: UInt8[np.ndarray, "H W 3"], alpha: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "H W 4"]:
    """Give an image an alpha channel.

    Args:
        image: colours composited on white, C = a·F + (1 − a)·white, as photographs are loaded.
        alpha: of any size; resized bicubically to the image's.

    Returns:
        RGBA with the colours F, so that no white rim shows on another background.
    """
    alpha = resize_pixels(alpha, image.shape[:2])
    a: Float[np.ndarray, "H W 1"] = alpha[..., None] / 255
    colours = 255 - (255 - image.astype(np.float64)) / np.maximum(a, 1 / 255)
    return np.dstack([np.clip(np.round(colours), 0, 255).astype(np.uint8), alpha])


def _decode(image: Image.Image) -> Photo:
    # The raw mode is known only before the pixels are decoded.
    deep_rgb = any("RGB;16" in str(tile) for tile in getattr(image, "tile", ()))
    kind = image.format
    white_is_zero = kind == "TIFF" and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
    image.load()
    upright = ImageOps.exif_transpose(image)
    info = upright.info
    if deep_rgb and isinstance(info.get("transparency"), tuple):
        # Pillow keeps the high byte of 16-bit colours, but not of the transparent one.
        info["transparency"] = tuple(value >> 8 for value in info["transparency"])
    alpha = _alpha(upright)
    rgb = to_srgb(_opaque(upright, kind, white_is_zero), info)
    if alpha is not None:
        rgba = rgb.copy()
        rgba.putalpha(Image.fromarray(alpha))
        rgb = Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgba).convert("RGB")
    return Photo(rgb, alpha)


def _alpha(image: Image.Image) -> UInt8[np.ndarray, "h w"] | None:
    """The alpha channel; None where every pixel is opaque."""
    if not image.has_transparency_data:
        return None
    if image.mode.startswith("I"):
        alpha = np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8)
    else:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return None if (alpha == 255).all() else alpha


def _opaque(image: Image.Image, kind: str | None, white_is_zero: bool) -> Image.Image:
    """The colours alone, 8 bits a channel, in the image's own colour space."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.float64).clip(0, 65535)
        return Image.fromarray(np.round((65535 - values if white_is_zero else values) / 257).astype(np.uint8))
    if mode == "I":
        raise UnusablePhoto("32-bit integers, whose white is unknown; save it with 8 or 16 bits a channel")
    if mode == "F":
        values = np.asarray(image)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise UnusablePhoto(
                f"floats from {values.min():g} to {values.max():g}, expected [0, 1]; save it with 8 or 16 bits"
            )
        return Image.fromarray(np.round(values * 255).astype(np.uint8))
    if mode in ("LA", "La"):
        return image.convert("LA").getchannel("L")
    if mode in ("P", "PA"):
        return image.convert("RGBA").convert("RGB")
    if mode in ("RGBA", "RGBa", "RGBX"):
        return image.convert("RGBA").convert("RGB")
    return image.convert("L") if mode == "1" else image


def centre_square(width: int, height: int) -> Square:
    """The largest square in the middle of a photograph."""
    side = min(width, height)
    return Square((width - side) // 2, (height - side) // 2, side)


def random_square(width: int, height: int, size: int, scale: float, key: str) -> Square:
    """A random square, a function of its arguments alone (SHA-256 of the key), on any machine and in any version.

    Args:
        width: of the photograph, at least `size`.
        height: of the photograph, at least `size`.
        size: smallest side.
        scale: largest side over smallest; the photograph's shorter side also bounds it. Sides are log-uniform.
        key: of the draw.
    """
    digest = hashlib.sha256(key.encode()).digest()
    for_side, for_left, for_top = np.frombuffer(digest, "<u4", count=3) / 2**32  # uniform in [0, 1)
    largest = min(scale * size, width, height)
    side = int(size * (largest / size) ** for_side)
    return Square(int(for_left * (width - side + 1)), int(for_top * (height - side + 1)), side)
