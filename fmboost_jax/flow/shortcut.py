"""Shortcut models: one network that takes steps of any size along the flow.

The network predicts s(x, t, d), the mean velocity over the step from t to t + d, so that the flow arrives at
x + d · s(x, t, d). Two half steps must arrive where one whole step does: the second part of the loss.

Source: Frans et al. 2024, "One Step Diffusion via Shortcut Models", arXiv 2410.12557, equations 4 and 5.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fmboost_jax.errors import InputError
from fmboost_jax.flow.paths import Path

# (x, t, second time) → velocity, of any subset of the batch: `examples` selects its conditioning.
StepVelocity = Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class Shortcut:
    """The shortcut objective, for any coupling of x0 and x1.

    The first examples of every group of 1 / `bootstrap` regress the mean of two half steps, taken without a gradient;
    the others regress the path's velocity at the smallest step.

    Attributes:
        bootstrap: share of the batch that regresses two half steps, 1 over a whole number. Default: 0.25.
        smallest: number of steps of the finest grid, a power of two. Default: 64.
    """

    bootstrap: float = 0.25
    smallest: int = 64

    time_inputs = 2
    needs_teacher = True

    def __post_init__(self):
        if self.smallest < 2 or self.smallest & (self.smallest - 1):
            raise InputError(f"objective shortcut: smallest must be a power of two, 2 or more, found {self.smallest}")
        if not 0 < self.bootstrap <= 0.5 or abs(1 / self.bootstrap - self.group) > 1e-6:
            raise InputError(
                f"objective shortcut: bootstrap must be 1 over a whole number, at most 0.5, found {self.bootstrap}"
            )

    @property
    def group(self) -> int:
        """Examples of which one regresses two half steps."""
        return round(1 / self.bootstrap)

    def second_time(self, t: Float[Array, "b"], arrival: Float[Array, "b"]) -> Float[Array, "b"]:
        """The step's size as the network reads it: 0 for the whole interval, 1 for the smallest step.

        It is −log2(d) / log2(smallest), d = arrival − t: equal distances between sizes that differ by a factor of two.
        """
        return -jnp.log2(jnp.maximum(arrival - t, 1e-6)) / math.log2(self.smallest)

    def check_steps(self, steps: int) -> None:
        """Refuse numbers of steps whose size the network was not trained for.

        Raises:
            InputError: `steps` is not a power of two up to `smallest`.
        """
        if steps < 1 or steps & (steps - 1) or steps > self.smallest:
            raise InputError(
                f"steps must be a power of two from 1 to {self.smallest} for a shortcut model, found {steps}"
            )

    def loss(
        self,
        velocity_fn: StepVelocity,
        path: Path,
        x0: Float[Array, "b *d"],
        x1: Float[Array, "b *d"],
        keys: Key[Array, "b"],
        teacher_fn: StepVelocity | None = None,
    ) -> Float[Array, "b"]:
        """Mean square error of each example, float32.

        Args:
            velocity_fn: (x, t, second_time, examples=slice) → s; `examples` is the subset of the batch that x holds.
            path: joins x0 and x1.
            x0: source.
            x1: target.
            keys: one typed key for each example.
            teacher_fn: velocity of the two half steps, usually with the averaged weights. Default: `velocity_fn`.

        Raises:
            InputError: a batch that is not a multiple of 1 / `bootstrap`.
        """
        batch = x0.shape[0]
        if batch % self.group:
            raise InputError(
                f"objective shortcut: a batch of {batch} must be a multiple of {self.group}, 1 / bootstrap; change "
                "train.batch_size or bootstrap"
            )
        teacher_fn = teacher_fn or velocity_fn
        x0, x1 = x0.astype(jnp.float32), x1.astype(jnp.float32)
        size_keys, time_keys = jax.vmap(lambda key: jax.random.split(key, 2))(keys).T
        levels = int(math.log2(self.smallest))
        # Step sizes 2^-level: 0 to levels - 1 for the bootstrap, the smallest for the others.
        drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, levels))(size_keys)
        bootstrapped = jnp.arange(batch) % self.group == 0
        step = jnp.where(bootstrapped, 2.0**-drawn, 1.0 / self.smallest)
        uniform = jax.vmap(jax.random.uniform)(time_keys)
        # Steps start on the points of the grid of their size, so that no step passes t = 1.
        t = jnp.where(bootstrapped, jnp.floor(uniform / step) * step, uniform)
        x = path.interpolate(x0, x1, t)

        rows = slice(0, batch, self.group)
        half = step[rows] / 2
        first = _float32(teacher_fn(x[rows], t[rows], self.second_time(t[rows], t[rows] + half), examples=rows))
        middle = x[rows] + _like(half, first) * first
        last = t[rows] + half
        second = _float32(teacher_fn(middle, last, self.second_time(last, last + half), examples=rows))
        target = path.velocity(x0, x1, t).at[rows].set(jax.lax.stop_gradient((first + second) / 2))
        predicted = _float32(velocity_fn(x, t, self.second_time(t, t + step)))
        return jnp.square(predicted - target).mean(axis=tuple(range(1, x0.ndim)))


def _float32(x: Array) -> Array:
    return x.astype(jnp.float32)


def _like(t: Float[Array, "b"], x: Float[Array, "b *d"]) -> Float[Array, "b *ones"]:
    return t.reshape(t.shape + (1,) * (x.ndim - 1))
