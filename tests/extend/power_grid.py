"""A time grid from outside the package."""

import dataclasses

import numpy as np

from fmboost_jax.flow.solvers import GRIDS


@dataclasses.dataclass(frozen=True)
class PowerGrid:
    """Powers of uniform times."""

    power: float = 2.0

    def __call__(self, steps: int) -> np.ndarray:
        """The steps + 1 times."""
        return np.linspace(0, 1, steps + 1) ** self.power


GRIDS["power"] = PowerGrid
