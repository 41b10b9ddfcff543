"""Integration of dx/dt = v(x, t) over t in [0, 1], or back.

A method is a Butcher tableau; one loop runs any of them. The network stands in the compiled program once, whatever the
method and the number of steps: steps and stages are both loops. State and times are float32.

These are pure functions to be called inside `jax.jit`; outside of it each call compiles its loop anew.

A step is one interval of linspace(0, 1, steps + 1). The reference names the number of *points*, which is one more.

Sources: Hairer, Nørsett, Wanner, "Solving Ordinary Differential Equations I", 2nd edition, sections II.1 (tableaus) and
II.4 (step size control); Dormand and Prince, "A family of embedded Runge-Kutta formulae", 1980; Ho and Salimans,
"Classifier-Free Diffusion Guidance", arXiv 2207.12598.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from fmboost_jax.errors import InputError

Velocity = Callable[[Array, Array], Array]
Slope = Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Tableau:
    """An explicit Runge–Kutta method: slopes k_i = f(x + h Σ_j a_ij k_j, t + c_i h), then x + h Σ_i b_i k_i.

    Attributes:
        order: the error after a fixed span falls as h^order.
        a: the rows below the diagonal; row i has i entries.
        b: weights of the slopes in the step.
        embedded: weights of the embedded method whose difference estimates the error; None for a fixed grid.
    """

    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    embedded: tuple[float, ...] | None = None

    @property
    def stages(self) -> int:
        """Evaluations a step."""
        return len(self.b)

    @property
    def c(self) -> Float[np.ndarray, "stages"]:
        """Where in the step each slope is taken: the sums of a's rows."""
        return np.array([sum(row) for row in self.a], np.float32)

    @property
    def matrix(self) -> Float[np.ndarray, "stages stages"]:
        """a as a square matrix, zero on and above the diagonal."""
        return np.array([row + (0.0,) * (self.stages - len(row)) for row in self.a], np.float32)


FIXED_GRID = {
    "euler": Tableau(1, ((),), (1.0,)),
    "midpoint": Tableau(2, ((), (1 / 2,)), (0.0, 1.0)),
    "heun": Tableau(2, ((), (1.0,)), (1 / 2, 1 / 2)),
    "heun3": Tableau(3, ((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4)),
    # Kutta's 3/8 rule, as in the reference; not the classical fourth-order method.
    "rk4": Tableau(4, ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)),
}
DOPRI5 = Tableau(
    5,
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
)
METHODS = (*FIXED_GRID, "dopri5")


def evaluations(method: str, steps: int) -> int:
    """Network evaluations (NFE) of a fixed-grid method: Euler 1 a step, midpoint and Heun 2, heun3 3, rk4 4.

    Raises:
        InputError: unknown method, fewer than 1 step, or dopri5, whose number only `integrate_adaptive` can tell.
    """
    if method == "dopri5":
        raise InputError("method 'dopri5' chooses its own evaluations; integrate_adaptive reports them")
    return _tableau(method).stages * _positive("steps", steps)


def integrate(
    velocity_fn: Velocity,
    x: Float[Array, "b *d"],
    *,
    method: str,
    steps: int,
    reverse: bool = False,
    return_trajectory: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    max_steps: int = 1000,
) -> Float[Array, "b *d"] | Float[Array, "n b *d"]:
    """Carry x along the velocity from t = 0 to t = 1.

    Args:
        velocity_fn: (x, t) → dx/dt, where t has shape (b,) and runs in [0, 1].
        x: state at t = 0, or at t = 1 when `reverse`.
        method: one of `METHODS`.
        steps: intervals of linspace(0, 1, steps + 1). dopri5 takes as many steps as it needs and lands on these points.
        reverse: go from t = 1 to t = 0.
        return_trajectory: return the states at all steps + 1 points, in the order in which they are met.
        rtol, atol, max_steps: of dopri5 alone, see `integrate_adaptive`.

    Returns:
        The state at the end, or the trajectory; float32. Where dopri5 gave up, what it did not reach is NaN: a half-way
        state must not pass for a result.

    Raises:
        InputError: unknown method, fewer than 1 step, or a velocity whose shape is not the state's.
    """
    if method == "dopri5":
        solution = integrate_adaptive(
            velocity_fn, x, steps=steps, reverse=reverse, rtol=rtol, atol=atol, max_steps=max_steps
        )
        return solution.trajectory if return_trajectory else solution.trajectory[-1]
    tableau = _tableau(method)
    times = _times(steps)
    slope = _slope(velocity_fn, reverse)

    def step(n, x):
        return runge_kutta_step(slope, x, times[n], times[n + 1] - times[n], tableau)

    def record(n, trajectory):
        return trajectory.at[n + 1].set(step(n, trajectory[n]))

    x = x.astype(jnp.float32)
    if return_trajectory:
        return lax.fori_loop(0, steps, record, _start_trajectory(x, steps, 0.0))
    return lax.fori_loop(0, steps, step, x)


