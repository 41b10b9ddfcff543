"""Shardings of the training state and of batches.

A parameter, its EMA and its optimizer moments have the same sharding (ZeRO stage 3, Rajbhandari et al. 2019,
arXiv 1910.02054).
"""

import re

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmboost_jax.errors import InputError

AXIS = "fsdp"
# Arrays of fewer scalars are replicated: a gather would cost more than the memory that it saves.
FLOOR = 2**14


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of (batch, height, …) arrays: examples over `data` and `fsdp`, height over `spatial`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "spatial"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def example_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of (batch,) arrays."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def array_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Return `batch_sharding` for (batch, height, …) arrays of a shape, `example_sharding` for (batch,) arrays.

    Raises:
        InputError: the devices of `spatial` cannot share the height.
    """
    spatial = mesh.shape["spatial"]
    if len(shape) > 1 and shape[1] % spatial:
        raise InputError(
            f"{spatial} devices cannot share a height of {shape[1]}: it must be a multiple of {spatial}; give "
            "another size or a smaller spatial"
        )
    return batch_sharding(mesh) if len(shape) > 1 else example_sharding(mesh)


def shared(x: jax.Array) -> jax.Array:
    """Constrain a (batch, height, …) array to `batch_sharding` of the mesh in `jax.set_mesh`, inside a jitted function.

    Resizing gives every device whole maps; the constraint leaves each its examples and rows. Without a mesh, return x.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(("data", "fsdp"), "spatial"))


def process_share(sharding: NamedSharding, batch_size: int) -> tuple[int, int]:
    """Return the index of the share of a global batch that this process reads, and the number of shares.

    A process reads the examples of its devices. With spatial sharding over several processes, these processes have the
    same examples: they have the same share, and each reads all of it.

    Args:
        sharding: sharding of the batch's examples.
        batch_size: size of the global batch.

    Raises:
        InputError: shares of processes overlap but differ.
    """
    held: dict[int, set[int]] = {}
    for device, index in sharding.devices_indices_map((batch_size,)).items():
        held.setdefault(device.process_index, set()).add(index[0].indices(batch_size)[0])
    shares = distinct_shares(held)
    return shares.index(sorted(held[jax.process_index()])), len(shares)


def distinct_shares(held: dict[int, set[int]]) -> list[list[int]]:
    """Return the distinct sets of rows of the processes (process → first rows of its devices' parts), sorted.

    Raises:
        InputError: sets overlap or differ in size.
    """
    shares = sorted(map(sorted, {frozenset(rows) for rows in held.values()}))
    if sum(map(len, shares)) != len(set().union(*shares)) or len({len(share) for share in shares}) > 1:
        raise InputError(
            f"the mesh gives {len(held)} processes parts of a batch that overlap; mesh.spatial must be a multiple or a "
            "divisor of the number of devices of one process"
        )
    return shares


def state_shardings(mesh: Mesh, state, replicated: str):
    """Return a sharding for each leaf of a tree of arrays or of their shapes.

    Biases, small leaves and those that match `replicated` are replicated. Of the others, the `fsdp` axis shards the
    largest dimension that it divides.

    Args:
        mesh: mesh of the devices.
        state: the tree; the path of a leaf ends in the name of its parameter.
        replicated: regular expression of the network (`fmboost_jax.models.networks.NetworkConfig`).
    """
    pattern = re.compile(rf"({replicated})|\bbias$")
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _leaf_sharding(mesh, path, leaf, pattern), state)


def _leaf_sharding(mesh: Mesh, path, leaf, replicated: re.Pattern) -> NamedSharding:
    name = ".".join(str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", "")))) for entry in path)
    divisible = [dim for dim, size in enumerate(leaf.shape) if size % mesh.shape[AXIS] == 0]
    if mesh.shape[AXIS] == 1 or not divisible or leaf.size < FLOOR or replicated.search(name):
        return NamedSharding(mesh, PartitionSpec())
    largest = max(divisible, key=lambda dim: leaf.shape[dim])
    return NamedSharding(mesh, PartitionSpec(*[AXIS if dim == largest else None for dim in range(leaf.ndim)]))


def place(tree, shardings):
    """Copy a tree of arrays, equal in all processes, to the given shardings."""

    def copy(array, sharding):
        # Copy each array: arrays that share memory cannot be donated.
        return jax.make_array_from_callback(array.shape, sharding, lambda index: np.array(array[index]))

    return jax.tree.map(copy, jax.device_get(tree), shardings)
