"""Inference: the Booster, bundles, programs for other machines, folders of photographs."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmboost_jax.boosting.booster import Booster
    from fmboost_jax.boosting.bundle import BundleConfig, read_bundle, write_bundle
    from fmboost_jax.boosting.diffusers import boost_pipeline, load_pipeline, prompt_latents
    from fmboost_jax.boosting.folder import boost_folder, boost_latents_into, boost_prompts

# Imported at first use: some need optional packages.
_PUBLIC = {
    "Booster": "booster",
    "BundleConfig": "bundle",
    "boost_folder": "folder",
    "boost_latents_into": "folder",
    "boost_pipeline": "diffusers",
    "boost_prompts": "folder",
    "load_pipeline": "diffusers",
    "prompt_latents": "diffusers",
    "read_bundle": "bundle",
    "write_bundle": "bundle",
}

__all__ = [
    "Booster",
    "BundleConfig",
    "boost_folder",
    "boost_latents_into",
    "boost_pipeline",
    "boost_prompts",
    "load_pipeline",
    "prompt_latents",
    "read_bundle",
    "write_bundle",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"fmboost_jax.boosting.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
