"""The boost's program: what it needs of memory."""

import functools

import jax
import jax.numpy as jnp

from fmboost_jax.boosting.program import flow_from_keys, jitted_flow
from fmboost_jax.flow.coupling import Coupling
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.models.parameters import abstract, split
from fmboost_jax.models.unet import UNet, UNetConfig


def test_operations_of_large_maps_run_one_by_one():
    """XLA's default order on CPUs keeps more maps at once: here half as many again, six times at full width."""
    config = UNetConfig(
        model_channels=32, channel_mult=(1, 2, 4), num_res_blocks=3, attention_resolutions=(), num_heads=1
    )
    graph, parameters = split(abstract(UNet, config))
    low, keys = (
        jax.ShapeDtypeStruct((1, 64, 64, 4), jnp.float32),
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1)),
    )
    settings = {"size": (64, 64), "coupling": Coupling(), "solver": Solver("euler", 1)}
    plain = jax.jit(functools.partial(flow_from_keys, graph, **settings))
    programs = plain.lower(parameters, low, keys), jitted_flow.lower(graph, parameters, low, keys, **settings)
    default, least = (program.compile().memory_analysis().temp_size_in_bytes for program in programs)
    assert least < 0.75 * default, (least, default)
