"""Work on many examples in parts that fit into the device's memory."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fmboost_jax.errors import InputError


def in_batches(act: Callable, inputs: Sequence, batch_size: int | None, example: str, multiple: int = 1):
    """`act` on parts of the inputs, put together again.

    The last part is filled up with copies of its last example, so that all parts have one shape and share one compiled
    program. Where the device runs out of memory, the parts are halved and the work goes on.

    Args:
        act: arrays of one leading length → one array of the same.
        inputs: arrays of one leading length, 1 or more.
        batch_size: examples at once; all of them where None.
        example: what one example is, for the message.
        multiple: parts hold a multiple of so many examples: one or more for every device.

    Raises:
        InputError: a batch size below 1; or not even one example fits.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, found {batch_size}")
    count = len(inputs[0])
    size = _rounded_up(min(batch_size or count, count), multiple)
    first, parts = 0, []
    while first < count:
        chosen = np.minimum(np.arange(first, first + size), count - 1)
        part = inputs if size == count else [array[chosen] for array in inputs]
        try:
            result = jax.block_until_ready(act(*part))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            if size == multiple:
                raise InputError(
                    f"out of memory with {example}, one at a time on each device; give a smaller one, load the booster "
                    'with dtype="bfloat16", share its height among devices (spatial), or use one with more memory'
                ) from error
            size = _rounded_up(-(-size // 2), multiple)
            continue
        parts.append(result[: count - first])
        first += size
    if len(parts) == 1:
        return parts[0]
    return (np if isinstance(parts[0], np.ndarray) else jnp).concatenate(parts)


def _rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
