"""An optimization barrier for CPUs, where XLA's fusion costs memory traffic."""

from typing import TypeVar

import jax

T = TypeVar("T")


def cpu_optimization_barrier(tree: T) -> T:
    """Return the tree; on CPUs all of it is computed before anything that uses it, elsewhere XLA is free."""
    return jax.lax.platform_dependent(tree, cpu=jax.lax.optimization_barrier, default=lambda same: same)
