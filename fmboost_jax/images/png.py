"""PNG files, written atomically, with the settings that produced them in their metadata."""

import json
import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt, UInt8, UInt16
from PIL import Image, PngImagePlugin

from fmboost_jax.files import atomic_file

SETTINGS = "fmboost"
_ROWS = 64  # filtered and compressed at once
_LEVEL = 4  # of zlib: less than half the time of its default, 6, for files that are a little larger


def write_png(
    path: str | os.PathLike,
    image: UInt[np.ndarray, "h w c"],
    settings: dict | None = None,
    *,
    profile: bytes | None = None,
    exif: bytes | None = None,
) -> None:
    """Write a PNG of 3 channels, or 4 with alpha; the settings go into its text chunk `fmboost` as JSON.

    The same arguments give the same bytes. A failure leaves the old file or none, and no temporary file.

    Args:
        path: of the file.
        image: uint8, or uint16 for 16 bits a channel.
        settings: settings that produced it.
        profile: ICC profile of its colours; None: sRGB, without a profile.
        exif: TIFF structure of its EXIF data.

    Raises:
        OSError: the file cannot be written.
    """
    text = None if settings is None else json.dumps(settings, sort_keys=True)
    with atomic_file(path) as file:
        if image.dtype == np.uint16:
            _write_sixteen_bits(file, image, text, profile, exif)
            return
        metadata = PngImagePlugin.PngInfo()
        if text is not None:
            metadata.add_text(SETTINGS, text)
        kept = {name: value for name, value in (("icc_profile", profile), ("exif", exif)) if value is not None}
        Image.fromarray(image).save(file, "PNG", pnginfo=metadata, compress_level=_LEVEL, **kept)


def read_settings(path: str | os.PathLike) -> dict | None:
    """Read the settings that `write_png` put into a PNG; None for a file without them, or no such file."""
    try:
        with Image.open(path) as image:
            settings = json.loads(getattr(image, "text", {})[SETTINGS])
    # A decoder may raise anything over broken bytes.
    except Exception:
        return None
    return settings if isinstance(settings, dict) else None


def _write_sixteen_bits(
    file: BinaryIO, image: UInt16[np.ndarray, "h w c"], text: str | None, profile: bytes | None, exif: bytes | None
) -> None:
    """Write the chunks, which Pillow writes for 8 bits only (PNG specification, third edition, section 11)."""

    def chunk(name: bytes, data: bytes) -> None:
        file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))

    height, width, channels = image.shape
    file.write(b"\x89PNG\r\n\x1a\n")
    chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2 if channels == 3 else 6, 0, 0, 0))
    if profile is not None:
        chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile))
    if text is not None:
        chunk(b"tEXt", SETTINGS.encode() + b"\0" + text.encode("ascii"))
    if exif is not None:
        chunk(b"eXIf", exif)
    compressor = zlib.compressobj(_LEVEL)
    for rows in _filtered(image):
        if data := compressor.compress(rows.tobytes()):
            chunk(b"IDAT", data)
    chunk(b"IDAT", compressor.flush())
    chunk(b"IEND", b"")


def _filtered(image: UInt16[np.ndarray, "h w c"]) -> Iterator[UInt8[np.ndarray, "rows bytes"]]:
    """Rows of bytes, each as its difference to Paeth's prediction (section 9.4), some rows at a time."""
    height, width, channels = image.shape
    pixel = 2 * channels
    above = np.zeros((1, pixel + width * pixel), np.int16)
    for first in range(0, height, _ROWS):
        part = image[first : first + _ROWS]
        rows = np.zeros((len(part) + 1, pixel + width * pixel), np.int16)
        rows[0] = above
        rows[1:, pixel:] = part.astype(">u2").reshape(len(part), -1).view(np.uint8)
        left, up, corner = rows[1:, :-pixel], rows[:-1, pixel:], rows[:-1, :-pixel]
        to_left, to_up, to_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
        nearer = np.where(to_up <= to_corner, up, corner)
        prediction = np.where((to_left <= to_up) & (to_left <= to_corner), left, nearer)
        filtered = np.full((len(part), 1 + width * pixel), 4, np.uint8)
        filtered[:, 1:] = rows[1:, pixel:] - prediction
        yield filtered
        above = rows[-1:]
