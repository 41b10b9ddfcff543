"""Meshes of eight virtual devices, and the sharding of arrays on them."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fmboost_jax.errors import InputError
from fmboost_jax.models.unet import UNetConfig
from fmboost_jax.parallel.mesh import make_mesh
from fmboost_jax.parallel.sharding import distinct_shares, example_sharding, process_share, state_shardings


def sizes(data, fsdp, spatial):
    return {"data": data, "fsdp": fsdp, "spatial": spatial}


@pytest.mark.parametrize(
    ("asked", "found"),
    [((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((1, 8, 1), (1, 8, 1)), ((-1, 8, 1), (1, 8, 1))],
)
def test_one_size_takes_the_remaining_devices(asked, found):
    assert tuple(make_mesh(sizes(*asked)).shape.values()) == found


@pytest.mark.parametrize("asked", [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (8, 8, 1), (0, 1, 8), (-1, 16, 1)])
def test_sizes_that_do_not_fit_are_refused(asked):
    with pytest.raises(InputError, match="8 devices"):
        make_mesh(sizes(*asked))


def test_rules_shard_large_parameters_and_their_moments_and_replicate_small_ones():
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
    for part in state_shardings(mesh, state, UNetConfig.replicated).values():
        assert part["down.0.conv1.kernel"].spec == PartitionSpec(None, None, None, "fsdp")
        assert all(part[name].is_fully_replicated for name in part if name != "down.0.conv1.kernel")


@pytest.mark.parametrize(
    ("held", "shares"),
    [
        ({0: {0}, 1: {4}}, [[0], [4]]),
        ({0: {0}, 1: {0}, 2: {8}, 3: {8}}, [[0], [8]]),  # two processes share a height
        ({0: {0, 1, 4, 5}, 1: {2, 3, 6, 7}}, [[0, 1, 4, 5], [2, 3, 6, 7]]),  # as TPU hosts lie in a slice
    ],
)
def test_processes_read_the_examples_of_their_devices(held, shares):
    assert distinct_shares(held) == shares


def test_shares_that_overlap_are_refused():
    with pytest.raises(InputError, match="overlap"):
        distinct_shares({0: {0, 4}, 1: {4, 8}})


def test_one_process_reads_all_examples():
    assert process_share(example_sharding(make_mesh(sizes(2, 2, 2))), 8) == (0, 1)
