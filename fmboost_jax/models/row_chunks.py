"""Exact convolutions over feature maps that are too large to activate, pad and convolve at once.

A 3×3 convolution needs one row of neighbours above and below. A map is cut into chunks of rows, each with that halo:
the result is that of the whole map, and only one chunk's temporaries exist at a time. Group norms take their
statistics over the whole map first and apply them inside each chunk.

A map is one chunk where it is small, where several devices share its height (the `spatial` axis of the mesh in
`jax.set_mesh`; each device computes its own rows), and in a program for any size (`fmboost_jax.boosting.stablehlo`),
where the number of rows is unknown.

TPUs convolve one image slowly: they put the batch into the sublanes of a register. There each image is cut into strips
of rows, which stay on the batch axis from layer to layer (bench/tpu.md); `window` adds the neighbours' rows to each.
GPUs compute the same maps whole, without the copies that chunks cost.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.export import is_symbolic_dim
from jaxtyping import Array, Float

# Positions of a feature map in one chunk: 512² stays whole; at 256 float32 channels 256 MiB.
CHUNK_POSITIONS = 2**18
# Numbers of strips of an image, the best first; the smallest map's rows must be a multiple.
STRIPS = (32, 16, 8)
# Largest feature map of one image in strips or, on GPUs, whole: 1024² with 256 float32 channels.
STRIPPED_BYTES = 2**30

Activation = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class RowChunk:
    """Rows `start … start + rows − 1` of maps of `height` rows; `start` may be traced.

    In a program for any size, `rows` and `height` are one symbol.
    """

    start: int | Array
    rows: Any
    height: Any

    def of(self, x: Float[Array, "b h w c"]) -> Float[Array, "b r w c"]:
        """The chunk's rows of `x`, without the halo."""
        if self.rows == self.height:
            return x
        return lax.dynamic_slice_in_dim(x, self.start, self.rows, axis=1)

    def window(self, x: Float[Array, "b h w c"], activation: Activation = lambda x: x) -> Float[Array, "b r w c"]:
        """`activation` of the chunk's rows and of one row on either side; zeros outside the map."""
        if self.rows == self.height:
            return _pad_rows(activation(x))
        # Slices clamp at the map's edges: take rows + 2 that exist, pad, then cut the window out.
        first = jnp.clip(self.start - 1, 0, self.height - self.rows - 2)
        padded = _pad_rows(activation(lax.dynamic_slice_in_dim(x, first, self.rows + 2, axis=1)))
        return lax.dynamic_slice_in_dim(padded, self.start - first, self.rows + 2, axis=1)


def _pad_rows(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))


@dataclasses.dataclass(frozen=True)
class RowStrips:
    """All rows of maps whose images are `count` strips each, one after another on the batch axis."""

    count: int

    def of(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Return `x`."""
        return x

    def window(self, x: Float[Array, "n h w c"], activation: Activation = lambda x: x) -> Float[Array, "n r w c"]:
        """`activation` of the strips and of one row on either side; zeros outside the map."""
        y = activation(x)
        # The edges are cut out before they are reshaped: TPUs would make a second map for a reshaped one.
        last, first = (edge.reshape(-1, self.count, *edge.shape[1:]) for edge in (y[:, -1:], y[:, :1]))
        beside = [(0, 0)] * 3
        above = jnp.pad(last[:, :-1], ((0, 0), (1, 0), *beside)).reshape(y[:, :1].shape)
        below = jnp.pad(first[:, 1:], ((0, 0), (0, 1), *beside)).reshape(y[:, :1].shape)
        return jnp.concatenate([above, y, below], axis=1)


def strips_of(x: Float[Array, "b h w c"], scale: int, channels: int) -> int:
    """Number of strips that TPUs cut each image into; 1 for none.

    Args:
        x: the smallest map.
        scale: rows of the largest map per row of `x`.
        channels: of the largest map.
    """
    height, width = x.shape[1:3]
    if not _divisible(height, width):
        return 1
    positions = height * width * scale**2
    if positions < CHUNK_POSITIONS or positions * channels * x.dtype.itemsize > STRIPPED_BYTES:
        return 1
    return next((count for count in STRIPS if height % count == 0), 1)


def _divisible(height: Any, width: Any) -> bool:
    """Whether one device has all rows, and their number is known."""
    shared = jax.sharding.get_abstract_mesh().shape.get("spatial", 1) > 1
    return not (shared or is_symbolic_dim(height) or is_symbolic_dim(width))


def map_row_chunks(
    function: Callable[[RowChunk | RowStrips], Array], x: Float[Array, "b h w c"], scale: int = 1, strips: int = 0
) -> Float[Array, "b H W d"]:
    """Apply `function` to every chunk of a map and concatenate the results along the rows.

    Args:
        function: maps a chunk of r rows to scale·r rows of the result, by the same rule for every chunk.
        x: the map; its shape decides the chunks.
        scale: rows of the result per row of the map.
        strips: strips of an image on the batch axis, which are the chunks, all computed at once; 1: the whole image.
            Default: 0, chunks that are computed one after another.
    """
    if strips > 1:
        return function(RowStrips(strips))
    height, width = x.shape[1:3]
    if strips == 1 or not _divisible(height, width):
        return function(RowChunk(0, height, height))
    rows = max(1, CHUNK_POSITIONS // (width * scale * scale))
    if rows + 2 >= height:
        return function(RowChunk(0, height, height))

    def write(index: Array, result: Array) -> Array:
        # The last chunk moves up to end with the map; the rows that it repeats have the same values again.
        start = jnp.minimum(index * rows, height - rows)
        return lax.dynamic_update_slice_in_dim(result, function(RowChunk(start, rows, height)), start * scale, axis=1)

    block = jax.eval_shape(lambda: function(RowChunk(0, rows, height)))
    # Every row is overwritten. A fill that depends on x keeps XLA from allocating all results before the first use.
    result = jnp.full((block.shape[0], height * scale, *block.shape[2:]), x[0, 0, 0, 0], block.dtype)
    return lax.fori_loop(0, -(-height // rows), write, result)
