"""The boost as a pure function: from low-res latents along the flow to high-res latents.

Training's evaluation, the `Booster` and its exports share it.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from fmboost_jax.errors import InputError
from fmboost_jax.flow.coupling import Coupling
from fmboost_jax.flow.sde import StochasticSolver
from fmboost_jax.flow.solvers import Solver, guided
from fmboost_jax.parallel.sharding import shared


def boost_latents(
    velocity_fn: Callable[[Array, Array, Array], Array],
    low_res: Float[Array, "b h w c"],
    noise: Float[Array, "b H W c"],
    *,
    coupling: Coupling,
    solver: Solver | StochasticSolver,
    upsampling_noise: Float[Array, "b H W c"] | None = None,
    step_noise: Float[Array, "steps b H W c"] | None = None,
    guidance: float | None = None,
    return_trajectory: bool = False,
) -> Float[Array, "b H W c"] | Float[Array, "n b H W c"]:
    """Integrate the flow from t = 0 to 1. Call it inside `jax.jit`.

    Args:
        velocity_fn: (x, t, context) → dx/dt.
        low_res: scaled low-res latents; with PSU they already have the noise's size.
        noise: standard normal, of the high-res latents' shape.
        coupling: how x0 and context follow from the low-res latents.
        solver: how to integrate: the ODE, or the SDE of a flow that starts from noise.
        upsampling_noise: standard normal, where `coupling.draws_upsampling_noise`.
        step_noise: standard normal, one slice a step of a `StochasticSolver`.
        guidance: scale of classifier-free guidance with a context of zeros as the null context; default: none.
        return_trajectory: return the states at all points of the time grid; of a `Solver` alone.

    Returns:
        Scaled high-res latents, float32.

    Raises:
        InputError: the SDE of a flow that starts from low-res latents, or without noise for its steps.
    """
    x0, context = coupling.couple(low_res, noise.shape[1:3], noise, upsampling_noise)
    x0, context = shared(x0), shared(context)
    if guidance is None:

        def velocity(x, t):
            return velocity_fn(x, t, context)
    else:
        velocity = guided(velocity_fn, context, jnp.zeros_like(context), guidance)
    if isinstance(solver, Solver):
        return solver.integrate(velocity, x0, return_trajectory=return_trajectory)
    if coupling.start != "noise":
        raise InputError("stochastic sampling needs a flow that starts from noise, not from low-res latents")
    if step_noise is None or return_trajectory:
        raise InputError("stochastic sampling needs noise for its steps and returns no trajectory")
    return solver.integrate(velocity, x0, step_noise)
