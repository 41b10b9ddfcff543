"""PNG files: written whole or not at all, with their settings in the metadata, and grids to compare pictures by."""

import json
import os

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

MARGIN = 4


def to_uint8(image: Float[np.ndarray, "*b h w c"]) -> UInt8[np.ndarray, "*b h w c"]:
    """[−1, 1] → 0…255, rounded; values outside are clipped."""
    return np.clip(np.round((np.asarray(image, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def to_float(image: UInt8[np.ndarray, "*b h w c"]) -> Float[np.ndarray, "*b h w c"]:
    """0…255 → [−1, 1] in float32."""
    return np.asarray(image, np.float32) / 127.5 - 1


def write_png(path: str, image: UInt8[np.ndarray, "h w c"], settings: dict | None = None) -> None:
    """Write a PNG of 3 channels (or 4, with alpha); `settings` go into its text chunk `fmboost` as JSON.

    The same arguments give the same bytes; a crash leaves the old file or none.
    """
    metadata = PngImagePlugin.PngInfo()
    if settings is not None:
        metadata.add_text("fmboost", json.dumps(settings, sort_keys=True))
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    partial = f"{path}.{os.getpid()}.tmp"
    with open(partial, "wb") as file:
        Image.fromarray(image).save(file, "PNG", pnginfo=metadata)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_settings(path: str) -> dict | None:
    """The settings that `write_png` put into a PNG; None where there is no such file or it has none."""
    try:
        with Image.open(path) as image:
            return json.loads(image.text["fmboost"])
    except (OSError, AttributeError, KeyError, ValueError):
        return None


def grid(rows: list[list[UInt8[np.ndarray, "_ _ 3"]]], labels: list[str]) -> UInt8[np.ndarray, "H W 3"]:
    """Pictures in rows, a label over each column; smaller ones are enlarged pixel by pixel, so blocks stay visible."""
    height = max(picture.shape[0] for row in rows for picture in row)
    font = ImageFont.load_default(max(12, min(24, height // 16)))
    head = int(font.size * 1.6)
    cells = [[_enlarge(picture, height) for picture in row] for row in rows]
    widths = [max(row[column].shape[1] for row in cells) for column in range(len(labels))]
    canvas = Image.new("RGB", (sum(widths) + MARGIN * (len(widths) + 1), head + (height + MARGIN) * len(rows)), "white")
    draw = ImageDraw.Draw(canvas)
    left = MARGIN
    for column, label in enumerate(labels):
        draw.text((left, head // 2), label, fill="black", font=font, anchor="lm")
        for index, row in enumerate(cells):
            canvas.paste(Image.fromarray(row[column]), (left, head + index * (height + MARGIN)))
        left += widths[column] + MARGIN
    return np.asarray(canvas)


def _enlarge(picture: UInt8[np.ndarray, "h w 3"], height: int) -> UInt8[np.ndarray, "H W 3"]:
    factor = max(1, height // picture.shape[0])
    return np.repeat(np.repeat(picture, factor, axis=0), factor, axis=1)
