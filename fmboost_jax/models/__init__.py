"""The networks: the velocity UNet and the first stages (autoencoders)."""

from fmboost_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from fmboost_jax.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from fmboost_jax.models.first_stage import FirstStage, LatentSpec
from fmboost_jax.models.networks import NETWORKS, NetworkConfig, NetworkKind, VelocityNetwork
from fmboost_jax.models.unet import UNet, UNetConfig

__all__ = [
    "NETWORKS",
    "AutoencoderKL",
    "AutoencoderKLConfig",
    "AutoencoderTiny",
    "AutoencoderTinyConfig",
    "FirstStage",
    "LatentSpec",
    "NetworkConfig",
    "NetworkKind",
    "UNet",
    "UNetConfig",
    "VelocityNetwork",
]
