"""The loop of a sampler: tables made on the host, one `fori_loop` on the device.

Every sampler of this package is linear. What follows a step is a weighted sum of the state, the network's outputs and
its estimates of x₀, the newest few of each, and fresh noise. `Tables` holds the weights, `sample` is the loop.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fmboost_jax.errors import InputError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tables:
    """Weights of a sampler's n steps: float32 arrays, or what JAX puts in their place (tracers, shapes).

    Attributes:
        noise_scale: (), factor of the standard normal noise that the loop starts from.
        times: (n,), timestep that the network is given.
        inputs: (n,), factor of the state where the network reads it.
        estimate: (n, 2), weights of the state and of the output in the estimate of x₀.
        states: (n, 2), weights of the state and of the one before it.
        outputs: (n, j), weights of the network's outputs, the newest first.
        estimates: (n, k), weights of the estimates of x₀, the newest first.
        noise: (n,), weight of fresh standard normal noise.
        clip: bound of the estimates; None for none.
        stochastic: whether any step adds noise.
    """

    noise_scale: Any
    times: Any
    inputs: Any
    estimate: Any
    states: Any
    outputs: Any
    estimates: Any
    noise: Any
    clip: float | None = dataclasses.field(metadata={"static": True})
    stochastic: bool = dataclasses.field(metadata={"static": True})


def sample(
    tables: Tables,
    network: Callable[[Array, Array], Array],
    noise: Float[Array, "b *s"],
    step_noise: Callable[[Array], Array] | None = None,
) -> Float[Array, "b *s"]:
    """Run a sampler from noise to image in one `fori_loop`; pure, meant for the inside of a jitted function.

    Args:
        tables: from a sampler's `tables`.
        network: (scaled state, timestep) → what it predicts, of the state's shape.
        noise: standard normal.
        step_noise: number of the step → standard normal noise of the state's shape; for stochastic tables only.

    Returns:
        The last state, float32.
    """
    depth, memory = tables.outputs.shape[1], tables.estimates.shape[1]
    tables = jax.tree.map(jnp.asarray, tables)

    def step(index, carry):
        state, before, outputs, estimates = carry
        row = jax.tree.map(lambda table: table[index] if table.ndim else table, tables)
        output = network(state * row.inputs, row.times).astype(jnp.float32)
        following = row.states[0] * state
        if depth > 1:
            # Only multistep samplers of outputs go back to the state before.
            following += row.states[1] * before
        if depth:
            outputs = jnp.concatenate([output[None], outputs[: depth - 1]])
            following += jnp.tensordot(row.outputs, outputs, 1, precision="highest")
        if memory:
            estimate = row.estimate[0] * state + row.estimate[1] * output
            if tables.clip is not None:
                estimate = jnp.clip(estimate, -tables.clip, tables.clip)
            estimates = jnp.concatenate([estimate[None], estimates[: memory - 1]])
            following += jnp.tensordot(row.estimates, estimates, 1, precision="highest")
        if tables.stochastic:
            assert step_noise is not None, "a stochastic sampler needs step_noise"
            following += row.noise * step_noise(index)
        return following, state if depth > 1 else before, outputs, estimates

    start = noise.astype(jnp.float32) * tables.noise_scale
    empty = [jnp.zeros((count, *start.shape), jnp.float32) for count in (depth, memory)]
    before = jnp.zeros_like(start) if depth > 1 else jnp.zeros(())
    return jax.lax.fori_loop(0, len(tables.times), step, (start, before, *empty))[0]


def make_tables(
    times, *, states, noise_scale=1.0, inputs=None, estimate=None, outputs=None, estimates=None, noise=None, clip=None
) -> Tables:
    """Tables in float32; what is not given has no weight."""
    count = len(times)

    def columns(table, least: int) -> np.ndarray:
        table = np.zeros((count, 0)) if table is None else np.asarray(table, np.float64).reshape(count, -1)
        missing = max(0, least - table.shape[1])
        return np.pad(table, ((0, 0), (0, missing))).astype(np.float32)

    noise = np.zeros(count) if noise is None else noise
    if not all(np.all(np.isfinite(table)) for table in (estimate, states, outputs, estimates) if table is not None):
        raise InputError("prediction_type 'epsilon' says nothing about x₀ at zero terminal SNR; expected v_prediction")
    return Tables(
        noise_scale=np.asarray(noise_scale, np.float32),
        times=np.asarray(times, np.float32),
        inputs=np.ones(count, np.float32) if inputs is None else np.asarray(inputs, np.float32),
        estimate=columns(estimate, 2),
        states=columns(states, 2),
        outputs=columns(outputs, 0),
        estimates=columns(estimates, 0),
        noise=np.asarray(noise, np.float32),
        clip=clip,
        stochastic=bool(np.any(noise)),
    )
