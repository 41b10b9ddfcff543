"""The programs that a plan compiles: the train step, the boost of a batch, the decoding of its latents."""

import math

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmboost_jax.boosting.program import jitted_flow
from fmboost_jax.data.dataset import Recipe
from fmboost_jax.errors import InputError
from fmboost_jax.flow.objectives import make_objective
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.interop.autoencoders import AUTOENCODERS, abstract_first_stage, load_first_stage
from fmboost_jax.models.first_stage import FirstStage
from fmboost_jax.models.networks import abstract_network
from fmboost_jax.models.parameters import Parameters, merge, rounded, split
from fmboost_jax.parallel.sharding import batch_sharding, example_sharding
from fmboost_jax.registry import choose
from fmboost_jax.training.config import TrainingConfig
from fmboost_jax.training.program import lower_train_step

MODES = ("train", "sample", "decode")


def lower(config: TrainingConfig, mode: str, mesh: Mesh, solver: Solver) -> jax.stages.Lowered:
    """Lower the program of a mode for `config.train.batch_size` images on the devices of a mesh.

    Raises:
        InputError: a batch that the mesh does not divide, or a config with contradictory parts.
    """
    rows = math.prod(mesh.shape[axis] for axis in ("data", "fsdp"))
    parts = rows * (config.optim.accumulate if mode == "train" else 1)
    if config.train.batch_size % parts:
        raise InputError(
            f"the mesh does not divide a batch of {config.train.batch_size}: expected a multiple of {parts}, "
            "data × fsdp × optim.accumulate; change the batch per chip or train.batch_size"
        )
    stage = first_stage(config)
    recipe = recipe_of(config, stage)
    if mode == "train":
        return lower_train_step(config, recipe, mesh)
    with jax.set_mesh(mesh):
        if mode == "sample":
            return _lower_sample(config, recipe, mesh, solver)
        return _lower_decode(config, recipe, stage, mesh)


def first_stage(config: TrainingConfig) -> FirstStage:
    """Return the config's first stage; without a path, Stable Diffusion's architecture with abstract weights."""
    kind, path = config.first_stage.kind, config.first_stage.path
    if path or not choose("first stage kind", kind, AUTOENCODERS).has_weights:
        return load_first_stage(kind, path, config.first_stage.dtype)
    channels = config.architecture.state_channels
    return abstract_first_stage(kind, latent_channels=channels, dtype=config.first_stage.dtype)


def recipe_of(config: TrainingConfig, stage: FirstStage) -> Recipe:
    """Return the recipe of the run's latent pairs.

    Raises:
        InputError: the latents' channels are not those of the network's state.
    """
    if stage.channels != config.architecture.state_channels:
        raise InputError(
            f"the first stage's latents have {stage.channels} channels, the network's state has "
            f"{config.architecture.state_channels}"
        )
    return Recipe.of(config.data, stage, config.seed)


def _lower_sample(config: TrainingConfig, recipe: Recipe, mesh: Mesh, solver: Solver) -> jax.stages.Lowered:
    """The Booster's program: noise from keys, coupling, integration. Every chip has all parameters."""
    graph, parameters = split(abstract_network(config.architecture))
    parameters = jax.eval_shape(lambda parameters: rounded(graph, parameters), parameters)
    batch, keys = config.train.batch_size, jax.eval_shape(lambda: jax.random.key(0))
    return jitted_flow.lower(
        graph,
        _everywhere(parameters, mesh),
        jax.ShapeDtypeStruct((batch, *recipe.low_shape), "float32", sharding=batch_sharding(mesh)),
        jax.ShapeDtypeStruct((batch,), keys.dtype, sharding=example_sharding(mesh)),
        size=recipe.high_shape[:2],
        coupling=config.coupling,
        solver=solver,
        objective=make_objective(config.objective),
    )


def _lower_decode(config: TrainingConfig, recipe: Recipe, stage: FirstStage, mesh: Mesh) -> jax.stages.Lowered:
    graph, parameters = split(stage.model)
    shape = (config.train.batch_size, *recipe.high_shape)

    def decode(parameters, latent):
        return merge(graph, parameters).decode(stage.spec.unscale(latent))

    return jax.jit(decode).lower(
        _everywhere(parameters, mesh),
        jax.ShapeDtypeStruct(shape, "float32", sharding=batch_sharding(mesh)),
    )


def _everywhere(parameters: Parameters, mesh: Mesh) -> Parameters:
    """Shapes of parameters that are replicated on every chip, as in the Booster."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), parameters)
