"""A path from outside the package."""

import dataclasses

from fmboost_jax.flow.paths import PATHS, Path


@dataclasses.dataclass(frozen=True)
class QuadraticPath(Path):
    """Straight lines that start slowly: α = t², σ = 1 − t²."""

    def alpha(self, t):
        """t²."""
        return t**2

    def sigma(self, t):
        """1 − t²."""
        return 1 - t**2


PATHS["quadratic"] = QuadraticPath
