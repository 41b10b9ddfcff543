"""Boosting latent diffusion with flow matching, in JAX: small latents to large ones, and on to images.

from fmboost_jax import Booster

large = Booster.from_pretrained("photo-x2")(image)

Source: "Boosting Latent Diffusion with Flow Matching", Schusterbauer et al., ECCV 2024, arXiv 2312.07360.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmboost_jax.boosting.booster import Booster
    from fmboost_jax.errors import InputError
    from fmboost_jax.flow.sde import StochasticSolver
    from fmboost_jax.flow.solvers import Solver

__version__ = "0.2.0"

# Imported at first use: a command that needs no network starts at once.
_PUBLIC = {
    "Booster": "fmboost_jax.boosting.booster",
    "InputError": "fmboost_jax.errors",
    "Solver": "fmboost_jax.flow.solvers",
    "StochasticSolver": "fmboost_jax.flow.sde",
}
_PACKAGES = ("boosting", "data", "flow", "generation", "images", "interop", "metrics", "models", "training")

__all__ = ["Booster", "InputError", "Solver", "StochasticSolver", "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public class or a sub-package at its first use."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"fmboost_jax.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, *_PACKAGES})
