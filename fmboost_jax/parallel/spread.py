"""A function of images over all devices: parameters on each of them, images shared out."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Shaped

from fmboost_jax.parallel.sharding import example_sharding


class Spread:
    """Calls `function(parameters, *images)` on batches of one size, whatever the number of images.

    Args:
        function: jitted; arrays of one leading length → one array of the same.
        parameters: a tree of arrays; copied to every device once.
        mesh: the devices; examples are split over `data` and `fsdp`.
        batch_size: images at once over all devices; rounded up to a multiple of their number.
    """

    def __init__(self, function: Callable, parameters: Any, mesh: Mesh, batch_size: int):
        self._function = function
        self._parameters = jax.device_put(parameters, NamedSharding(mesh, PartitionSpec()))
        self._sharding = example_sharding(mesh)
        devices = mesh.shape["data"] * mesh.shape["fsdp"]
        self._batch_size = devices * math.ceil(batch_size / devices)

    def __call__(self, *images: Shaped[np.ndarray, "n ..."]) -> Shaped[np.ndarray, "n ..."]:
        """The function's values for all images; the last batch is filled up with copies of its last image."""
        count, results = len(images[0]), []
        for first in range(0, count, self._batch_size):
            chosen = np.minimum(np.arange(first, first + self._batch_size), count - 1)
            part = jax.device_put([array[chosen] for array in images], self._sharding)
            results.append(np.asarray(self._function(self._parameters, *part))[: count - first])
        return np.concatenate(results)
