"""MeanFlow: the network predicts the mean velocity over an interval, trained by a differential identity.

u(x, t, r) is the mean of the marginal velocity v along the flow from t to r ≥ t:

    (r − t) u(x_t, t, r) = ∫_t^r v(x_τ, τ) dτ,    so    x_r = x_t + (r − t) u(x_t, t, r).

Differentiating both sides along the flow with respect to t (dx_t/dt = v, r fixed) gives

    −u + (r − t) du/dt = −v,    that is    u = v + (r − t) du/dt,    du/dt = ∂u/∂x · v + ∂u/∂t.

The paper's time runs from data (0) to noise (1) and its interval ends at t, which changes the sign:
u = v − (t − r) du/dt.

Source: Geng et al. 2025, "Mean Flows for One-step Generative Modeling", arXiv 2505.13447, equations 4, 6, 10 and 22.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fmboost_jax.errors import InputError
from fmboost_jax.flow.paths import Path


@dataclasses.dataclass(frozen=True)
class MeanFlow:
    """The MeanFlow objective, for any coupling of x0 and x1.

    Attributes:
        instantaneous: share of examples with r = t, which regress the velocity itself. Default: 0.5.
        mean, deviation: of the normal variables whose logistic functions are the two times. Defaults: 0.4, 1.0 (the
            paper's −0.4 in our direction of time).
        power: exponent p of the adaptive weight 1 / (‖error‖² + 1e-3)^p. 0 gives the plain mean square. Default: 1.
    """

    instantaneous: float = 0.5
    mean: float = 0.4
    deviation: float = 1.0
    power: float = 1.0

    time_inputs = 2
    needs_teacher = False

    def __post_init__(self):
        if not 0 <= self.instantaneous < 1:
            raise InputError(f"objective meanflow: instantaneous must be in [0, 1), found {self.instantaneous}")
        if self.deviation <= 0 or self.power < 0:
            raise InputError("objective meanflow: deviation must be above 0 and power 0 or more")

    def second_time(self, t: Float[Array, "b"], arrival: Float[Array, "b"]) -> Float[Array, "b"]:
        """The interval's length r − t, as the network reads it."""
        return arrival - t

    def check_steps(self, steps: int) -> None:
        """Accept every number of steps from 1.

        Raises:
            InputError: fewer than 1 step.
        """
        if steps < 1:
            raise InputError(f"steps must be 1 or more, found {steps}")

    def loss(
        self,
        velocity_fn: Callable[..., Array],
        path: Path,
        x0: Float[Array, "b *d"],
        x1: Float[Array, "b *d"],
        keys: Key[Array, "b"],
        teacher_fn: Callable[..., Array] | None = None,
    ) -> Float[Array, "b"]:
        """Adaptively weighted square error of each example, float32.

        Args:
            velocity_fn: (x, t, second_time) → u, differentiable in forward mode.
            path: joins x0 and x1.
            x0: source.
            x1: target.
            keys: one typed key for each example.
            teacher_fn: not used.
        """
        x0, x1 = x0.astype(jnp.float32), x1.astype(jnp.float32)
        first_keys, second_keys, share_keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys).T
        drawn = jnp.stack([jax.vmap(jax.random.normal)(each) for each in (first_keys, second_keys)])
        times = jax.nn.sigmoid(self.mean + self.deviation * drawn)
        t, r = times.min(axis=0), times.max(axis=0)
        r = jnp.where(jax.vmap(jax.random.uniform)(share_keys) < self.instantaneous, t, r)
        x, velocity = path.interpolate(x0, x1, t), path.velocity(x0, x1, t)

        def mean_velocity(x, t):
            return velocity_fn(x, t, self.second_time(t, r)).astype(jnp.float32)

        predicted, change = jax.jvp(mean_velocity, (x, t), (velocity, jnp.ones_like(t)))
        interval = (r - t).reshape(r.shape + (1,) * (x.ndim - 1))
        target = jax.lax.stop_gradient(velocity + interval * change)
        squares = jnp.square(predicted - target).mean(axis=tuple(range(1, x.ndim)))
        return squares / jax.lax.stop_gradient(squares + 1e-3) ** self.power
