"""Functions of batches applied to any number of examples: parts of one size, shared among devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmboost_jax.errors import InputError
from fmboost_jax.parallel.sharding import example_sharding


def map_batches(
    function: Callable, arrays: Sequence, batch_size: int, *, multiple: int = 1, example: str | None = None
) -> Any:
    """Apply a function to parts of equal size, and concatenate the results.

    The last part is filled with copies of its last example, so that all parts have one shape and share one compiled
    program; results of the copies are dropped.

    Args:
        function: arrays of one leading length → an array, or a tree of arrays, of the same leading length.
        arrays: of one leading length, 1 or more.
        batch_size: examples in a part.
        multiple: the size of a part is rounded up to a multiple of this: one or more examples for every device.
        example: description of one example, for the message. With it, parts are halved where the device runs out of
            memory.

    Returns:
        The function's results for all examples: numpy arrays where the function returns numpy arrays.

    Raises:
        InputError: a batch size below 1; not even one example on each device fits into memory.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, found {batch_size}")
    count, size = len(arrays[0]), _round_up(batch_size, multiple)
    first, results = 0, []
    while first < count:
        chosen = np.minimum(np.arange(first, first + size), count - 1)
        part = arrays if size == count else [array[chosen] for array in arrays]
        try:
            result = jax.block_until_ready(function(*part))
        except jax.errors.JaxRuntimeError as error:
            if example is None or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            if size == multiple:
                raise InputError(
                    f"out of memory with {example}, one at a time on each device; give a smaller one, load the booster "
                    'with dtype="bfloat16", share its height among devices (spatial), or use one with more memory'
                ) from error
            size = _round_up(-(-size // 2), multiple)
            continue
        results.append(jax.tree.map(lambda array, first=first: array[: count - first], result))
        first += size
    return results[0] if len(results) == 1 else jax.tree.map(_concatenate, *results)


def data_parallel(function: Callable, parameters: Any, mesh: Mesh, batch_size: int) -> Callable[..., np.ndarray]:
    """A function of images over all devices: parameters on each of them, images shared out.

    Args:
        function: jitted; (parameters, arrays of one leading length) → an array of the same leading length.
        parameters: a tree of arrays; copied to every device once.
        mesh: the devices; examples are split over `data` and `fsdp`.
        batch_size: images at once over all devices; rounded up to a multiple of their number.

    Returns:
        A function of host arrays with any number of images.
    """
    parameters = jax.device_put(parameters, NamedSharding(mesh, PartitionSpec()))
    sharding = example_sharding(mesh)

    def apply(*part: np.ndarray) -> np.ndarray:
        return np.asarray(function(parameters, *jax.device_put(list(part), sharding)))

    multiple = mesh.shape["data"] * mesh.shape["fsdp"]
    return lambda *arrays: map_batches(apply, arrays, batch_size, multiple=multiple)


def _concatenate(*parts: Any) -> Any:
    return (np if isinstance(parts[0], np.ndarray) else jnp).concatenate(parts)


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
