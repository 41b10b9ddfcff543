"""Images side by side under labels."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

MARGIN = 4


def grid(rows: list[list[UInt8[np.ndarray, "_ _ 3"]]], labels: list[str]) -> UInt8[np.ndarray, "H W 3"]:
    """Set images in rows, a label over each column; the pixels of smaller ones are repeated, so blocks stay visible."""
    height = max(image.shape[0] for row in rows for image in row)
    size = max(12, min(24, height // 16))
    font = ImageFont.load_default(size)
    head = int(size * 1.6)
    cells = [[_repeat_pixels(image, height) for image in row] for row in rows]
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


def _repeat_pixels(image: UInt8[np.ndarray, "h w 3"], height: int) -> UInt8[np.ndarray, "H W 3"]:
    factor = max(1, height // image.shape[0])
    return np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)
