"""What the tests of the benchmarks measure, apart from them: each process imports this module, without JAX."""

import functools
import os

import numpy as np


def busy(products: int):
    """So many products of matrices."""
    matrix = np.ones((64, 64))
    return lambda: [matrix @ matrix for _ in range(products)]


def hold(gib: float):
    """Eight times as many GiB, for a moment."""
    return functools.partial(np.ones, int(gib * 2**30))


def fail():
    """Not available."""
    raise ValueError("no such library\nsecond line")


def die():
    """Ends its process."""
    return lambda: os._exit(3)
