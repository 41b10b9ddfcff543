"""The training state and one step of it: draw noise and time, couple, regress the velocity, update, average."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from fmboost_jax.flow.coupling import sample_noise
from fmboost_jax.flow.loss import flow_matching_loss, sample_time
from fmboost_jax.flow.paths import make_path
from fmboost_jax.models.first_stage import LatentSpec
from fmboost_jax.models.parameters import merge, split
from fmboost_jax.models.unet import UNet, abstract_unet
from fmboost_jax.training.config import TrainingConfig
from fmboost_jax.training.ema import update_ema
from fmboost_jax.training.optimizer import global_norm, learning_rate, make_optimizer, settle, where_finite

State = dict[str, object]


def init_state(config: TrainingConfig) -> State:
    """A fresh state: `step` (int32), `parameters`, `ema`, `optimizer`, all from `config.seed`. Meant to be jitted."""
    model = UNet(config.architecture, rngs=nnx.Rngs(jax.random.key(config.seed)))
    parameters = split(model)[1]
    return {
        "step": jnp.zeros((), jnp.int32),
        "parameters": parameters,
        "ema": jax.tree.map(jnp.copy, parameters),
        "optimizer": make_optimizer(config.optim).init(parameters),
    }


def make_train_step(config: TrainingConfig, latents: LatentSpec):
    """The function (state, batch) → (state, metrics) of a config, to be jitted with the state donated.

    The batch holds `low`, `high` (b, h, w, c), raw latents, and `position` (b,), each example's place in the
    endless stream of examples. All randomness is `fold_in(fold_in(seed, step), position)`, so neither the number of
    processes nor an interruption changes it. Metrics are float32 scalars: `loss`, `gradient_norm`, `learning_rate`.

    A step whose loss or gradient is not finite leaves parameters, average and optimiser as they were.
    """
    graph, path, optimizer = (
        split(abstract_unet(config.architecture))[0],
        make_path(config.path),
        make_optimizer(config.optim),
    )
    rate = learning_rate(config.optim)
    coupling, dropout = config.coupling, config.architecture.dropout

    def scale(latent):
        return latents.scale(latent.astype(jnp.float32))

    def loss_fn(parameters, low, high, keys):
        unet = merge(graph, parameters)
        # One key of its own for each of: noise, time, dropout, upsampling.
        noise_keys, time_keys, dropout_keys, mode_keys = jax.vmap(lambda key: jax.random.split(key, 4))(keys).T
        x1 = scale(high)
        x0, context = coupling.couple(
            scale(low),
            x1.shape[1:3],
            sample_noise(noise_keys, x1.shape[1:]),
            sample_noise(mode_keys, x1.shape[1:]) if coupling.draws_upsampling_noise else None,
        )

        def velocity(x, t):
            return unet.velocity(x, t, context, dropout_key=dropout_keys[0] if dropout else None)

        return flow_matching_loss(velocity, path, x0, x1, sample_time(time_keys)).mean()

    def train_step(state: State, batch: dict[str, Array]) -> tuple[State, dict[str, Array]]:
        step, parameters = state["step"], state["parameters"]
        step_key = jax.random.fold_in(jax.random.key(config.seed), step)
        keys = jax.vmap(lambda position: jax.random.fold_in(step_key, position))(batch["position"])
        loss, gradient = accumulated_gradient(
            loss_fn, parameters, (batch["low"], batch["high"], keys), config.optim.accumulate
        )
        norm = global_norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, moments = optimizer.update(gradient, state["optimizer"], parameters, finite=finite)
        parameters = settle(where_finite(finite, optax.apply_updates(parameters, updates), parameters))
        ema = config.ema
        average = update_ema(state["ema"], parameters, step + 1, decay=ema.decay, copy_until=ema.copy_until)
        average = where_finite(finite, average, state["ema"])
        state = {"step": step + 1, "parameters": parameters, "ema": average, "optimizer": moments}
        return state, {"loss": loss, "gradient_norm": norm, "learning_rate": jnp.float32(rate(step))}

    return train_step


def accumulated_gradient(loss_fn, parameters, batch, parts: int):
    """Loss and gradient of the mean over a batch, computed in `parts` one after the other for less memory."""
    gradient_fn = jax.value_and_grad(loss_fn)
    if parts == 1:
        return gradient_fn(parameters, *batch)
    # Example i goes to part i mod `parts`: every device keeps its own examples.
    split_batch = jax.tree.map(lambda a: a.reshape(a.shape[0] // parts, parts, *a.shape[1:]).swapaxes(0, 1), batch)

    def add(total, part):
        return jax.tree.map(jnp.add, total, gradient_fn(parameters, *part)), None

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, parameters))
    total, _ = jax.lax.scan(add, zero, split_batch)
    return jax.tree.map(lambda a: a / parts, total)
