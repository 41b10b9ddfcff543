"""The boost as one jitted program: noise from keys, coupling, integration."""

from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from fmboost_jax.flow.boost import boost_latents
from fmboost_jax.flow.coupling import Coupling, sample_noise, sample_noise_field, source_keys
from fmboost_jax.flow.objectives import FlowMatching, Objective
from fmboost_jax.flow.sde import StochasticSolver
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.models.networks import VelocityNetwork
from fmboost_jax.models.parameters import Parameters, merge
from fmboost_jax.runtime.compilation import FLOW_OPTIONS

_FLOW = FlowMatching()


def flow_from_keys(
    graph,
    parameters: Parameters,
    low: Float[Array, "b h w c"],
    keys: Key[Array, "b"],
    offsets: Int[Array, "b 2"] | None = None,
    *,
    size: tuple,
    coupling: Coupling,
    solver: Solver | StochasticSolver,
    objective: Objective = _FLOW,
    guidance: float | None = None,
    return_trajectory: bool = False,
) -> Float[Array, "b H W c"] | Float[Array, "b n H W c"]:
    """Call `boost_latents` with a split network and noise from keys; inside a larger program, else see `jitted_flow`.

    Args:
        graph, parameters: of the network, see `fmboost_jax.models.parameters.split`.
        low: scaled low-res latents; with PSU they already have the size `size`.
        keys: one an image.
        offsets: of tiles, their upper left latent in the image's latents; tiles that overlap share their noise there.
            Default: none.
        size: height and width of the high-res latents.
        coupling, solver, objective, guidance: see `boost_latents`.
        return_trajectory: return the states at all points of the time grid, on the second axis.
    """
    shape = (*size, low.shape[-1])
    # The SDE's steps fold their keys from those of the upsampling.
    noise_keys, other_keys = source_keys(keys)

    def draw(keys: Key[Array, "b"]) -> Array:
        return sample_noise(keys, shape) if offsets is None else sample_noise_field(keys, offsets, shape)

    step_noise = None
    if isinstance(solver, StochasticSolver):
        fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
        step_noise = jax.vmap(lambda step: draw(fold(other_keys, step)))(jnp.arange(solver.steps))
    result = boost_latents(
        cast(VelocityNetwork, merge(graph, parameters)).velocity,
        low,
        draw(noise_keys),
        coupling=coupling,
        solver=solver,
        objective=objective,
        upsampling_noise=draw(other_keys) if coupling.draws_upsampling_noise else None,
        step_noise=step_noise,
        guidance=guidance,
        return_trajectory=return_trajectory,
    )
    return jnp.moveaxis(result, 0, 1) if return_trajectory else result


jitted_flow = jax.jit(
    flow_from_keys,
    static_argnums=0,
    static_argnames=("size", "coupling", "solver", "objective", "guidance", "return_trajectory"),
    compiler_options=FLOW_OPTIONS,
)
