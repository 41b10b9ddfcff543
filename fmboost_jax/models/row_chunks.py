"""Exact convolutions over feature maps that are too large to activate, pad and convolve at once.

A 3×3 convolution needs one row of neighbours above and below. A map is cut into chunks of rows, each with that halo:
the result is that of the whole map, and only one chunk's temporaries exist at a time. Group norms take their
statistics over the whole map first and apply them inside each chunk.

A map is one chunk where it is small, where several devices share its height (the `spatial` axis of the mesh in
`jax.set_mesh`; each device computes its own rows), and in a program for any size (`fmboost_jax.boosting.stablehlo`),
where the number of rows is unknown.
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


def map_row_chunks(
    function: Callable[[RowChunk], Array], x: Float[Array, "b h w c"], scale: int = 1
) -> Float[Array, "b H W d"]:
    """Apply `function` to every chunk of a map and concatenate the results along the rows.

    Args:
        function: maps a chunk of r rows to scale·r rows of the result, by the same rule for every chunk.
        x: the map; its shape decides the chunks.
        scale: rows of the result per row of the map.
    """
    height, width = x.shape[1:3]
    shared = jax.sharding.get_abstract_mesh().shape.get("spatial", 1) > 1
    if shared or is_symbolic_dim(height) or is_symbolic_dim(width):
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
