"""Colours of 16 bits, of which Pillow keeps the high byte: PNG and TIFF files are decoded once for each byte."""

import io
import os
import sys
from typing import IO, cast

import numpy as np
from jaxtyping import UInt16
from PIL import Image

from fmboost_jax.images.exif import upright

_PHOTOMETRIC = 262  # a TIFF tag; 0: white is zero
# Raw modes, such as "RGB;16B", end with the order of the bytes: big, little, or the machine's own.
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_COLOURS = ("RGB", "RGBA", "RGBX")


def read_sixteen_bits(file: str | os.PathLike | io.BufferedIOBase) -> UInt16[np.ndarray, "h w 3"] | None:
    """Read the upright colours of an image file, without alpha, in its own colour space; None for other kinds.

    Raises:
        Exception: of any kind, as Pillow's decoders do over broken bytes.
    """
    with Image.open(cast(IO[bytes], file)) as image:
        if image.mode.startswith("I;16"):
            white_is_zero = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
            grey = np.asarray(upright(image)).astype(np.uint16)
            return np.repeat((65535 - grey if white_is_zero else grey)[..., None], 3, axis=-1)
        tiles = getattr(image, "tile", [])
        swapped = [other for tile in tiles for other in _in_other_order(tile)]
        if not tiles or len(swapped) < len(tiles):
            return None
        high = _pixels(image)
    with Image.open(cast(IO[bytes], file)) as image:
        image.tile = swapped
        return high.astype(np.uint16) << 8 | _pixels(image)


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(upright(image))[..., :3]


def _in_other_order(tile) -> list:
    """A part of an image file, as Pillow lists them, for decoding with the other order of bytes; [] for other kinds."""
    raw, *rest = [tile.args] if isinstance(tile.args, str) else tile.args
    mode, _, order = str(raw).partition(";16")
    if mode not in _COLOURS or order not in _OTHER_ORDER:
        return []
    raw = f"{mode};16{_OTHER_ORDER[order]}"
    return [tile._replace(args=raw if isinstance(tile.args, str) else (raw, *rest))]
