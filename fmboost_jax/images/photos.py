"""Photographs as a person means them: upright, sRGB, 8 bits, on white; and the square crops that are taken of them.

- EXIF rotation and mirroring are applied.
- An embedded colour profile other than sRGB is converted; CMYK without one is converted by Pillow's plain formula.
- Greyscale becomes RGB; 16-bit greyscale is scaled to 8 bits, not clipped.
- Transparency is composited on white: what lies under it is often black or noise, and pages are white.
- Of an animation, the first frame.
"""

import contextlib
import hashlib
import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps


class UnusablePhoto(ValueError):
    """A photograph that is to be skipped; the message says why."""


class Square(NamedTuple):
    """A square region of a photograph, in pixels."""

    left: int
    top: int
    side: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom), the last two exclusive."""
        return self.left, self.top, self.left + self.side, self.top + self.side


def load_photo(file: io.BufferedIOBase) -> Image.Image:
    """Decode an image file to an upright 8-bit RGB image.

    Raises:
        UnusablePhoto: not an image, a broken or cut one, or one so large that decoding it may exhaust memory.
    """
    try:
        with Image.open(file) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    # A decoder may raise anything over broken bytes: OSError, SyntaxError, struct.error, zlib.error, …
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "not an image, or one of an unknown kind"
        raise UnusablePhoto(reason) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        # 16 bits a pixel, which Pillow's own conversion would clip at 255.
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.round(values.clip(0, 65535) / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if profile and image.mode in ("RGB", "CMYK", "L"):
        # A profile that is broken, or belongs to another mode, is ignored, as viewers do.
        with contextlib.suppress(ImageCms.PyCMSError, OSError):
            return _to_srgb(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    return image.convert("RGB")


def _to_srgb(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    if "sRGB" in ImageCms.getProfileDescription(profile):
        return image.convert("RGB")
    return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")


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
