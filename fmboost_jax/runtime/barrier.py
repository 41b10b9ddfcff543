"""An optimization barrier for CPUs, where XLA's fusion costs memory traffic."""

from typing import TypeVar

import jax

T = TypeVar("T")


def cpu_optimization_barrier(tree: T) -> T:
    """Return the tree; on CPUs XLA computes all of it before its users, elsewhere there is no barrier."""
    return jax.lax.platform_dependent(tree, cpu=jax.lax.optimization_barrier, default=lambda same: same)
