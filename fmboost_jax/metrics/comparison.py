"""Comparison of a photograph with its enlarged low-res image."""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fmboost_jax.images.value_range import to_float
from fmboost_jax.metrics.images import gradient_energy, psnr, ssim

DETAIL = 4


def compare(enlarge: Callable, factor: int, photograph: UInt8[np.ndarray, "h w 3"]):
    """Shrink a photograph, and enlarge the result.

    Args:
        enlarge: function from uint8 images (1, h, w, 3) to images `factor` times as large.
        factor: ratio of the sizes.
        photograph: the original.

    Returns:
        The images "low-res", "bilinear", "boosted" and "original"; and a list of the PSNR of bilinear and boosted, and
        the SSIM of both.
    """
    height, width = (side - side % factor for side in photograph.shape[:2])
    original = photograph[:height, :width]
    low = np.asarray(Image.fromarray(original).resize((width // factor, height // factor), Image.Resampling.BOX))
    bilinear = np.asarray(Image.fromarray(low).resize((width, height), Image.Resampling.BILINEAR))
    boosted = enlarge(low[None])[0]
    truth = to_float(original[None])
    values = [
        float(metric(to_float(image[None]), truth)[0]) for metric in (psnr, ssim) for image in (bilinear, boosted)
    ]
    return {"low-res": low, "bilinear": bilinear, "boosted": boosted, "original": original}, values


def details(images: list[UInt8[np.ndarray, "_ _ 3"]]) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Return the part of each image, a quarter of its sides, where the last one, the original, has most detail."""
    height, width = (side // DETAIL for side in images[-1].shape[:2])
    corners = [(top, left) for top in range(0, DETAIL * height, height) for left in range(0, DETAIL * width, width)]
    original = to_float(images[-1][None])
    patches = [original[:, top : top + height, left : left + width] for top, left in corners]
    top, left = corners[int(np.argmax([gradient_energy(patch)[0] for patch in patches]))]
    parts = []
    for image in images:
        scale = images[-1].shape[0] // image.shape[0]
        parts.append(image[top // scale : (top + height) // scale, left // scale : (left + width) // scale])
    return parts
