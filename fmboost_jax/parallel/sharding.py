"""What lies where: one table of rules for the training state, one sharding for batches.

Parameters, their EMA and the optimiser's moments follow the same rule, so a parameter and all that belongs to it lie on
the same devices (ZeRO stage 3, Rajbhandari et al. 2019, arXiv 1910.02054).
"""

import re

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# (pattern of the leaf's path, axis that splits its largest divisible dimension or None to replicate it); the first
# match wins.
RULES = (
    (r"(norm\w*|time\d)\.(scale|bias|kernel)$", None),
    (r"\bbias$", None),
    (r"", "fsdp"),
)
# Below this many scalars a gather costs more than the memory is worth.
FLOOR = 2**14


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of (batch, height, …) arrays: examples over `data` and `fsdp`, height over `spatial`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "spatial"))


def example_sharding(mesh: Mesh) -> NamedSharding:
    """Of (batch,) arrays."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_shardings(mesh: Mesh, state):
    """A sharding for each leaf of a tree of arrays or of their shapes, by `RULES`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _leaf_sharding(mesh, path, leaf), state)


def _leaf_sharding(mesh: Mesh, path, leaf) -> NamedSharding:
    name = ".".join(str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", "")))) for entry in path)
    axis = next(axis for pattern, axis in RULES if re.search(pattern, name))
    if axis is None or leaf.size < FLOOR:
        return NamedSharding(mesh, PartitionSpec())
    divisible = [(size, -dim) for dim, size in enumerate(leaf.shape) if size % mesh.shape[axis] == 0]
    if mesh.shape[axis] == 1 or not divisible:
        return NamedSharding(mesh, PartitionSpec())
    dim = -max(divisible)[1]
    return NamedSharding(mesh, PartitionSpec(*[axis if d == dim else None for d in range(len(leaf.shape))]))
