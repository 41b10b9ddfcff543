"""A booster as the teacher of another flow (reflow), and of the decoder that decodes its results."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt32

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.checks import check_finite
from fmboost_jax.boosting.program import flow_from_keys, jitted_flow
from fmboost_jax.data.dataset import DatasetInfo, Teacher
from fmboost_jax.data.reflow import Boost
from fmboost_jax.errors import InputError
from fmboost_jax.flow.boost import check_solver
from fmboost_jax.flow.coupling import record_keys
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.images.resize import upsample
from fmboost_jax.models.parameters import Parameters, split
from fmboost_jax.parallel.sharding import batch_sharding, example_sharding
from fmboost_jax.training.autoencoder import FrozenFlow


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


def frozen_flow(booster: Booster, autoencoder: Parameters) -> FrozenFlow:
    """Return a booster for the training of a decoder; it integrates in its recommended number of steps.

    Args:
        booster: the trained flow.
        autoencoder: parameters of the autoencoder whose decoder is to be trained.

    Raises:
        InputError: the booster was trained on the latents of another encoder.
    """
    found, known = (
        {name: np.asarray(array) for name, array in parameters.items() if name.startswith("encoder.")}
        for parameters in (autoencoder, split(booster.first_stage.model)[1])
    )
    if found.keys() != known.keys() or not all(np.array_equal(found[name], known[name]) for name in known):
        raise InputError(f"booster {booster.name}: it was trained on the latents of another encoder")
    coupling, spec = booster.coupling, booster.first_stage.spec

    def run(
        parameters: Parameters,
        small: Float[Array, "b h w 3"],
        encode: Callable[[Float[Array, "b H W 3"]], Float[Array, "b y x c"]],
        key: Key[Array, ""],
    ) -> Float[Array, "b y x c"]:
        size = small.shape[1] * booster.factor, small.shape[2] * booster.factor
        grown = upsample(small, size, coupling.pixel_filter) if coupling.pixel_filter else small
        boosted = flow_from_keys(
            booster.graph,
            parameters,
            spec.scale(encode(grown)),
            jax.random.split(key, len(small)),
            size=(size[0] // spec.downsampling, size[1] // spec.downsampling),
            coupling=coupling,
            solver=booster.solver_with(),
            objective=booster.objective,
        )
        return spec.unscale(boosted)

    return FrozenFlow(booster.factor, run, booster.parameters)
