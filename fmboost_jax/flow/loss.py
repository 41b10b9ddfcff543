"""The flow-matching loss and the distributions of its times (arXiv 2210.02747; 2312.07360)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fmboost_jax.errors import InputError
from fmboost_jax.flow.paths import Path


def sample_time(keys: Key[Array, "b"]) -> Float[Array, "b"]:
    """Draw t ~ U[0, 1) for each example from its own key, independent of batch and devices.

    Args:
        keys: typed keys (`jax.random.key`), one for each example.
    """
    return jax.vmap(jax.random.uniform)(keys)


@dataclasses.dataclass(frozen=True)
class Uniform:
    """t ~ U[0, 1)."""

    def __call__(self, keys: Key[Array, "b"]) -> Float[Array, "b"]:
        """Draw one time for each key."""
        return sample_time(keys)


@dataclasses.dataclass(frozen=True)
class LogitNormal:
    """t = 1 / (1 + exp(−n)) with n ~ N(mean, deviation²): samples more times in the middle of the flow.

    Source: Esser et al. 2024, arXiv 2403.03206, equation 19.

    Attributes:
        mean: of n; above 0 favours late times. Default: 0.
        deviation: standard deviation of n, above 0. Default: 1.
    """

    mean: float = 0.0
    deviation: float = 1.0

    def __post_init__(self):
        if not self.deviation > 0:
            raise InputError(f"logit_normal: deviation must be above 0, found {self.deviation}")

    def __call__(self, keys: Key[Array, "b"]) -> Float[Array, "b"]:
        """Draw one time for each key."""
        return jax.nn.sigmoid(self.mean + self.deviation * jax.vmap(jax.random.normal)(keys))


# Distributions of the times: keys (b,) → times (b,) in [0, 1].
TIME_SAMPLERS: dict[str, Callable[..., Callable[[Array], Array]]] = {"uniform": Uniform, "logit_normal": LogitNormal}


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
        velocity_fn: (x_t, t) → predicted velocity, with t of shape (b,).
        path: joins x0 and x1.
        x0: source.
        x1: target.
        t: times in [0, 1].
        noise: standard normal; only for paths with sigma_min > 0.

    Returns:
        One loss for each example.
    """
    x0, x1 = x0.astype(jnp.float32), x1.astype(jnp.float32)
    predicted = velocity_fn(path.interpolate(x0, x1, t, noise), t).astype(jnp.float32)
    squares = jnp.square(predicted - path.velocity(x0, x1, t))
    return squares.mean(axis=tuple(range(1, squares.ndim)))
