"""Boosting latent diffusion with flow matching, in JAX: small latents to large ones, and on to images.

Source: "Boosting Latent Diffusion with Flow Matching", Schusterbauer et al., ECCV 2024, arXiv 2312.07360.
"""

__version__ = "0.2.0"


def __getattr__(name: str):
    """`fmboost_jax.Booster`, imported only when asked for: commands that need no network start at once."""
    if name == "Booster":
        from fmboost_jax.boosting.booster import Booster

        return Booster
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
