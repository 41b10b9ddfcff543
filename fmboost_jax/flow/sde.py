"""Stochastic sampling: dx = (v + w s) dt + √(2w) dW, whose marginals are the path's for any diffusion w(t) ≥ 0.

v is the network's velocity, s the score that follows from it (`Path.score`). It is exact for x0 ~ N(0, I), a flow that
starts from noise, and only approximate for a flow that starts at a low-res latent.

The score is infinite at t = 1, so the grid stops at 1 − last_step_size and a last step without noise covers the rest.

Source: Ma et al., "SiT", arXiv 2401.08740, section 2.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from fmboost_jax.errors import InputError
from fmboost_jax.flow.paths import Path, make_path
from fmboost_jax.flow.solvers import FIXED_GRID, Velocity, runge_kutta_step, velocity_at
from fmboost_jax.registry import check_name

METHODS = ("euler", "heun")
LAST_STEPS = ("Mean", "Tweedie", "Euler", None)
SBDM_START = 1e-3


def integrate_sde(
    velocity_fn: Velocity,
    x: Float[Array, "b *d"],
    noise: Float[Array, "steps b *d"],
    *,
    path: Path,
    method: str,
    steps: int,
    diffusion: str = "sigma",
    norm: float = 1.0,
    last_step: str | None = "Mean",
    last_step_size: float = 0.04,
) -> Float[Array, "b *d"]:
    """Integrate from t = 0 to t = 1: noisy steps on linspace(0, 1 − last_step_size, steps + 1), then a last step.

    Methods, with drift f = v + w s:
        "euler": Euler–Maruyama, x + f h + √(2wh) ε; 1 evaluation a step.
        "heun": add the noise first, x̂ = x + √(2wh) ε, then a Heun step along f from x̂; 2 evaluations a step.

    Last steps, from t = 1 − last_step_size, without noise and with 1 evaluation:
        "Mean": along the drift, x + f · last_step_size.
        "Euler": along the velocity, x + v · last_step_size.
        "Tweedie": E[x1 | x], the expected target (Tweedie's formula).
        None: no last step; return the noisy state at 1 − last_step_size. A size of 0 goes to t = 1 with Euler–Maruyama.

    Args:
        velocity_fn: (x, t) → dx/dt, where t has shape (b,).
        x: standard normal state at t = 0.
        noise: standard normal noise, one slice a step.
        path: the path on which the velocity was trained.
        method: "euler" or "heun".
        steps: noisy steps.
        diffusion: form of w, see `Path.diffusion`. For "SBDM", infinite at t = 0, the grid starts at 0.001.
        norm: scale of w; 0 gives the ODE.
        last_step: see above.
        last_step_size: in [0, 1); 0 only for Euler–Maruyama without a last step.

    Returns:
        The state at t = 1 (at 1 − last_step_size for None), float32.

    Raises:
        InputError: unknown method, form or last step, fewer than 1 step, noise of another shape, or a
            last_step_size out of its range.
    """
    _check(x.shape, noise.shape, method, steps, last_step, last_step_size)
    start = SBDM_START if diffusion == "SBDM" else 0.0
    times = jnp.asarray(np.linspace(start, 1 - last_step_size, steps + 1, dtype=np.float32))

    def over_batch(t):
        return jnp.full(x.shape[:1], t, jnp.float32)

    def drift(x, t):
        velocity, t = velocity_at(velocity_fn, x, t), over_batch(t)
        return velocity + path.diffusion(x, t, diffusion, norm) * path.score(velocity, x, t)

    def step(n, x):
        t, h = times[n], times[n + 1] - times[n]
        increment = jnp.sqrt(2 * path.diffusion(x, over_batch(t), diffusion, norm) * h) * noise[n]
        if method == "heun":
            return runge_kutta_step(drift, x + increment, t, h, FIXED_GRID["heun"])
        return runge_kutta_step(drift, x, t, h, FIXED_GRID["euler"]) + increment

    x = lax.fori_loop(0, steps, step, x.astype(jnp.float32))
    end = times[-1]
    match last_step:
        case "Mean":
            return x + last_step_size * drift(x, end)
        case "Euler":
            return x + last_step_size * velocity_at(velocity_fn, x, end)
        case "Tweedie":
            score = path.score(velocity_at(velocity_fn, x, end), x, over_batch(end))
            return (x + (path.sigma(end) ** 2 + path.sigma_min**2) * score) / path.alpha(end)
    return x


def _check(state, noise, method, steps, last_step, last_step_size):
    check_name("stochastic method", method, METHODS)
    check_name("last step", last_step, LAST_STEPS)
    if steps < 1:
        raise InputError(f"steps must be at least 1, found {steps}")
    if noise != (steps, *state):
        raise InputError(f"noise has shape {noise}, expected {(steps, *state)}: one slice of the state's shape a step")
    zero_allowed = method == "euler" and last_step is None
    if not 0 <= last_step_size < 1 or (last_step_size == 0 and not zero_allowed):
        raise InputError(
            f"last_step_size must be above 0 and below 1, found {last_step_size}; "
            "0 needs method 'euler' and last step None, since the score is infinite at t = 1"
        )


@dataclasses.dataclass(frozen=True)
class StochasticSolver:
    """Settings of stochastic sampling, the counterpart of `Solver` for the SDE.

    Attributes:
        method, steps, diffusion, norm, last_step, last_step_size: see `integrate_sde`.
        path: the path on which the velocity was trained, such as "linear" or "linear(sigma_min=0.001)".

    Raises:
        InputError: an unknown name, or a number out of its range.
    """

    method: str = "euler"
    steps: int = 50
    path: str = "linear"
    diffusion: str = "sigma"
    norm: float = 1.0
    last_step: str | None = "Mean"
    last_step_size: float = 0.04

    def __post_init__(self):
        _check((), (self.steps,), self.method, self.steps, self.last_step, self.last_step_size)
        one = jnp.ones((1,))
        make_path(self.path).diffusion(one, one / 2, self.diffusion, self.norm)

    def integrate(
        self, velocity_fn: Velocity, x: Float[Array, "b *d"], noise: Float[Array, "steps b *d"]
    ) -> Float[Array, "b *d"]:
        """Integrate from t = 0 to t = 1; arguments and errors as for `integrate_sde`."""
        fields = dataclasses.asdict(self)
        return integrate_sde(velocity_fn, x, noise, **{**fields, "path": make_path(self.path)})
