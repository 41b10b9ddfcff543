"""The training state and one step of it: draw noise, couple, evaluate the objective, update."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from fmboost_jax.flow.coupling import record_keys, sample_noise, source_keys
from fmboost_jax.flow.objectives import make_objective
from fmboost_jax.flow.paths import make_path
from fmboost_jax.models.discriminator import make_discriminator
from fmboost_jax.models.first_stage import LatentSpec
from fmboost_jax.models.networks import abstract_network, make_network
from fmboost_jax.models.parameters import Parameters, abstract, fresh_keys, merge, split
from fmboost_jax.parallel.mean import mean_over_devices, sums_at_once
from fmboost_jax.training.config import TrainingConfig
from fmboost_jax.training.finish import Finish, Judge
from fmboost_jax.training.optimizer import learning_rate, make_optimizer
from fmboost_jax.training.state import TrainState


def init_state(config: TrainingConfig) -> TrainState:
    """Return the state of a fresh run, all from `config.seed`; meant to be jitted with a static config."""
    key, optimizer = jax.random.key(config.seed), make_optimizer(config.optim)
    state = TrainState.create(split(make_network(config.architecture, key))[1], optimizer)
    discriminator = config.finish.discriminator_config(config.architecture)
    if discriminator is None:
        return state
    parameters = split(make_discriminator(discriminator, rngs=fresh_keys(jax.random.fold_in(key, 1))))[1]
    moments = optimizer.init(parameters)  # pyright: ignore[reportArgumentType] (optax's stubs know no dict of arrays)
    return dataclasses.replace(state, discriminator={"parameters": parameters, "optimizer": moments})


def make_train_step(
    config: TrainingConfig,
    latents: LatentSpec,
    finish: Finish | None = None,
    noise_seed: int | None = None,
    mesh: Mesh | None = None,
):
    """Return the function (state, batch, decoder) → (state, metrics) of a config, for `jax.jit` with the state donated.

    The batch holds `low`, `high` (b, h, w, c), raw latents, and `position` (b,), each example's place in the
    endless stream of examples; with `image` (b, f·h, f·w, 3), uint8, a finish compares with the images themselves. All
    randomness is `fold_in(fold_in(seed, step), position)`, so neither the number of processes nor an interruption
    changes it. `decoder` holds the decoder's parameters where there is a finish. Metrics are float32 scalars: `loss`,
    `gradient_norm`, `learning_rate`, and with a finish each term of the loss.

    With `noise_seed`, that of a dataset's `Teacher`, the noise of x0 is the record's instead. The batch then holds
    `record` (b,) too, the number of each example's record.

    On a `mesh` of CPUs whose only axis is `data`, `mean_over_devices` sums the gradients, unless the network has
    dropout or the devices divide a group of examples that the objective treats together.

    A step whose loss or gradient is not finite changes neither parameters nor average nor optimiser state.
    """
    graph, path = split(abstract_network(config.architecture))[0], make_path(config.path)
    objective = make_objective(config.objective)
    optimizer, rate = make_optimizer(config.optim), learning_rate(config.optim)
    # `group`: see `Objective`. Dropout has one mask for the whole batch.
    group, dropout = getattr(objective, "group", 1), getattr(config.architecture, "dropout", 0.0)
    coupling, discriminator = config.coupling, config.finish.discriminator_config(config.architecture)
    judge_graph = None if discriminator is None else split(abstract(make_discriminator, discriminator))[0]

    def scale(latent):
        return latents.scale(latent.astype(jnp.float32))

    def loss_fn(trained, teacher, decoder, due, low, high, keys, corner_keys, kept, image):
        parameters, judging = trained
        # Separate keys for noise, time, dropout and upsampling.
        noise_keys, time_keys, dropout_keys, mode_keys = jax.vmap(lambda key: jax.random.split(key, 4))(keys).T
        if kept is not None:
            noise_keys, mode_keys = source_keys(kept)
        x1 = scale(high)
        x0, context = coupling.couple(
            scale(low),
            (x1.shape[1], x1.shape[2]),
            sample_noise(noise_keys, x1.shape[1:]),
            sample_noise(mode_keys, x1.shape[1:]) if coupling.draws_upsampling_noise else None,
        )

        def velocity_fn(weights, dropout_key=None):
            network = merge(graph, weights)

            def velocity(x, t, second_time=None, examples=slice(None)):
                second = {} if second_time is None else {"second_time": second_time}
                return network.velocity(x, t, context[examples], dropout_key=dropout_key, **second)

            return velocity

        online = velocity_fn(parameters, dropout_keys[0])
        averaged = velocity_fn(teacher) if objective.needs_teacher else None
        if finish is None:
            return objective.loss(online, path, x0, x1, time_keys, averaged).mean(), {}
        judge = None if judge_graph is None else Judge(judge_graph, judging, context, due)
        key = jax.random.fold_in(corner_keys[0], 1)
        terms = finish.terms(decoder, online, objective, x0, x1, key, judge, image)
        if finish.config.velocity:
            loss = objective.loss(online, path, x0, x1, time_keys, averaged).mean()
            terms["velocity"] = finish.config.velocity * loss
        return jnp.sum(jnp.stack(list(terms.values()))), terms

    def train_step(
        state: TrainState, batch: dict[str, Array], decoder: Parameters | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        step_key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        keys = jax.vmap(lambda position: jax.random.fold_in(step_key, position))(batch["position"])
        kept = None if noise_seed is None else record_keys(noise_seed, batch["record"])
        due = state.step % config.finish.discriminator_every == 0
        judging = None if state.discriminator is None else state.discriminator["parameters"]
        parts = config.optim.accumulate
        # The key of the first example of each part, for all examples of the part: one corner on all devices.
        corner_keys = None if finish is None else keys[jnp.arange(len(keys)) % parts]
        examples = batch["low"], batch["high"], keys, corner_keys, kept, batch.get("image")

        def gradient_of(common, examples):
            trained, *others = common
            return accumulated_gradient(
                lambda trained, *examples: loss_fn(trained, *others, *examples), trained, examples, parts
            )

        common = (state.parameters, judging), state.ema, decoder, due
        share = 1 if mesh is None else len(keys) // (mesh.shape["data"] * parts)
        if mesh is not None and sums_at_once(mesh) and not dropout and share % group == 0:
            result = mean_over_devices(gradient_of, mesh)(common, examples)
        else:
            result = gradient_of(common, examples)
        (loss, terms), (gradient, judges_gradient) = result
        new, metrics = state.apply_gradient(loss, gradient, optimizer, config.ema)
        if judging is not None:
            new = new.train_discriminator(judges_gradient, optimizer, due, config.finish.discriminator_rate)
        return new, metrics | {"learning_rate": rate(state.step)} | terms

    return train_step


def accumulated_gradient(loss_fn, parameters, batch, parts: int):
    """Return ((loss, terms), gradient) of the mean over a batch, computed in sequential `parts` for less memory."""
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if parts == 1:
        return gradient_fn(parameters, *batch)
    # Example i goes to part i mod `parts`: every device keeps its own examples.
    split_batch = jax.tree.map(lambda a: a.reshape(a.shape[0] // parts, parts, *a.shape[1:]).swapaxes(0, 1), batch)

    def add(total, part):
        return jax.tree.map(jnp.add, total, gradient_fn(parameters, *part)), None

    first = jax.tree.map(lambda a: a[0], split_batch)
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(gradient_fn, parameters, *first))
    total, _ = jax.lax.scan(add, zero, split_batch)
    return jax.tree.map(lambda a: a / parts, total)
