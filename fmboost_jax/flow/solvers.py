"""Integration of dx/dt = v(x, t) over t in [0, 1], or back.

A method is a Butcher tableau; one loop runs all of them. Steps and stages are loops, so that the compiled program holds
the network once for every method and number of steps. State and times are float32.

Call these pure functions inside `jax.jit`; outside of it, every call compiles its loop again.

A step is one interval of the time grid, by default linspace(0, 1, steps + 1). The reference counts *points* instead,
one more than steps.

Sources: Hairer, Nørsett, Wanner, "Solving Ordinary Differential Equations I", 2nd edition, sections II.1 (tableaus) and
II.4 (step size control); Dormand and Prince, "A family of embedded Runge-Kutta formulae", 1980; Bogacki and Shampine,
"A 3(2) pair of Runge-Kutta formulas", 1989; Esser et al., "Scaling Rectified Flow Transformers", arXiv 2403.03206,
equation 23 (shifted times).
"""

import dataclasses
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fmboost_jax.errors import InputError
from fmboost_jax.registry import build, choose

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
    def first_same_as_last(self) -> bool:
        """Whether the last slope of a step is the first one of the next step (FSAL)."""
        return self.b[-1] == 0 and self.a[-1] == self.b[:-1]

    @property
    def c(self) -> Float[np.ndarray, "stages"]:
        """The slopes' times as fractions of the step: the sums of a's rows."""
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
# Embedded pairs; where the last slope is the first one of the next step, one evaluation a step is saved.
ADAPTIVE = {
    "dopri5": Tableau(
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
    ),
    "bosh3": Tableau(
        3,
        ((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        (2 / 9, 1 / 3, 4 / 9, 0.0),
        (7 / 24, 1 / 4, 1 / 3, 1 / 8),
    ),
}


@dataclasses.dataclass(frozen=True)
class UniformGrid:
    """Equal steps: linspace(0, 1, steps + 1)."""

    def __call__(self, steps: int) -> Float[np.ndarray, "n"]:
        """The steps + 1 times."""
        return np.linspace(0, 1, steps + 1)


@dataclasses.dataclass(frozen=True)
class ShiftedGrid:
    """Smaller steps near t = 0, where x is noisiest: 1 − t = s τ / (1 + (s − 1) τ) for equally spaced τ.

    Attributes:
        shift: s, above 0; 1 gives equal steps, larger values smaller first steps. Default: 3.
    """

    shift: float = 3.0

    def __post_init__(self):
        if not self.shift > 0:
            raise InputError(f"shift must be above 0, found {self.shift}")

    def __call__(self, steps: int) -> Float[np.ndarray, "n"]:
        """The steps + 1 times."""
        tau = np.linspace(1, 0, steps + 1)
        return (1 - tau) / (1 + (self.shift - 1) * tau)


# Both tables as one, including entries of extensions.
METHODS: Mapping[str, Tableau] = ChainMap(ADAPTIVE, FIXED_GRID)


# Time grids: steps → steps + 1 rising times, the first 0 and the last 1.
GRIDS: dict[str, Callable[..., Callable[[int], np.ndarray]]] = {"uniform": UniformGrid, "shifted": ShiftedGrid}


def tableau(method: str) -> Tableau:
    """Return the tableau of a method of `FIXED_GRID` or `ADAPTIVE`.

    Raises:
        InputError: an unknown method.
    """
    return choose("method", method, METHODS)


@dataclasses.dataclass(frozen=True)
class Solver:
    """Settings of an ODE integration.

    Attributes:
        method: entry of `FIXED_GRID` or `ADAPTIVE`. Default: "euler".
        steps: intervals of the time grid, 1 or more. An adaptive method takes as many steps as it needs and hits
            every point of the grid. Default: 4.
        grid: entry of `GRIDS`, with its settings, such as "shifted(shift=3.0)". Default: "uniform".
        rtol, atol, max_steps: tolerances of an adaptive method, see `integrate_adaptive`.

    Raises:
        InputError: an unknown method or grid, or numbers out of range.
    """

    method: str = "euler"
    steps: int = 4
    grid: str = "uniform"
    rtol: float = 1e-5
    atol: float = 1e-6
    max_steps: int = 1000

    def __post_init__(self):
        tableau(self.method)
        _times(self.grid, _positive("steps", self.steps))
        _positive("max_steps", self.max_steps)
        if not (self.rtol > 0 and self.atol > 0):
            raise InputError(f"rtol and atol must be above 0, found {self.rtol} and {self.atol}")

    @property
    def evaluations(self) -> int:
        """Network evaluations (NFE), see `evaluations`."""
        return evaluations(self.method, self.steps)

    def integrate(
        self,
        velocity_fn: Velocity,
        x: Float[Array, "b *d"],
        *,
        reverse: bool = False,
        return_trajectory: bool = False,
    ) -> Float[Array, "..."]:
        """Integrate the velocity, see the function `integrate`."""
        settings = dataclasses.asdict(self)
        return integrate(velocity_fn, x, reverse=reverse, return_trajectory=return_trajectory, **settings)


def evaluations(method: str, steps: int) -> int:
    """Network evaluations (NFE) of a fixed-grid method: Euler 1 a step, midpoint and Heun 2, heun3 3, rk4 4.

    Raises:
        InputError: an unknown method, fewer than 1 step, or an adaptive method, whose evaluations only
            `integrate_adaptive` counts.
    """
    if method in ADAPTIVE:
        raise InputError(f"method {method!r} has no fixed number of evaluations; integrate_adaptive reports it")
    return tableau(method).stages * _positive("steps", steps)


def integrate(
    velocity_fn: Velocity,
    x: Float[Array, "b *d"],
    *,
    method: str,
    steps: int,
    reverse: bool = False,
    return_trajectory: bool = False,
    grid: str = "uniform",
    rtol: float = 1e-5,
    atol: float = 1e-6,
    max_steps: int = 1000,
) -> Float[Array, "b *d"] | Float[Array, "n b *d"]:
    """Integrate the velocity from t = 0 to t = 1.

    Args:
        velocity_fn: (x, t) → dx/dt, where t has shape (b,) and runs in [0, 1].
        x: state at t = 0, or at t = 1 when `reverse`.
        method: entry of `FIXED_GRID` or `ADAPTIVE`.
        steps: intervals of the time grid. An adaptive method takes as many steps as it needs and hits its points.
        reverse: integrate from t = 1 to t = 0. Default: False.
        return_trajectory: return the states at all steps + 1 points, in the order of integration. Default: False.
        grid: entry of `GRIDS`, with its settings. A reverse integration takes the same steps from t = 1. Default:
            "uniform".
        rtol, atol, max_steps: tolerances of an adaptive method, see `integrate_adaptive`.

    Returns:
        The state at the end, or the trajectory; float32. NaN where an adaptive method gave up, since an
        intermediate state is not a result.

    Raises:
        InputError: an unknown method or grid, fewer than 1 step, or a velocity whose shape is not the state's.
    """
    if method in ADAPTIVE:
        solution = integrate_adaptive(
            velocity_fn,
            x,
            method=method,
            steps=steps,
            grid=grid,
            reverse=reverse,
            rtol=rtol,
            atol=atol,
            max_steps=max_steps,
        )
        return solution.trajectory if return_trajectory else solution.trajectory[-1]
    coefficients = tableau(method)
    times = _times(grid, steps)
    slope = _slope(velocity_fn, reverse)

    def step(n, x):
        return runge_kutta_step(slope, x, times[n], times[n + 1] - times[n], coefficients)

    return _repeat(step, x, steps, return_trajectory)


def integrate_mean_velocity(
    mean_velocity_fn: Callable[[Array, Array, Array], Array],
    x: Float[Array, "b *d"],
    *,
    steps: int,
    grid: str = "uniform",
    return_trajectory: bool = False,
) -> Float[Array, "..."]:
    """Integrate from t = 0 to t = 1 with a network that predicts the mean velocity over a whole step.

    x_{n+1} = x_n + (t_{n+1} − t_n) · u(x_n, t_n, t_{n+1}), which is exact for an exact u and any number of steps
    (shortcut models, MeanFlow). One evaluation a step.

    Args:
        mean_velocity_fn: (x, t, arrival) → mean velocity from t to `arrival`; both times have shape (b,).
        x: state at t = 0.
        steps: intervals of the time grid.
        grid: entry of `GRIDS`, with its settings. Default: "uniform".
        return_trajectory: return the states at all steps + 1 points. Default: False.

    Raises:
        InputError: an unknown grid, fewer than 1 step, or a velocity whose shape is not the state's.
    """
    times = _times(grid, steps)

    def step(n, x):
        arrival = jnp.full(x.shape[:1], times[n + 1], jnp.float32)
        mean_velocity = velocity_at(lambda x, t: mean_velocity_fn(x, t, arrival), x, times[n])
        return x + (times[n + 1] - times[n]) * mean_velocity

    return _repeat(step, x, steps, return_trajectory)


def _repeat(step: Callable[[Array, Array], Array], x: Array, steps: int, return_trajectory: bool) -> Array:
    """The state after `steps` steps, (n, x) → the next x, or the states at all steps + 1 points; float32."""

    def record(n, trajectory):
        return trajectory.at[n + 1].set(step(n, trajectory[n]))

    x = x.astype(jnp.float32)
    if return_trajectory:
        return lax.fori_loop(0, steps, record, _start_trajectory(x, steps, 0.0))
    return lax.fori_loop(0, steps, step, x)


def velocity_at(velocity_fn: Velocity, x: Float[Array, "b *d"], t: Float[Array, ""]) -> Float[Array, "b *d"]:
    """The velocity of a batch at one common time, float32.

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
    """Result of an adaptive integration.

    Attributes:
        x: the state at the end, or where the integration gave up.
        trajectory: states at the points of the grid, including the start; NaN after the integration gave up.
        evaluations: network evaluations (NFE), including rejected steps.
        steps: steps, including rejected ones.
        reached_end: False if the integration gave up: at max_steps, or because no step size makes the error small
            enough (or finite).
        reached_max_steps: True if it gave up at max_steps.
    """

    x: Float[Array, "b *d"]
    trajectory: Float[Array, "n b *d"]
    evaluations: Int[Array, ""]
    steps: Int[Array, ""]
    reached_end: Bool[Array, ""]
    reached_max_steps: Bool[Array, ""]


# In units of the whole interval. The controller corrects a poor first step by up to GROWTH a step; a better guess
# would put the network into the program a second time.
FIRST_STEP = 0.01
SMALLEST_STEP = 1e-7
SAFETY, SHRINKAGE, GROWTH = 0.9, 0.2, 10.0


def integrate_adaptive(
    velocity_fn: Velocity,
    x: Float[Array, "b *d"],
    *,
    method: str = "dopri5",
    steps: int = 1,
    grid: str = "uniform",
    reverse: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    max_steps: int = 1000,
) -> Solution:
    """An embedded Runge–Kutta pair with step size control, in one `lax.while_loop`.

    A step is accepted if the root mean square of error / (atol + rtol · |x|) is at most 1 for *each* example. The batch
    shares its step sizes, so the hardest example sets them. With s stages a step costs s evaluations; with FSAL,
    all but the first cost s − 1.

    Args:
        velocity_fn: (x, t) → dx/dt, where t has shape (b,).
        x: state at t = 0, or at t = 1 when `reverse`.
        method: entry of `ADAPTIVE`. Default: "dopri5" (Dormand and Prince's 5(4) pair).
        steps: intervals of the time grid, whose points the solution hits. Default: 1, only the end.
        grid: entry of `GRIDS`, with its settings. Default: "uniform".
        reverse: integrate from t = 1 to t = 0. Default: False.
        rtol: error allowed relative to the state's magnitude. Default: 1e-5.
        atol: error allowed in addition. Default: 1e-6.
        max_steps: give up after this many steps, including rejected ones. Default: 1000.

    Raises:
        InputError: an unknown method or grid, fewer than 1 step, or a velocity whose shape is not the state's.
    """
    pair = choose("adaptive method", method, ADAPTIVE)
    if pair.embedded is None:
        raise InputError(f"adaptive method {method!r} has no embedded weights")
    times = _times(grid, steps)
    _positive("max_steps", max_steps)
    slope = _slope(velocity_fn, reverse)
    error_weights = np.subtract(pair.b, pair.embedded)
    reused = int(pair.first_same_as_last)

    def unfinished(state):
        n, tries, _, h, *_ = state
        return (n < steps) & (tries < max_steps) & (h > SMALLEST_STEP)

    def attempt(state):
        n, tries, t, h, x, first, trajectory = state
        remaining = times[n + 1] - t
        hits_node = h >= remaining
        taken = jnp.minimum(h, remaining)
        # With FSAL only the first step evaluates its first slope. Slopes of a rejected step may hold NaN: not reused.
        slopes = jnp.zeros((pair.stages, *x.shape), x.dtype).at[0].set(first)
        slopes = _slopes(slope, x, t, taken, pair, slopes, start=jnp.minimum(tries, reused))
        candidate = x + taken * _weighted(pair.b, slopes)
        tolerance = atol + rtol * jnp.maximum(jnp.abs(x), jnp.abs(candidate))
        error = _largest_mean_square(taken * _weighted(error_weights, slopes) / tolerance) ** 0.5
        error = jnp.where(jnp.isnan(error), jnp.inf, error)

        accepted = error <= 1
        arrived = accepted & hits_node
        x = jnp.where(accepted, candidate, x)
        first = jnp.where(accepted, slopes[-1], slopes[0])
        t = jnp.where(accepted, jnp.where(hits_node, times[n + 1], t + taken), t)
        trajectory = trajectory.at[n + 1].set(jnp.where(arrived, x, jnp.nan))
        suggested = taken * jnp.clip(SAFETY * error ** (-1 / pair.order), SHRINKAGE, GROWTH)
        # A step that was shortened to hit a node does not lower the step size.
        h = jnp.where(arrived, jnp.maximum(h, suggested), suggested)
        return n + arrived, tries + 1, t, h, x, first, trajectory

    x = x.astype(jnp.float32)
    zero = jnp.zeros((), jnp.int32)
    trajectory = _start_trajectory(x, steps, jnp.nan)
    start = (zero, zero, jnp.float32(0), jnp.float32(FIRST_STEP), x, jnp.zeros_like(x), trajectory)
    n, tries, _, _, x, _, trajectory = lax.while_loop(unfinished, attempt, start)
    reached_end = n == steps
    calls = reused + (pair.stages - reused) * tries
    return Solution(x, trajectory, calls, tries, reached_end, ~reached_end & (tries == max_steps))


def _positive(name: str, count: int) -> int:
    if count < 1:
        raise InputError(f"{name} must be at least 1, found {count}")
    return count


def _times(grid: str, steps: int) -> Float[Array, "n"]:
    times = np.asarray(build("grid", grid, GRIDS)(_positive("steps", steps)), np.float32)
    if times.shape != (steps + 1,) or times[0] != 0 or times[-1] != 1 or not (np.diff(times) > 0).all():
        raise InputError(f"grid {grid!r} must return {steps + 1} rising times from 0 to 1")
    return jnp.asarray(times)


def _slope(velocity_fn: Velocity, reverse: bool) -> Slope:
    """Return the velocity with respect to a clock that runs from 0 to 1 in both directions of t."""

    if reverse:
        return lambda x, clock: -velocity_at(velocity_fn, x, 1 - clock)
    return lambda x, clock: velocity_at(velocity_fn, x, clock)


def _slopes(slope, x, t, h, tableau, slopes, start: int | Array = 0):
    """The slopes k_i of a step; those before `start` are given."""
    a, c = jnp.asarray(tableau.matrix), jnp.asarray(tableau.c)

    def stage(i, slopes):
        return slopes.at[i].set(slope(x + h * _weighted(a[i], slopes), t + c[i] * h))

    return lax.fori_loop(start, tableau.stages, stage, slopes)


def _weighted(weights, slopes):
    """Σ_i w_i k_i, exactly float32 on every device (a matmul may round more)."""
    weights = jnp.asarray(weights, jnp.float32)
    return jnp.sum(weights.reshape(-1, *(1,) * (slopes.ndim - 1)) * slopes, axis=0)


def _largest_mean_square(x):
    return jnp.max(jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim))))


def _start_trajectory(x, steps, rest):
    return jnp.full((steps + 1, *x.shape), rest, x.dtype).at[0].set(x)
