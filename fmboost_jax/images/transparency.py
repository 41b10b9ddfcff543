"""Transparency of photographs: resized beside the boosted colours, never boosted itself."""

import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps


def load_alpha(file: io.BufferedIOBase) -> UInt8[np.ndarray, "h w"] | None:
    """The alpha channel of an image file, upright; None where it has no transparency, or none anywhere."""
    with Image.open(file) as image:
        image = ImageOps.exif_transpose(image)
        if not image.has_transparency_data:
            return None
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return None if (alpha == 255).all() else alpha


def with_alpha(image: UInt8[np.ndarray, "H W 3"], alpha: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "H W 4"]:
    """Give an image its transparency back.

    Args:
        image: colours composited on white, C = a·F + (1 − a)·white, as photographs are loaded.
        alpha: of any size; resized bicubically to the image's.

    Returns:
        RGBA with the colours F, so that no white rim shows on another background.
    """
    height, width = image.shape[:2]
    alpha = np.asarray(Image.fromarray(alpha).resize((width, height), Image.Resampling.BICUBIC))
    a: Float[np.ndarray, "H W 1"] = alpha[..., None] / 255
    colours = 255 - (255 - image.astype(np.float64)) / np.maximum(a, 1 / 255)
    return np.dstack([np.clip(np.round(colours), 0, 255).astype(np.uint8), alpha])