def velocity_at(velocity_fn: Velocity, x: Float[Array, "b *d"], t: Float[Array, ""]) -> Float[Array, "b *d"]:
    """The velocity of a batch at one time for all, float32.

    Raises:
        InputError: its shape is not the state's.
    """
    velocity = velocity_fn(x, jnp.full(x.shape[:1], t, jnp.float32))
    if velocity.shape != x.shape:
        raise InputError(f"the velocity has shape {velocity.shape}, expected the state's {x.shape}")
    return velocity.astype(jnp.float32)


def runge_kutta_step(
    slope: Slope, x: Float[Array, "b *d"], t: Float[Array, ""], h: Float[Array, ""], tableau: Tableau
) -> Float[Array, "b *d"]:
    """One step of size h from x at t; slope(x, t) takes t as a scalar."""
    slopes = _slopes(slope, x, t, h, tableau, jnp.zeros((tableau.stages, *x.shape), x.dtype))
    return x + h * _weighted(tableau.b, slopes)


class Solution(NamedTuple):
    """What an adaptive integration found.

    Attributes:
        x: the state where it stopped: at the end, or wherever it gave up.
        trajectory: states at the points of the grid, the start included; NaN where it did not get.
        evaluations: network evaluations (NFE), rejected steps included.
        steps: steps tried, rejected ones included.
        reached_end: False where it gave up, for max_steps or because the error stays too large (or NaN) however small
            the step.
        reached_max_steps: True where it gave up for max_steps.
    """

    x: Float[Array, "b *d"]
    trajectory: Float[Array, "n b *d"]
    evaluations: Int[Array, ""]
    steps: Int[Array, ""]
    reached_end: Bool[Array, ""]
    reached_max_steps: Bool[Array, ""]


# Of the unit interval that every flow spans; the controller mends a poor guess by up to GROWTH a step, and to guess
# better would put the network into the program a second time.
FIRST_STEP = 0.01
SMALLEST_STEP = 1e-7
SAFETY, SHRINKAGE, GROWTH = 0.9, 0.2, 10.0


def integrate_adaptive(
    velocity_fn: Velocity,
    x: Float[Array, "b *d"],
    *,
    steps: int = 1,
    reverse: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    max_steps: int = 1000,
) -> Solution:
    """Dormand–Prince 5(4) with step size control, in one `lax.while_loop`.

    A step is kept where the root mean square of error / (atol + rtol · |x|) is at most 1 for *each* example; the batch
    shares its step sizes, so the hardest example sets them. Each try costs 6 evaluations and the first one 7.

    Args:
        velocity_fn: (x, t) → dx/dt, where t has shape (b,).
        x: state at t = 0, or at t = 1 when `reverse`.
        steps: the solution lands on the points of linspace(0, 1, steps + 1); 1 leaves all to the controller.
        reverse: go from t = 1 to t = 0.
        rtol: error allowed relative to the state's magnitude.
        atol: error allowed on top of that.
        max_steps: give up after as many tries.

    Raises:
        InputError: fewer than 1 step, or a velocity whose shape is not the state's.
    """
    times = _times(steps)
    _positive("max_steps", max_steps)
    slope = _slope(velocity_fn, reverse)
    error_weights = np.subtract(DOPRI5.b, DOPRI5.embedded)

    def unfinished(state):
        n, tries, _, h, *_ = state
        return (n < steps) & (tries < max_steps) & (h > SMALLEST_STEP)

    def attempt(state):
        n, tries, t, h, x, first, trajectory = state
        room = times[n + 1] - t
        lands = h >= room
        taken = jnp.minimum(h, room)
        # Only the first try has to find its first slope; stale ones could hold the NaN of a step that went too far.
        slopes = jnp.zeros((DOPRI5.stages, *x.shape), x.dtype).at[0].set(first)
        slopes = _slopes(slope, x, t, taken, DOPRI5, slopes, start=jnp.minimum(tries, 1))
        proposal = x + taken * _weighted(DOPRI5.b, slopes)
        tolerance = atol + rtol * jnp.maximum(jnp.abs(x), jnp.abs(proposal))
        error = _largest_mean_square(taken * _weighted(error_weights, slopes) / tolerance) ** 0.5
        error = jnp.where(jnp.isnan(error), jnp.inf, error)

        kept = error <= 1
        arrived = kept & lands
        x = jnp.where(kept, proposal, x)
        first = jnp.where(kept, slopes[-1], slopes[0])
        t = jnp.where(kept, jnp.where(lands, times[n + 1], t + taken), t)
        trajectory = trajectory.at[n + 1].set(jnp.where(arrived, x, jnp.nan))
        suggested = taken * jnp.clip(SAFETY * error ** (-1 / DOPRI5.order), SHRINKAGE, GROWTH)
        # A step that was cut short to land says little of the size that the flow allows.
        h = jnp.where(arrived, jnp.maximum(h, suggested), suggested)
        return n + arrived, tries + 1, t, h, x, first, trajectory

    x = x.astype(jnp.float32)
    zero = jnp.zeros((), jnp.int32)
    trajectory = _start_trajectory(x, steps, jnp.nan)
    start = (zero, zero, jnp.float32(0), jnp.float32(FIRST_STEP), x, jnp.zeros_like(x), trajectory)
    n, tries, _, _, x, _, trajectory = lax.while_loop(unfinished, attempt, start)
    reached_end = n == steps
    return Solution(
        x, trajectory, 1 + (DOPRI5.stages - 1) * tries, tries, reached_end, ~reached_end & (tries == max_steps)
    )


