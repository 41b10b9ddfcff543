"""The boost as one jitted program: noise from keys, coupling, integration."""

import functools

import jax

from fmboost_jax.flow.boost import boost_latents
from fmboost_jax.flow.coupling import Coupling, sample_noise
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.models.parameters import Parameters, merge


@functools.partial(jax.jit, static_argnums=0, static_argnames=("size", "coupling", "solver"))
def flow_from_keys(graph, parameters: Parameters, low, keys, *, size, coupling: Coupling, solver: Solver):
    """`boost_latents` with a split network and its noise from keys, one an image; `size` is the high-res latents'."""
    shape = (*size, low.shape[-1])
    # One key of its own for each of: noise, upsampling.
    noise_keys, mode_keys = jax.vmap(lambda key: jax.random.split(key, 2))(keys).T
    upsampling_noise = sample_noise(mode_keys, shape) if coupling.draws_upsampling_noise else None
    return boost_latents(
        merge(graph, parameters).velocity,
        low,
        sample_noise(noise_keys, shape),
        coupling=coupling,
        solver=solver,
        upsampling_noise=upsampling_noise,
    )
