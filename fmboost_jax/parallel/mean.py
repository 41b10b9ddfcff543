"""The mean over devices of what each computes from its own examples, summed as one vector.

XLA's CPU backend sums arrays of several processes one by one over gloo, which takes about 1 ms an array. A training
step has hundreds of small gradients. TPUs and GPUs combine them by themselves.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from fmboost_jax.parallel.mesh import AXES

# Arrays of at most this many values are summed as one vector. It takes memory beside them; the large ones do without.
SMALL = 2**20


def sums_at_once(mesh: Mesh) -> bool:
    """Return whether `mean_over_devices` is the faster way: CPUs that differ in their examples alone."""
    data, *others = (mesh.shape[axis] for axis in AXES)
    return data > 1 and all(size == 1 for size in others) and mesh.devices.flat[0].platform == "cpu"


def mean_over_devices(function: Callable[[Any, Any], Any], mesh: Mesh) -> Callable[[Any, Any], Any]:
    """Return a function of global arrays that is the mean of `function` over the shares of the axis `data`.

    Args:
        function: (any tree, arrays with the same leading length) → tree of float32 arrays, a mean over the examples.
        mesh: see `sums_at_once`. The first argument is replicated, the second one is sharded over `data`.
    """

    def of_share(common: Any, examples: Any) -> Any:
        leaves, structure = jax.tree.flatten(function(common, examples))
        small = [leaf for leaf in leaves if leaf.size <= SMALL]
        vector, unravel = ravel_pytree(small)
        summed = iter(unravel(jax.lax.psum(vector, "data")))
        sums = [next(summed) if leaf.size <= SMALL else jax.lax.psum(leaf, "data") for leaf in leaves]
        return jax.tree.unflatten(structure, [total / mesh.shape["data"] for total in sums])

    specs = PartitionSpec(), PartitionSpec("data")
    return jax.shard_map(of_share, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