def guided(
    velocity_fn: Callable[[Array, Array, PyTree], Array],
    conditional: PyTree[Array],
    unconditional: PyTree[Array],
    scale: float | Float[Array, ""],
) -> Velocity:
    """Classifier-free guidance v_u + scale · (v_c − v_u), both evaluated in one call on a doubled batch.

    Args:
        velocity_fn: (x, t, conditioning) → dx/dt; called with batch 2b, the unconditional half first.
        conditional: conditioning; any pytree of arrays whose first axis is the batch.
        unconditional: the same tree; the first axis may be 1, to serve all examples.
        scale: 0 is unconditional, 1 conditional, more is guidance.

    Returns:
        (x, t) → velocity, for `integrate` and `integrate_sde`. It counts as one evaluation of twice the batch.

    Raises:
        InputError: the two conditionings do not match.
    """

    def both(without, given):
        if without.shape not in (given.shape, (1, *given.shape[1:])):
            raise InputError(f"unconditional conditioning has shape {without.shape}, expected {given.shape} or batch 1")
        return jnp.concatenate([jnp.broadcast_to(without, given.shape), given])

    if jax.tree.structure(conditional) != jax.tree.structure(unconditional):
        raise InputError(
            f"conditional and unconditional conditioning differ in structure: {jax.tree.structure(conditional)} and "
            f"{jax.tree.structure(unconditional)}; guidance needs the same tree twice"
        )
    conditioning = jax.tree.map(both, unconditional, conditional)

    def velocity(x, t):
        doubled = velocity_fn(jnp.concatenate([x, x]), jnp.concatenate([t, t]), conditioning)
        without, given = jnp.split(doubled.astype(jnp.float32), 2)
        return without + scale * (given - without)

    return velocity


def _tableau(method: str) -> Tableau:
    if method not in FIXED_GRID:
        raise InputError(f"method {method!r} is unknown; expected one of {', '.join(METHODS)}")
    return FIXED_GRID[method]


def _positive(name: str, count: int) -> int:
    if count < 1:
        raise InputError(f"{name} must be at least 1, found {count}")
    return count


def _times(steps: int) -> Float[Array, "n"]:
    return jnp.asarray(np.linspace(0, 1, _positive("steps", steps) + 1, dtype=np.float32))


def _slope(velocity_fn: Velocity, reverse: bool) -> Slope:
    """The velocity as seen by a clock that always runs from 0 to 1."""

    if reverse:
        return lambda x, clock: -velocity_at(velocity_fn, x, 1 - clock)
    return lambda x, clock: velocity_at(velocity_fn, x, clock)


def _slopes(slope, x, t, h, tableau, slopes, start=0):
    """The slopes k_i of a step; those before `start` are taken as they stand."""
    a, c = jnp.asarray(tableau.matrix), jnp.asarray(tableau.c)

    def stage(i, slopes):
        return slopes.at[i].set(slope(x + h * _weighted(a[i], slopes), t + c[i] * h))

    return lax.fori_loop(start, tableau.stages, stage, slopes)


def _weighted(weights, slopes):
    """Σ_i w_i k_i, exactly float32 on every device (a matmul need not be)."""
    weights = jnp.asarray(weights, jnp.float32)
    return jnp.sum(weights.reshape(-1, *(1,) * (slopes.ndim - 1)) * slopes, axis=0)


def _largest_mean_square(x):
    return jnp.max(jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim))))


def _start_trajectory(x, steps, rest):
    return jnp.full((steps + 1, *x.shape), rest, x.dtype).at[0].set(x)
