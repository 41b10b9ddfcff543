"""Large images in overlapping tiles of one size: one compiled program, and memory that does not grow with the image."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Int, UInt


def map_tiles(
    function: Callable[[UInt[np.ndarray, "b t t 3"], Int[np.ndarray, "b 2"]], UInt[np.ndarray, "b T T 3"]],
    image: UInt[np.ndarray, "h w 3"],
    *,
    factor: int,
    tile: int = 256,
    overlap: int = 32,
    align: int = 1,
    batch_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> UInt[np.ndarray, "H W 3"]:
    """Enlarge an image tile by tile and blend the tiles linearly where they overlap.

    The function sees batches of exactly `batch_size` tiles of `tile` × `tile` pixels, whatever the image's size: a
    smaller image is mirrored at its edges, and a batch filled with copies of its last tile. Beside the image and the
    result, one row of enlarged tiles is in memory, in float32.

    Args:
        function: (tiles, their upper left corners in the image) → the same tiles, `factor` times as high and wide.
        image: of any size; uint8 or uint16, as the result.
        factor: enlargement of the function.
        tile: side of a tile in pixels of the image.
        overlap: pixels that neighbours share at least, fewer than `tile`.
        align: rows and columns of the corners are multiples of this. Default: 1.
        batch_size: tiles in one call.
        progress: called with the number of finished tiles and of all tiles after every batch.

    Raises:
        ValueError: `overlap` is not smaller than `tile`, or `tile` is no multiple of `align`.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap must be 0 or more and less than the tile's {tile}, found {overlap}")
    if tile % align:
        raise ValueError(f"tile must be a multiple of {align}, found {tile}")
    height, width = image.shape[:2]
    down, right = (max(tile - side, -side % align) for side in (height, width))
    image = np.pad(image, ((0, down), (0, right), (0, 0)), mode="symmetric")
    tops, lefts = (tile_starts(side, tile, overlap, align) for side in image.shape[:2])
    across = blend_weights(lefts, image.shape[1], tile, overlap, factor)
    down = blend_weights(tops, image.shape[0], tile, overlap, factor)
    result = np.empty((image.shape[0] * factor, image.shape[1] * factor, 3), image.dtype)
    # Rows from `finished` on lack the contribution of tiles below; `band` begins at that row.
    finished, band = 0, np.zeros((tile * factor, result.shape[1], 3), np.float32)
    done = 0
    for row, top in enumerate(tops):
        offset = top * factor - finished
        result[finished : top * factor] = _rounded(band[:offset], image.dtype)
        band = np.concatenate([band[offset:], np.zeros((offset, *band.shape[1:]), np.float32)])
        finished = top * factor
        strip = image[top : top + tile]
        for first, enlarged in _enlarged(function, strip, top, lefts, tile, batch_size):
            for column, pixels in enumerate(enlarged, first):
                left = lefts[column] * factor
                weight = down[row][:, None, None] * across[column][None, :, None]
                band[:, left : left + tile * factor] += weight * pixels
            done += len(enlarged)
            if progress is not None:
                progress(done, len(tops) * len(lefts))
    result[finished:] = _rounded(band, image.dtype)
    return result[: height * factor, : width * factor]


def tile_starts(side: int, tile: int, overlap: int, align: int = 1) -> list[int]:
    """First pixels of the fewest tiles that cover a side, spread evenly, `overlap` or more shared by neighbours.

    Args:
        side: a multiple of `align`.
        tile: a multiple of `align`.
        overlap: less than `tile`.
        align: all starts are multiples of this. Where the tile is not longer than overlap and align together, the
            starts are `align` apart and neighbours share a little less than `overlap`.
    """
    if side <= tile:
        return [0]
    length, stride = (side - tile) // align, max((tile - overlap) // align, 1)
    gaps = math.ceil(length / stride)
    return [round(number * length / gaps) * align for number in range(gaps + 1)]


def blend_weights(
    starts: list[int], side: int, tile: int, overlap: int, factor: int
) -> Float[np.ndarray, "tiles enlarged"]:
    """Weights of each tile along one axis, after enlargement: a ramp where it meets a neighbour; all tiles sum to 1.

    Args:
        starts: first positions of the tiles.
        side: positions to cover. A tile is shorter where `side` is less than `tile`.
        tile: positions of a tile.
        overlap: length of the ramps in positions.
        factor: enlargement.
    """
    length = min(tile, side) * factor
    ramp = np.minimum(1.0, (np.arange(length) + 0.5) / max(overlap * factor, 1))
    weights, total = np.ones((len(starts), length)), np.zeros(side * factor)
    for weight, start in zip(weights, starts, strict=True):
        if start > 0:
            weight *= ramp
        if start + tile < side:
            weight *= ramp[::-1]
        total[start * factor : start * factor + length] += weight
    for weight, start in zip(weights, starts, strict=True):
        weight /= total[start * factor : start * factor + length]
    return weights.astype(np.float32)


def _enlarged(function, strip, top, lefts, tile, batch_size) -> Iterator[tuple[int, UInt[np.ndarray, "n T T 3"]]]:
    """The enlarged tiles of one row of tiles, in batches, each with the number of its first tile."""
    for first in range(0, len(lefts), batch_size):
        columns = lefts[first : first + batch_size]
        padded = columns + columns[-1:] * (batch_size - len(columns))
        tiles = np.stack([strip[:, left : left + tile] for left in padded])
        yield first, function(tiles, np.array([(top, left) for left in padded]))[: len(columns)]


def _rounded(values: Float[np.ndarray, "h w 3"], dtype: np.dtype) -> UInt[np.ndarray, "h w 3"]:
    return np.clip(np.round(values), 0, np.iinfo(dtype).max).astype(dtype)
