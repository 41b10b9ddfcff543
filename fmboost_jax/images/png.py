"""PNG files that are written whole or not at all, with the settings that made them in their metadata."""

import json
import os

import numpy as np
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin

from fmboost_jax.files import atomic_file

SETTINGS = "fmboost"


def write_png(path: str | os.PathLike, image: UInt8[np.ndarray, "h w c"], settings: dict | None = None) -> None:
    """Write a PNG of 3 channels, or 4 with alpha; the settings go into its text chunk `fmboost` as JSON.

    The same arguments give the same bytes. A failure leaves the old file or none, and no temporary file.

    Raises:
        OSError: the file cannot be written.
    """
    metadata = PngImagePlugin.PngInfo()
    if settings is not None:
        metadata.add_text(SETTINGS, json.dumps(settings, sort_keys=True))
    with atomic_file(path) as file:
        Image.fromarray(image).save(file, "PNG", pnginfo=metadata)


def read_settings(path: str | os.PathLike) -> dict | None:
    """Read the settings that `write_png` put into a PNG; None for a file without them, or no such file."""
    try:
        with Image.open(path) as image:
            settings = json.loads(getattr(image, "text", {})[SETTINGS])
    # A decoder may raise anything over broken bytes.
    except Exception:
        return None
    return settings if isinstance(settings, dict) else None
