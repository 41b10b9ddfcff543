"""The boost as a pure function: from low-res latents along the flow to high-res latents.

Training's evaluation, the `Booster` and its exports share it.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from fmboost_jax.errors import InputError
from fmboost_jax.flow.coupling import Coupling
from fmboost_jax.flow.guidance import guided
from fmboost_jax.flow.objectives import FlowMatching, Objective
from fmboost_jax.flow.sde import StochasticSolver
from fmboost_jax.flow.solvers import Solver, integrate_mean_velocity
from fmboost_jax.parallel.sharding import shared

_FLOW = FlowMatching()


def check_solver(objective: Objective, solver: Solver | StochasticSolver) -> None:
    """Refuse a solver for which a network with two times was not trained; other networks take every solver.

    Raises:
        InputError: the network predicts the mean velocity over a whole step, and the method is not Euler's, or the
            objective does not support this number of steps.
    """
    if objective.time_inputs != 2:
        return
    name = type(objective).__name__
    if isinstance(solver, StochasticSolver):
        raise InputError(f"a network trained by {name} takes whole steps of the ODE; it cannot sample the SDE")
    if solver.method != "euler":
        raise InputError(f"a network trained by {name} takes whole steps; method must be euler, found {solver.method}")
    objective.check_steps(solver.steps)


def boost_latents(
    velocity_fn: Callable[..., Array],
    low_res: Float[Array, "b h w c"],
    noise: Float[Array, "b H W c"],
    *,
    coupling: Coupling,
    solver: Solver | StochasticSolver,
    objective: Objective = _FLOW,
    upsampling_noise: Float[Array, "b H W c"] | None = None,
    step_noise: Float[Array, "steps b H W c"] | None = None,
    guidance: float | None = None,
    return_trajectory: bool = False,
) -> Float[Array, "b H W c"] | Float[Array, "n b H W c"]:
    """Integrate the flow from t = 0 to 1. Call it inside `jax.jit`.

    Args:
        velocity_fn: (x, t, context) → dx/dt; (x, t, context, second_time=…) → mean velocity over a whole step, where
            the objective has two times.
        low_res: scaled low-res latents; with PSU they already have the noise's size.
        noise: standard normal noise of the high-res latents' shape.
        coupling: maps low-res latents to x0 and context.
        solver: integrates the ODE, or the SDE of a flow that starts from noise.
        objective: the network's training objective. Default: flow matching.
        upsampling_noise: standard normal, where `coupling.draws_upsampling_noise`.
        step_noise: standard normal noise, one slice for each step of a `StochasticSolver`.
        guidance: scale of classifier-free guidance with zeros as the null context. Default: no guidance.
        return_trajectory: return the states at all points of the time grid; only with a `Solver`. Default: False.

    Returns:
        Scaled high-res latents, float32.

    Raises:
        InputError: the SDE of a flow that starts from low-res latents, or without noise for its steps; see
            `check_solver`.
    """
    check_solver(objective, solver)
    x0, context = coupling.couple(low_res, noise.shape[1:3], noise, upsampling_noise)
    x0, context = shared(x0), shared(context)
    if objective.time_inputs == 2:
        return _whole_steps(velocity_fn, x0, context, solver, objective, guidance, return_trajectory)

    def plain(x, t):
        return velocity_fn(x, t, context)

    velocity = plain if guidance is None else guided(velocity_fn, context, jnp.zeros_like(context), guidance)
    if isinstance(solver, Solver):
        return solver.integrate(velocity, x0, return_trajectory=return_trajectory)
    if coupling.start != "noise":
        raise InputError("stochastic sampling needs a flow that starts from noise, not from low-res latents")
    if step_noise is None or return_trajectory:
        raise InputError("stochastic sampling needs noise for its steps and returns no trajectory")
    return solver.integrate(velocity, x0, step_noise)


def _whole_steps(velocity_fn, x0, context, solver, objective, guidance, return_trajectory) -> Array:
    """Integrate a network that predicts the mean velocity over a step, from t to its arrival."""

    def conditioned(x, t, conditioning):
        context, arrival = conditioning
        return velocity_fn(x, t, context, second_time=objective.second_time(t, arrival))

    def mean_velocity(x, t, arrival):
        if guidance is None:
            return conditioned(x, t, (context, arrival))
        return guided(conditioned, (context, arrival), (jnp.zeros_like(context), arrival), guidance)(x, t)

    return integrate_mean_velocity(
        mean_velocity, x0, steps=solver.steps, grid=solver.grid, return_trajectory=return_trajectory
    )
