"""Exact convolutions over feature maps too large to be activated, padded and convolved at once.

A 3×3 convolution needs one row of neighbours above and below, no more. Cut into strips of rows, each with that halo,
it gives the same numbers as in one piece while only a strip's temporaries exist. Group norms are no obstacle: their
statistics are taken over the whole map first and applied inside each strip. Small maps are one strip, and so are maps
whose height several devices share (the `spatial` axis of the mesh in `jax.set_mesh`): each works on its rows alone. In
a program for any size (`fmboost_jax.boosting.stablehlo`) every map is one strip, as its rows cannot be counted.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.export import is_symbolic_dim
from jaxtyping import Array, Float

# Positions of a feature map that are worked on at once: 512² stays whole; at 256 float32 channels 256 MiB.
STRIP_POSITIONS = 2**18

Activation = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class Strip:
    """Rows `start … start + rows − 1` of maps that are `height` rows high; `start` may be traced.

    In a program for any size, rows and height are one symbol.
    """

    start: int | Array
    rows: Any
    height: Any

    def of(self, x: Float[Array, "b h w c"]) -> Float[Array, "b r w c"]:
        """The strip's own rows of `x`."""
        if self.rows == self.height:
            return x
        return lax.dynamic_slice_in_dim(x, self.start, self.rows, axis=1)

    def window(self, x: Float[Array, "b h w c"], activation: Activation = lambda x: x) -> Float[Array, "b r w c"]:
        """`activation` of the strip's rows and of one neighbour on either side; beyond the map's edge zeros."""
        if self.rows == self.height:
            return _pad_rows(activation(x))
        # Slices clamp at the map's edges: take rows + 2 that exist, pad, then cut where the strip really lies.
        first = jnp.clip(self.start - 1, 0, self.height - self.rows - 2)
        padded = _pad_rows(activation(lax.dynamic_slice_in_dim(x, first, self.rows + 2, axis=1)))
        return lax.dynamic_slice_in_dim(padded, self.start - first, self.rows + 2, axis=1)


def _pad_rows(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))


def in_strips(
    function: Callable[[Strip], Array], x: Float[Array, "b h w c"], scale: int = 1
) -> Float[Array, "b H W d"]:
    """`function` of every strip of a map, put together along the rows.

    Args:
        function: maps a strip of r rows to scale·r rows of the result, alike wherever the strip lies.
        x: a map that the strips are taken of.
        scale: rows of the result for a row of the map.
    """
    height, width = x.shape[1:3]
    shared = jax.sharding.get_abstract_mesh().shape.get("spatial", 1) > 1
    if shared or is_symbolic_dim(height) or is_symbolic_dim(width):
        return function(Strip(0, height, height))
    rows = max(1, STRIP_POSITIONS // (width * scale * scale))
    if rows + 2 >= height:
        return function(Strip(0, height, height))

    def write(index: Array, result: Array) -> Array:
        # The last strip moves up to end with the map; the rows that it shares come out the same again.
        start = jnp.minimum(index * rows, height - rows)
        return lax.dynamic_update_slice_in_dim(result, function(Strip(start, rows, height)), start * scale, axis=1)

    block = jax.eval_shape(lambda: function(Strip(0, rows, height)))
    # Every row is overwritten. A fill that hangs on x keeps XLA from making all results before the first is needed.
    result = jnp.full((block.shape[0], height * scale, *block.shape[2:]), x[0, 0, 0, 0], block.dtype)
    return lax.fori_loop(0, -(-height // rows), write, result)
