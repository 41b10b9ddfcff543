"""Models with random weights, made without compiling an initialisation for every layer."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fmboost_jax.models.parameters import abstract, merge, split


def random_model(model: type[nnx.Module], config: Any, seed: int = 0) -> nnx.Module:
    """`model(config)` with kernels at 1/√fan-in, scales near 1 and biases near 0, none zero."""
    generator = np.random.default_rng(seed)
    graph, shapes = split(abstract(model, config))
    drawn = {}
    for name, shape in shapes.items():
        noise = generator.standard_normal(shape.shape, np.float32)
        kernel = name.endswith("kernel")
        noise = noise / np.sqrt(shape.size / shape.shape[-1]) if kernel else 0.1 * noise + name.endswith("scale")
        drawn[name] = jnp.asarray(noise, jnp.float32)
    return merge(graph, drawn)
