"""The boost as one jitted program: noise from keys, coupling, integration."""

import functools

import jax

from fmboost_jax.flow.boost import Source, boost_latents
from fmboost_jax.models.parameters import Parameters, merge


@functools.partial(jax.jit, static_argnums=0, static_argnames=("size", "source", "method", "steps"))
def flow_from_keys(graph, parameters: Parameters, low, keys, *, size, source: Source, method: str, steps: int):
    """`boost_latents` with a split network and its noise from keys, one an image; `size` is the high-res latents'."""
    shape = (*size, low.shape[-1])
    # One key of its own for each of: noise, upsampling.
    noise_keys, mode_keys = jax.vmap(lambda key: jax.random.split(key, 2))(keys).T
    draw = jax.vmap(lambda key: jax.random.normal(key, shape))
    upsampling_noise = draw(mode_keys) if source.mode == "noise" and source.upsampling == "lsu" else None
    return boost_latents(
        merge(graph, parameters).velocity,
        low,
        draw(noise_keys),
        source=source,
        method=method,
        steps=steps,
        upsampling_noise=upsampling_noise,
    )
