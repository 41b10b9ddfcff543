"""The ranges of image values: 0 to 255, or to 65535, in files and results; [−1, 1] inside the networks."""

from typing import overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt, UInt8


@overload
def to_uint8(image: np.ndarray) -> np.ndarray: ...
@overload
def to_uint8(image: jax.Array) -> jax.Array: ...
def to_uint8(image: Float[Array | np.ndarray, "*shape"]) -> UInt8[Array | np.ndarray, "*shape"]:
    """Convert [−1, 1] to 0…255, rounded; values outside are clipped. A JAX array gives a JAX array, traced or not."""
    xp = jnp if isinstance(image, jax.Array) else np
    return xp.clip(xp.round((xp.asarray(image, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def to_integers(image: Float[np.ndarray, "*shape"], dtype: np.dtype | type) -> UInt[np.ndarray, "*shape"]:
    """Convert [−1, 1] to all values of uint8 or uint16, rounded; values outside are clipped."""
    largest = np.iinfo(dtype).max
    return np.clip(np.round((np.asarray(image, np.float32) + 1) * (largest / 2)), 0, largest).astype(dtype)


@overload
def to_float(image: np.ndarray) -> np.ndarray: ...
@overload
def to_float(image: jax.Array) -> jax.Array: ...
def to_float(image: UInt[Array | np.ndarray, "*shape"]) -> Float[Array | np.ndarray, "*shape"]:
    """Convert uint8 or uint16 to [−1, 1] in float32. A JAX array gives a JAX array, traced or not."""
    xp = jnp if isinstance(image, jax.Array) else np
    return xp.asarray(image, np.float32) / (np.iinfo(image.dtype).max / 2) - 1
