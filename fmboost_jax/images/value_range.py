"""The two ranges of image values: 0 to 255 in files and results, [−1, 1] inside the networks."""

from typing import overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8


@overload
def to_uint8(image: np.ndarray) -> np.ndarray: ...
@overload
def to_uint8(image: jax.Array) -> jax.Array: ...
def to_uint8(image: Float[Array | np.ndarray, "*shape"]) -> UInt8[Array | np.ndarray, "*shape"]:
    """Convert [−1, 1] to 0…255, rounded; values outside are clipped. A JAX array gives a JAX array, traced or not."""
    xp = jnp if isinstance(image, jax.Array) else np
    return xp.clip(xp.round((xp.asarray(image, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


@overload
def to_float(image: np.ndarray) -> np.ndarray: ...
@overload
def to_float(image: jax.Array) -> jax.Array: ...
def to_float(image: UInt8[Array | np.ndarray, "*shape"]) -> Float[Array | np.ndarray, "*shape"]:
    """Convert 0…255 to [−1, 1] in float32. A JAX array gives a JAX array, traced or not."""
    xp = jnp if isinstance(image, jax.Array) else np
    return xp.asarray(image, np.float32) / 127.5 - 1
