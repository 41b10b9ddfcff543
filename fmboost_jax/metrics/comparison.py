"""A photograph beside what is left of it once it is shrunk and enlarged again."""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fmboost_jax.images.value_range import to_float
from fmboost_jax.metrics.images import gradient_energy, psnr, ssim

DETAIL = 4


def compare(enlarge: Callable, factor: int, photograph: UInt8[np.ndarray, "h w 3"]):
    """Shrink a photograph and enlarge it again.

    Args:
        enlarge: uint8 images (1, h, w, 3) → `factor` times as large.
        factor: by how much.
        photograph: the original.

    Returns:
        The pictures low-res, bilinear, boosted and original by name; PSNR of bilinear and boosted, then their SSIM.
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


def details(pictures: list[UInt8[np.ndarray, "_ _ 3"]]) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """The quarter of each picture's sides where the last one, the original, holds most detail."""
    height, width = (side // DETAIL for side in pictures[-1].shape[:2])
    corners = [(top, left) for top in range(0, DETAIL * height, height) for left in range(0, DETAIL * width, width)]
    original = to_float(pictures[-1][None])
    patches = [original[:, top : top + height, left : left + width] for top, left in corners]
    top, left = corners[int(np.argmax([gradient_energy(patch)[0] for patch in patches]))]
    cut = []
    for picture in pictures:
        scale = pictures[-1].shape[0] // picture.shape[0]
        cut.append(picture[top // scale : (top + height) // scale, left // scale : (left + width) // scale])
    return cut
