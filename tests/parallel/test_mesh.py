"""Meshes of eight virtual devices, and what lies where on them."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fmboost_jax.errors import InputError
from fmboost_jax.parallel.mesh import make_mesh
from fmboost_jax.parallel.sharding import state_shardings


def sizes(data, fsdp, spatial):
    return {"data": data, "fsdp": fsdp, "spatial": spatial}


@pytest.mark.parametrize(
    ("asked", "found"),
    [((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((1, 8, 1), (1, 8, 1)), ((-1, 8, 1), (1, 8, 1))],
)
def test_one_size_takes_what_is_left(asked, found):
    assert tuple(make_mesh(sizes(*asked)).shape.values()) == found


@pytest.mark.parametrize("asked", [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (8, 8, 1), (0, 1, 8), (-1, 16, 1)])
def test_sizes_that_do_not_fit_are_refused(asked):
    with pytest.raises(InputError, match="8 devices"):
        make_mesh(sizes(*asked))


def test_rules_split_large_parameters_with_their_moments_and_leave_small_ones_whole():
    mesh = make_mesh(sizes(2, 4, 1))
    state = {
        part: {
            "down.0.conv1.kernel": jax.ShapeDtypeStruct((3, 3, 64, 128), np.float32),
            "down.0.conv1.bias": jax.ShapeDtypeStruct((2**16,), np.float32),
            "down.0.norm1.scale": jax.ShapeDtypeStruct((2**16,), np.float32),
            "odd.kernel": jax.ShapeDtypeStruct((3, 3, 63, 129), np.float32),
            "small.kernel": jax.ShapeDtypeStruct((4, 4), np.float32),
        }
        for part in ("parameters", "optimizer")
    }
    for part in state_shardings(mesh, state).values():
        assert part["down.0.conv1.kernel"].spec == PartitionSpec(None, None, None, "fsdp")
        assert all(part[name].is_fully_replicated for name in part if name != "down.0.conv1.kernel")
