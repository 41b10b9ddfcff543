"""An autoencoder from outside the package: blocks of 2² pixels become channels; it has no weights."""

import dataclasses

from flax import nnx

from fmboost_jax.interop.autoencoder_kinds import AUTOENCODERS, AutoencoderKind
from fmboost_jax.models.autoencoder_tiny import from_patches, to_patches


@dataclasses.dataclass(frozen=True)
class ShuffledConfig:
    """Its latents."""

    latent_channels: int = 12
    downsampling: int = 2
    scaling_factor: float = 2.0
    shift_factor: float = 0.0
    dtype: str = "float32"


class Shuffled(nnx.Module):
    """Pixels in another order."""

    def __init__(self, config: ShuffledConfig, *, rngs: nnx.Rngs):
        self.config = config

    def encode(self, image):
        """Its blocks, and no variance."""
        return to_patches(image, 2), None

    def decode(self, latent):
        """The image again."""
        return from_patches(latent, 2)

    def decoder_flops(self, height, width):
        """Nothing is multiplied."""
        return 0


AUTOENCODERS["shuffled"] = AutoencoderKind(ShuffledConfig, Shuffled, has_weights=False)
