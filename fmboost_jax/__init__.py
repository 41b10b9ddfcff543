"""Boosting latent diffusion with flow matching, in JAX: small latents to large ones, and on to images.

Source: "Boosting Latent Diffusion with Flow Matching", Schusterbauer et al., ECCV 2024, arXiv 2312.07360.
"""

__version__ = "0.1.0"
