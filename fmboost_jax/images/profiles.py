"""Colours of any space to sRGB: ICC profiles, the gamma and primaries of a PNG, CIE Lab."""

import contextlib
import functools
import io
from typing import Any, cast

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageCms

# Header signatures of the ICC colour spaces that each mode of Pillow can be in (ICC.1:2022, table 19).
SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab "}
# 8-bit transforms of one sRGB profile to another differ by one or two levels of 255.
SRGB_TOLERANCE = 2
GREY_TOLERANCE = 32  # levels of 255; ProPhoto RGB's 128 is sRGB's 144
SRGB_GAMMA = 1 / 2.2
# White, red, green, blue: CIE x and y (IEC 61966-2-1), as a PNG's cHRM chunk lists them.
SRGB_CHROMATICITIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)


def to_srgb(image: Image.Image, info: dict) -> Image.Image:
    """Convert an image without alpha to sRGB.

    An ICC profile is applied in the image's own mode. A profile that is damaged or belongs to another mode is ignored,
    as viewers do. Without a profile, the chunks gAMA and cHRM of a PNG are applied if it has no chunk sRGB.

    Args:
        image: of mode RGB, L, CMYK, LAB or another that Pillow converts to RGB.
        info: Pillow's `Image.info` of the file.

    Returns:
        An image of mode RGB.
    """
    if info.get("icc_profile"):
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
            return _apply_profile(image, info["icc_profile"])
    if image.mode == "LAB":
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        return _transformed(image, lab)
    rgb = image.convert("RGB")
    if info.get("icc_profile") is None and "srgb" not in info and info.get("gamma"):
        return _apply_gamma(rgb, float(info["gamma"]), info.get("chromaticity"))
    return rgb


def own_space(image: Image.Image, info: dict) -> tuple[bool, bytes | None]:
    """Whether an RGB image can be enlarged as it is, in its own colour space, and the profile that names the space.

    It can where a grey of half the range looks about as it does in sRGB, as in Adobe RGB, Display P3 and ProPhoto RGB.
    Linear light cannot: the networks were not trained on images so dark.

    Args:
        image: without alpha.
        info: Pillow's `Image.info` of the file.
    """
    if image.mode != "RGB":
        return image.mode == "L" and _unchanged(image.mode, info), None
    profile = info.get("icc_profile")
    grey = np.asarray(to_srgb(Image.new("RGB", (1, 1), (128, 128, 128)), info), int)
    if not profile or _unchanged("RGB", info):
        return _unchanged("RGB", info), profile if profile and _is_rgb(profile) else None
    return bool(np.abs(grey - 128).max() <= GREY_TOLERANCE), profile


def _unchanged(mode: str, info: dict) -> bool:
    probe = _probe().convert(mode)
    difference = np.asarray(to_srgb(probe, info), int) - np.asarray(probe.convert("RGB"), int)
    return bool(np.abs(difference).max() <= SRGB_TOLERANCE)


def _is_rgb(profile: bytes) -> bool:
    try:
        return cast(Any, ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile).xcolor_space == "RGB "
    except (ImageCms.PyCMSError, OSError, ValueError):
        return False


def _apply_profile(image: Image.Image, content: bytes) -> Image.Image:
    profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
    if SPACES.get(image.mode) != cast(Any, profile.profile).xcolor_space:
        return image.convert("RGB")
    if image.mode in ("RGB", "L"):
        probe = _probe().convert(image.mode)
        difference = np.asarray(_transformed(probe, profile), int) - np.asarray(probe.convert("RGB"), int)
        if np.abs(difference).max() <= SRGB_TOLERANCE:
            return image.convert("RGB")
    return _transformed(image, profile)


def _transformed(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    converted = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
    assert converted is not None  # None is for in-place conversion
    return converted


@functools.cache
def _probe() -> Image.Image:
    """A lattice of 9³ colours and all greys, by whose change a profile is compared with sRGB."""
    levels = np.linspace(0, 255, 9).round()
    lattice = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    greys = np.repeat(np.arange(256)[:, None], 3, axis=1)
    return Image.fromarray(np.concatenate([lattice, greys])[None].astype(np.uint8))


def _apply_gamma(image: Image.Image, gamma: float, chromaticities: tuple[float, ...] | None) -> Image.Image:
    """Convert samples light^gamma of given primaries to sRGB (PNG specification, third edition, 13.13 and 13.14)."""
    own_primaries = (
        chromaticities is not None
        and len(chromaticities) == 8
        and np.abs(np.subtract(chromaticities, SRGB_CHROMATICITIES)).max() > 0.005
    )
    if abs(gamma / SRGB_GAMMA - 1) < 0.05 and not own_primaries:
        return image
    samples = np.arange(256) / 255
    light = samples ** (1 / gamma) if abs(gamma / SRGB_GAMMA - 1) >= 0.05 else _srgb_to_linear(samples)
    if not own_primaries:
        return image.point(_encode(light).tolist() * 3)
    assert chromaticities is not None
    try:
        matrix = np.linalg.solve(_rgb_to_xyz(SRGB_CHROMATICITIES), _rgb_to_xyz(chromaticities))
    except (np.linalg.LinAlgError, ZeroDivisionError):
        return image
    linear = light.astype(np.float32)[np.asarray(image)]
    return Image.fromarray(_encode(linear @ matrix.T.astype(np.float32)))


def _rgb_to_xyz(chromaticities: tuple[float, ...]) -> Float[np.ndarray, "3 3"]:
    """The matrix from linear RGB to XYZ whose white has Y = 1 (SMPTE RP 177), relative to that white."""
    xy = np.reshape(chromaticities, (4, 2)).astype(float)
    xyz = np.stack([xy[:, 0] / xy[:, 1], np.ones(4), (1 - xy.sum(1)) / xy[:, 1]], axis=1)
    white, primaries = xyz[0], xyz[1:].T
    # Scaled by its white (von Kries in XYZ), so that white stays white between spaces of different white points.
    return primaries * np.linalg.solve(primaries, white) / white[:, None]


def _srgb_to_linear(samples: np.ndarray) -> np.ndarray:
    return np.where(samples <= 0.04045, samples / 12.92, ((samples + 0.055) / 1.055) ** 2.4)


def _encode(light: np.ndarray) -> UInt8[np.ndarray, "..."]:
    """Linear light in [0, 1] to 8-bit sRGB (IEC 61966-2-1); values outside are clipped."""
    light = light.clip(0, 1)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(encoded * 255).astype(np.uint8)
