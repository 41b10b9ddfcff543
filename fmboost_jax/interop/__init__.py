"""Weights of other projects in and out: the PyTorch reference, CompVis, diffusers, TAESD."""

import numpy as np
from flax import nnx

from fmboost_jax.interop.autoencoders import (
    autoencoder_state_dict,
    load_autoencoder_kl,
    load_autoencoder_tiny,
    load_first_stage,
)
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
    """A model's parameters as a PyTorch state dict: the way back of every loader here, bit for bit in float32.

    Args:
        model: a `UNet`, `AutoencoderKL` or `AutoencoderTiny`.
        names: of an autoencoder: "compvis", "diffusers" or "old_diffusers" (KL), "taesd" or "diffusers" (tiny); None
            for those that it was loaded from. A UNet has the reference's.

    Raises:
        InputError: names that there are not.
    """
    if isinstance(model, UNet):
        return export(model, REFERENCE_UNET)
    return autoencoder_state_dict(model, names or model.weight_names)
