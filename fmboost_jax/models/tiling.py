"""Decoding in overlapping tiles, for a device that cannot hold the whole image.

Not exact: the middle's attention and every group norm see a tile instead of the whole image, so brightness and
contrast shift a little from tile to tile, and blending only hides the seams. `AutoencoderKL.decode` needs no tiles on
a machine that holds the activations; it is exact there. `bench/decode.py seams` measures the difference.
"""

import itertools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fmboost_jax.errors import InputError
from fmboost_jax.images.tiles import blend_weights


def decode_tiled(
    decode: Callable[[Array], Array],
    latent: Float[Array | np.ndarray, "b h w c"],
    *,
    tile: int = 64,
    overlap: int = 16,
) -> Float[np.ndarray, "b H W i"]:
    """Decode a latent tile by tile and assemble the image on the host.

    Args:
        decode: from a latent to its image, such as `FirstStage.decode`; called with one size only, so that it
            compiles once.
        latent: scaled or raw, as `decode` expects it.
        tile: height and width of a tile in latent positions. Default: 64.
        overlap: latent positions that neighbours share at least, blended linearly. Default: 16.

    Raises:
        InputError: an overlap below 0, or not smaller than the tile.
    """
    if not 0 <= overlap < tile:
        raise InputError(f"overlap of tiles must be at least 0 and less than the tile's {tile}, found {overlap}")
    batch, height, width, _ = latent.shape
    rows, columns = _starts(height, tile, overlap), _starts(width, tile, overlap)
    first = np.asarray(decode(jnp.asarray(latent[:, :tile, :tile])))
    factor = first.shape[1] // min(tile, height)
    result = np.zeros((batch, height * factor, width * factor, first.shape[-1]), np.float32)
    row_weights = blend_weights(rows, height, tile, overlap, factor)
    column_weights = blend_weights(columns, width, tile, overlap, factor)
    for (i, top), (j, left) in itertools.product(enumerate(rows), enumerate(columns)):
        part = jnp.asarray(latent[:, top : top + tile, left : left + tile])
        image = np.asarray(decode(part)) if i or j else first
        weight = row_weights[i][:, None, None] * column_weights[j][None, :, None]
        y, x = top * factor, left * factor
        result[:, y : y + image.shape[1], x : x + image.shape[2]] += image * weight
    return result


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """First positions of the tiles; the last tile ends with the latent."""
    last = max(size - tile, 0)
    return [*range(0, last, tile - overlap), last]
