"""Discriminators with spectrally normalised convolutions, of latents and of images.

Kernels are divided by their largest singular value (Miyato et al. 2018, arXiv 1802.05957, equation 8), so that the
logits are bounded.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmboost_jax.models.blocks import conv

SLOPE = 0.2  # of the leaky ReLUs
LAYOUT = ("NHWC", "HWIO", "NHWC")
POWER_ITERATIONS = 4


@dataclasses.dataclass(frozen=True)
class LatentDiscriminatorConfig:
    """Widths of the network.

    Attributes:
        channels: of the latents and their context together.
        width: channels of the first convolution; the others have twice as many.
    """

    channels: int
    width: int = 64


@dataclasses.dataclass(frozen=True)
class ImageDiscriminatorConfig:
    """Widths of the network.

    Attributes:
        channels: of each map of features.
        width: channels of the convolutions.
    """

    channels: tuple[int, ...]
    width: int = 64


DiscriminatorConfig: TypeAlias = LatentDiscriminatorConfig | ImageDiscriminatorConfig


class PatchClassifier(nnx.Module):
    """Convolutions of 3×3 whose kernels have the spectral norm 1; leaky ReLUs between them."""

    def __init__(self, widths: Sequence[int], strides: Sequence[int], rngs: nnx.Rngs):
        self.strides = tuple(strides)
        layers = itertools.pairwise(widths)
        self.layers = nnx.List(conv(before, after, dtype=jnp.float32, rngs=rngs) for before, after in layers)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 1"]:
        """Return the logit of each patch: positive for patches classified as original."""
        for i, (layer, stride) in enumerate(zip(self.layers, self.strides, strict=True)):
            weights = {name: array.get_value() for name, array in nnx.state(layer).items()}
            kernel = weights["kernel"] / spectral_norm(weights["kernel"])
            x = jax.nn.leaky_relu(x, SLOPE) if i else x
            x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=LAYOUT)
            x = x + weights["bias"]
        return x


class LatentDiscriminator(PatchClassifier):
    """Classifies patches of 13×13 positions of a latent and its context.

    Source: Isola et al. 2017, arXiv 1611.07004, section 2.2.2.
    """

    def __init__(self, config: LatentDiscriminatorConfig, *, rngs: nnx.Rngs):
        self.config = config
        super().__init__([config.channels, config.width, 2 * config.width, 2 * config.width, 1], (1, 2, 1, 1), rngs)


class ImageDiscriminator(nnx.Module):
    """Classifies patches of an image in feature maps of a frozen network, each map by its own convolutions.

    Source: Sauer et al. 2021, "Projected GANs Converge Faster", arXiv 2111.01007, section 3.2, without the random
    projections between the maps.
    """

    def __init__(self, config: ImageDiscriminatorConfig, *, rngs: nnx.Rngs):
        self.config = config
        widths = [[channels, *(config.width,) * 4, 1] for channels in config.channels]
        self.maps = nnx.List(PatchClassifier(each, (1, 2, 1, 2, 1), rngs) for each in widths)

    def __call__(self, maps: Sequence[Float[Array, "b _ _ _"]]) -> list[Float[Array, "b _ _ 1"]]:
        """Return the logits of each map: positive for patches classified as original."""
        return [classify(features) for classify, features in zip(self.maps, maps, strict=True)]


def make_discriminator(config: DiscriminatorConfig, *, rngs: nnx.Rngs) -> LatentDiscriminator | ImageDiscriminator:
    """Return the discriminator of a config, with fresh weights."""
    if isinstance(config, ImageDiscriminatorConfig):
        return ImageDiscriminator(config, rngs=rngs)
    return LatentDiscriminator(config, rngs=rngs)


def spectral_norm(kernel: Float[Array, "*inputs outputs"]) -> Float[Array, ""]:
    """Largest singular value of a kernel as a matrix from patches to channels, by power iteration from a fixed vector.

    The gradient flows through the matrix alone (Miyato et al. 2018, equation 11). Every call starts from a vector of
    ones, so there is no state to keep.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    fixed = jax.lax.stop_gradient(matrix)
    right = jnp.ones(matrix.shape[1])
    left = _unit(fixed @ right)
    for _ in range(POWER_ITERATIONS):
        right = _unit(left @ fixed)
        left = _unit(fixed @ right)
    return left @ matrix @ right


def _unit(vector: Float[Array, "n"]) -> Float[Array, "n"]:
    return vector / (jnp.linalg.norm(vector) + 1e-12)
