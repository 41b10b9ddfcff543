"""A booster as the teacher of another flow (reflow)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.checks import check_finite
from fmboost_jax.boosting.program import jitted_flow
from fmboost_jax.data.dataset import DatasetInfo, Teacher
from fmboost_jax.data.reflow import Boost
from fmboost_jax.errors import InputError
from fmboost_jax.flow.boost import check_solver
from fmboost_jax.flow.coupling import record_keys
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.parallel.sharding import batch_sharding, example_sharding


def teach(booster: Booster, pairs: DatasetInfo, solver: Solver, *, draws: int, seed: int) -> tuple[Teacher, Boost]:
    """Return a teacher's description, and the function that boosts low-res latents of `pairs` with it.

    Args:
        booster: the trained flow.
        pairs: dataset of low-res latents.
        solver: solver of the flow. Fixed grids of 20 steps and more are close to the exact flow.
        draws: records for each low-res latent, 1 or more.
        seed: seed of the noise.

    Raises:
        InputError: a booster of another autoencoder, factor or upsampling than the dataset, or steps that its network
            does not take.
    """
    booster.first_stage.spec.check(pairs.latents, f"dataset {pairs.folder}")
    found = pairs.high_res // pairs.low_res, pairs.upsampling
    if found != (booster.factor, booster.coupling.upsampling):
        raise InputError(
            f"the teacher enlarges ×{booster.factor} by {booster.coupling.upsampling}, the pairs of {pairs.folder} are "
            f"×{found[0]} by {found[1]}; choose another teacher or dataset"
        )
    check_solver(booster.objective, solver)

    def boost(low: Float[Array, "b h w c"], records: UInt32[np.ndarray, "b"]) -> Float[Array, "b H W c"]:
        keys = jax.device_put(record_keys(seed, jnp.asarray(records)), example_sharding(booster.mesh))
        with jax.set_mesh(booster.mesh):
            result = jitted_flow(
                booster.graph,
                booster.parameters,
                jax.device_put(low, batch_sharding(booster.mesh)),
                keys,
                size=pairs.high_shape[:2],
                coupling=booster.coupling,
                solver=solver,
                objective=booster.objective,
            )
        return check_finite(result, "the flow", booster.parameters)

    return Teacher(booster.fingerprint, solver.method, solver.steps, booster.coupling, draws, seed), boost
