"""Images of any sizes through programs of a few shapes: large ones in tiles, small ones in squares of a few sizes."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int, UInt

from fmboost_jax.images.tiles import map_tiles

# Squares of tile, tile / 2, tile / 4 and tile / 8 pixels.
SQUARES = 4
# (images of one size, their seeds, upper left corners of tiles or None) → the images, enlarged.
Enlarge = Callable[
    [UInt[np.ndarray, "b h w 3"], list[int], Int[np.ndarray, "b 2"] | None], UInt[np.ndarray, "b *n H W 3"]
]


def enlarge_images(
    enlarge: Enlarge,
    images: Sequence[UInt[np.ndarray, "_ _ 3"]],
    seeds: Sequence[int],
    *,
    factor: int,
    multiple: tuple[int, int],
    tile: int,
    tiles_at_once: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[UInt[np.ndarray, "*n _ _ 3"]]:
    """Enlarge images of any sizes; those that share a shape and a type make one batch.

    Args:
        enlarge: see `Enlarge`.
        images: of any sizes; uint8 or uint16, as their results.
        seeds: one an image.
        factor: enlargement of `enlarge`.
        multiple: required multiples of height and width; with tiles, two equal numbers.
        tile: side of a tile, rounded up to the multiple. 0: every image whole, padded by repeating its edge.
        tiles_at_once: tiles in one call.
        progress: called with the number of finished tiles and of all tiles of a large image.

    Returns:
        One an image, `factor` times as high and wide.
    """
    groups: dict[tuple[tuple[int, int] | None, np.dtype], list[int]] = {}
    for index, image in enumerate(images):
        height, width = image.shape[:2]
        if tile:
            square = square_for(height, width, tile, multiple[0])
            shape = None if square is None else (square, square)
        else:
            shape = height + -height % multiple[0], width + -width % multiple[1]
        groups.setdefault((shape, image.dtype), []).append(index)
    results: list[np.ndarray] = [np.empty(0)] * len(images)
    for (shape, _), group in groups.items():
        if shape is None:
            for index in group:
                seed = seeds[index]
                results[index] = map_tiles(
                    lambda tiles, corners, seed=seed: enlarge(tiles, [seed] * len(tiles), corners),
                    images[index],
                    factor=factor,
                    tile=tile + -tile % multiple[0],
                    overlap=tile // 8,
                    align=multiple[0],
                    batch_size=tiles_at_once,
                    progress=progress,
                )
            continue
        # Mirrored images keep their statistics, which a repeated edge does not.
        batch = np.stack([_padded(images[index], shape, "symmetric" if tile else "edge") for index in group])
        # A single tile at the origin: squares of a tile's size share the tiles' program.
        corners = np.zeros((len(group), 2), int) if tile else None
        for index, large in zip(group, enlarge(batch, [seeds[index] for index in group], corners), strict=True):
            height, width = images[index].shape[:2]
            results[index] = large[..., : height * factor, : width * factor, :]
    return results


def square_for(height: int, width: int, tile: int, multiple: int) -> int | None:
    """Return the side of the smallest square that holds an image; None if it is larger than a tile."""
    sides = sorted({side + -side % multiple for side in (-(-tile // 2**level) for level in range(SQUARES))})
    return next((side for side in sides if max(height, width) <= side), None)


def _padded(image: UInt[np.ndarray, "h w 3"], shape: tuple[int, int], mode) -> UInt[np.ndarray, "H W 3"]:
    return np.pad(image, ((0, shape[0] - image.shape[0]), (0, shape[1] - image.shape[1]), (0, 0)), mode=mode)
