"""Functions of batches, applied to any number of examples in parts of equal size, on one or more devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmboost_jax.errors import InputError
from fmboost_jax.parallel.sharding import array_sharding, example_sharding


def map_batches(
    function: Callable, arrays: Sequence, batch_size: int, *, multiple: int = 1, example: str | None = None
) -> Any:
    """Apply a function to parts of equal size, and concatenate the results.

    The last part is filled with copies of its last example, so that all parts have the same shape and use the same
    compiled program. Results of the copies are dropped.

    Args:
        function: function of arrays with the same leading length; it returns an array, or a tree of arrays, with that
            leading length.
        arrays: arrays with the same leading length, 1 or more.
        batch_size: examples per part.
        multiple: the size of a part is rounded up to a multiple of this, the number of devices that share a part.
        example: description of one example, for the error message. If it is given, parts are halved when the device
            runs out of memory.

    Returns:
        The results for all examples; numpy arrays if the function returns numpy arrays.

    Raises:
        InputError: a batch size below 1, or too little memory for one example on each device.
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
                    f"out of memory with {example}, one at a time on each device; use a smaller one, load the booster "
                    'with dtype="bfloat16", divide its height among devices (spatial), or use devices with more memory'
                ) from error
            size = _round_up(-(-size // 2), multiple)
            continue
        results.append(jax.tree.map(lambda array, first=first: array[: count - first], result))
        first += size
    return results[0] if len(results) == 1 else jax.tree.map(_concatenate, *results)


def map_on_mesh(mesh: Mesh, function: Callable, arrays: Sequence, batch_size: int | None, example: str) -> Any:
    """`map_batches` with each part sharded over the devices: examples over `data`, heights over `spatial`.

    Args:
        mesh: the devices.
        function: see `map_batches`; called with arrays on the devices.
        arrays: (batch, height, …) or (batch,), with the same batch.
        batch_size: examples per part; None: all.
        example: description of one example, for the error message.

    Raises:
        InputError: a height that the devices cannot share; as for `map_batches`.
    """

    def on_devices(*part):
        part = [jax.device_put(array, array_sharding(mesh, array.shape)) for array in part]
        with jax.set_mesh(mesh):
            return function(*part)

    count = len(arrays[0])
    size = count if batch_size is None else min(batch_size, count)
    return map_batches(on_devices, arrays, size, multiple=mesh.shape["data"], example=example)


def data_parallel(function: Callable, parameters: Any, mesh: Mesh, batch_size: int) -> Callable[..., np.ndarray]:
    """Return a data-parallel form of a function: all devices have the parameters, and each a part of the examples.

    Args:
        function: jitted function of parameters and arrays with the same leading length; it returns an array with that
            leading length.
        parameters: tree of arrays; copied to every device once.
        mesh: the devices; examples are sharded over `data` and `fsdp`.
        batch_size: examples per call over all devices; rounded up to a multiple of their number.

    Returns:
        A function of host arrays with any number of examples.
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
