"""The flow-matching objective and the times at which it is asked (arXiv 2210.02747; 2312.07360)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fmboost_jax.flow.paths import Path


def sample_time(keys: Key[Array, "b"]) -> Float[Array, "b"]:
    """t ~ U[0, 1) for each example from its own key, so that it depends neither on the batch nor on the devices.

    Args:
        keys: typed keys (`jax.random.key`), one for each example; they may serve no other draw.
    """
    return jax.vmap(jax.random.uniform)(keys)


def flow_matching_loss(
    velocity_fn: Callable[[Array, Array], Array],
    path: Path,
    x0: Float[Array, "b *d"],
    x1: Float[Array, "b *d"],
    t: Float[Array, "b"],
    noise: Float[Array, "b *d"] | None = None,
) -> Float[Array, "b"]:
    """Mean square of velocity_fn(x_t, t) − (α′ x1 + σ′ x0) over each example, in float32 throughout.

    Args:
        velocity_fn: (x_t, t) → predicted velocity, with t of shape (b,); conditioning is its own affair.
        path: how x0 and x1 are joined.
        x0: source.
        x1: target.
        t: times in [0, 1].
        noise: standard normal, for paths with sigma_min > 0.

    Returns:
        One loss for each example.
    """
    x0, x1 = x0.astype(jnp.float32), x1.astype(jnp.float32)
    predicted = velocity_fn(path.interpolate(x0, x1, t, noise), t).astype(jnp.float32)
    squares = jnp.square(predicted - path.velocity(x0, x1, t))
    return squares.mean(axis=tuple(range(1, squares.ndim)))
