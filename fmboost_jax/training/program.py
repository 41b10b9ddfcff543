"""The train step as one program with the shapes and shardings of its arguments, for training and for plans."""

import jax
import numpy as np
from jax.sharding import Mesh

from fmboost_jax.data.dataset import DTYPES, Recipe
from fmboost_jax.parallel.sharding import batch_sharding, example_sharding, replicated, state_shardings
from fmboost_jax.training.config import TrainingConfig
from fmboost_jax.training.finish import Finish
from fmboost_jax.training.step import init_state, make_train_step


def abstract_state(config: TrainingConfig, mesh: Mesh):
    """Shapes of the training state, each with its sharding."""
    shapes = jax.jit(init_state, static_argnums=0).eval_shape(config)
    return jax.tree.map(
        lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, shapes, config.architecture.replicated),
    )


def abstract_batch(config: TrainingConfig, recipe: Recipe, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one batch of latent pairs, each with its sharding."""
    dtype, pairs = DTYPES[recipe.dtype], batch_sharding(mesh)
    arrays = {
        "low": (recipe.low_shape, dtype, pairs),
        "high": (recipe.high_shape, dtype, pairs),
        "position": ((), np.uint32, example_sharding(mesh)),
    }
    if recipe.images and config.finish.decodes:
        arrays["image"] = (recipe.image_shape, np.uint8, pairs)
    if recipe.teacher is not None:
        arrays["record"] = ((), np.uint32, example_sharding(mesh))
    return {
        name: jax.ShapeDtypeStruct((config.train.batch_size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype, sharding) in arrays.items()
    }


def lower_train_step(
    config: TrainingConfig, recipe: Recipe, mesh: Mesh, finish: Finish | None = None
) -> jax.stages.Lowered:
    """The train step of a config for the devices of a mesh, state donated; to be compiled.

    With a finish it takes the decoder's parameters, replicated, as a third argument.
    """
    state = abstract_state(config, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    noise_seed = None if recipe.teacher is None else recipe.teacher.seed
    step = make_train_step(config, recipe.latents, finish, noise_seed, mesh)
    program = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    arguments = state, abstract_batch(config, recipe, mesh)
    if finish is None:
        return program.lower(*arguments)
    everywhere = replicated(mesh)
    decoder = {
        name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere) for name, a in finish.parameters.items()
    }
    return program.lower(*arguments, decoder)
