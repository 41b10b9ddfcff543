"""Photographs, decoded to upright sRGB of 8 bits on white; and square crops of them.

- EXIF rotation and mirroring are applied.
- Colours become sRGB by the file's ICC profile or a PNG's gamma and primaries; CMYK without a profile is converted by
  Pillow's plain formula.
- Greyscale becomes RGB. 16-bit greyscale and floats in [0, 1] are scaled to 8 bits; other floats and 32-bit integers,
  whose white is unknown, are refused.
- Colours are composited on white, because the colour of a transparent pixel is often black or noise. The alpha channel
  is kept beside them.
- An animation is read as its first frame.
"""

import contextlib
import functools
import hashlib
import importlib
import io
import os
import warnings
from collections.abc import Iterator
from typing import IO, NamedTuple, cast

import numpy as np
from jaxtyping import Float, UInt, UInt8, UInt16
from PIL import Image

from fmboost_jax.errors import one_line
from fmboost_jax.images.exif import enlarged_exif, upright
from fmboost_jax.images.profiles import own_space, to_srgb
from fmboost_jax.images.resize import resize_pixels
from fmboost_jax.images.sixteen_bits import read_sixteen_bits

ImageFile = str | os.PathLike | io.BufferedIOBase

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that turn an image by a quarter
_PHOTOMETRIC = 262  # a TIFF tag; 0: white is zero
_DARKEST = 4096  # of 65535: darker images look black


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
        deep: the colours with 16 bits a channel, where they were asked for and the file has them.
        profile: ICC profile of the colours; None: sRGB.
        exif: see `enlarged_exif`.
    """

    rgb: Image.Image
    alpha: UInt8[np.ndarray, "h w"] | None
    deep: UInt16[np.ndarray, "h w 3"] | None = None
    profile: bytes | None = None
    exif: bytes | None = None

    @property
    def pixels(self) -> UInt[np.ndarray, "h w 3"]:
        """The colours as an array, uint16 where they have 16 bits, else uint8."""
        return np.asarray(self.rgb) if self.deep is None else self.deep


def load_photo(
    file: ImageFile, *, keep_metadata: bool = False, keep_place: bool = False, max_pixels: int | None = None
) -> Photo:
    """Decode an image file.

    Args:
        file: its path, or an opened file.
        keep_metadata: also read EXIF and 16 bits a channel, and leave the colours in the file's own space where the
            networks can work in it (`own_space`). Elsewhere they become sRGB of 8 bits, as without this.
        keep_place: read the GPS data of the EXIF, too.
        max_pixels: of the file. Default: twice Pillow's `MAX_IMAGE_PIXELS`, 178,956,970.

    Raises:
        UnusablePhoto: not an image, a damaged one, one whose values have no known range, or one with more pixels.
    """
    try:
        with _pixel_limit(max_pixels):
            with Image.open(cast(IO[bytes], file)) as image:
                photo, stays = _decode(image, keep_metadata)
                if keep_metadata:
                    photo = photo._replace(exif=enlarged_exif(image, place=keep_place))
            return photo._replace(deep=_deep_on_white(file, photo.alpha)) if stays else photo
    except UnusablePhoto:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnusablePhoto("not an image, or one of an unknown kind") from error
    except Image.DecompressionBombError as error:
        raise UnusablePhoto(f"{one_line(error).rstrip('.')}; a larger limit of megapixels allows it") from error
    # A decoder may raise anything over broken bytes: OSError, SyntaxError, struct.error, zlib.error, …
    except Exception as error:
        raise UnusablePhoto(one_line(error)) from error


def photo_from_pillow(image: Image.Image) -> Photo:
    """Convert an image that Pillow has opened or made, as `load_photo` does.

    Raises:
        UnusablePhoto: as for `load_photo`.
    """
    try:
        return _decode(image, keep_space=False)[0]
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


def with_alpha(image: UInt[np.ndarray, "H W 3"], alpha: UInt8[np.ndarray, "h w"]) -> UInt[np.ndarray, "H W 4"]:
    """Give an image an alpha channel.

    Args:
        image: colours composited on white, C = a·F + (1 − a)·white, as photographs are loaded; uint8 or uint16.
        alpha: of any size; resized bicubically to the image's.

    Returns:
        RGBA with the colours F, so that no white rim shows on another background.
    """
    alpha, largest = resize_pixels(alpha, image.shape[:2]), np.iinfo(image.dtype).max
    a: Float[np.ndarray, "H W 1"] = alpha[..., None] / 255
    colours = largest - (largest - image.astype(np.float64)) / np.maximum(a, 1 / 255)
    colours = np.clip(np.round(colours), 0, largest).astype(image.dtype)
    return np.dstack([colours, alpha.astype(image.dtype) * (largest // 255)])


@contextlib.contextmanager
def _pixel_limit(pixels: int | None) -> Iterator[None]:
    """Set Pillow's limit of pixels; None: its default."""
    if pixels is None:
        yield
        return
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max(pixels // 2, 1)  # Pillow warns there and refuses twice as many.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _decode(image: Image.Image, keep_space: bool) -> tuple[Photo, bool]:
    """The photograph, and whether its colours are in the file's own space."""
    # The raw mode is known only before the pixels are decoded.
    deep_rgb = any("RGB;16" in str(tile) for tile in getattr(image, "tile", ()))
    kind = image.format
    white_is_zero = kind == "TIFF" and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
    image.load()
    turned = upright(image)
    info = turned.info
    if deep_rgb and isinstance(info.get("transparency"), tuple):
        # Pillow keeps the high byte of 16-bit colours, but not of the transparent one.
        info["transparency"] = tuple(value >> 8 for value in info["transparency"])
    alpha, opaque = _alpha(turned), _opaque(turned, kind, white_is_zero)
    stays, profile = own_space(opaque, info) if keep_space else (False, None)
    rgb = opaque.convert("RGB") if stays else to_srgb(opaque, info)
    if alpha is not None:
        rgba = rgb.copy()
        rgba.putalpha(Image.fromarray(alpha))
        rgb = Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgba).convert("RGB")
    return Photo(rgb, alpha, profile=profile if stays else None), stays


def _deep_on_white(file: ImageFile, alpha: UInt8[np.ndarray, "h w"] | None) -> UInt16[np.ndarray, "h w 3"] | None:
    """The colours of 16 bits on white; None where there are none, or nothing but black."""
    deep = read_sixteen_bits(file)
    if deep is None or deep.max() < _DARKEST:
        return None
    if alpha is None:
        return deep
    opaque = alpha[..., None] / np.float32(255)
    return np.round(opaque * deep + (1 - opaque) * 65535).astype(np.uint16)


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
