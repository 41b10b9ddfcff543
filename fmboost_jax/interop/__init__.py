"""Conversion of weights from and to other projects: the PyTorch reference, CompVis, diffusers, TAESD."""

import numpy as np
from flax import nnx

from fmboost_jax.interop.autoencoder_kinds import load_autoencoder_kl, load_autoencoder_tiny
from fmboost_jax.interop.autoencoders import autoencoder_state_dict, load_first_stage
from fmboost_jax.interop.folders import load_model, save_model
from fmboost_jax.interop.names import export
from fmboost_jax.interop.tables import REFERENCE_UNET
from fmboost_jax.interop.unet import load_lightning, load_unet, unet_config
from fmboost_jax.models.unet import UNet

__all__ = [
    "load_autoencoder_kl",
    "load_autoencoder_tiny",
    "load_first_stage",
    "load_lightning",
    "load_model",
    "load_unet",
    "save_model",
    "state_dict",
    "unet_config",
]


def state_dict(model: nnx.Module, names: str | None = None) -> dict[str, np.ndarray]:
    """Return a model's parameters as a PyTorch state dict, the inverse of the loaders, bit for bit in float32.

    Args:
        model: a `UNet`, `AutoencoderKL` or `AutoencoderTiny`.
        names: format of an autoencoder: "compvis", "diffusers" or "old_diffusers" (KL), "taesd" or "diffusers" (tiny).
            Default: the format that it was loaded from. A UNet has the reference's names.

    Raises:
        InputError: an unknown format, or a model without names in other projects.
    """
    if isinstance(model, UNet):
        return export(model, REFERENCE_UNET)
    return autoencoder_state_dict(model, names)
