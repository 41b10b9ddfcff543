"""A patch discriminator of latents with spectrally normalised convolutions.

Each output position classifies a patch of 13×13 latent positions (Isola et al. 2017, arXiv 1611.07004, section
2.2.2). Kernels are divided by their largest singular value (Miyato et al. 2018, arXiv 1802.05957, equation 8), so that
the logits are bounded.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmboost_jax.models.blocks import conv

SLOPE = 0.2  # of the leaky ReLUs
STRIDES = ((1, 1), (2, 2), (1, 1), (1, 1))
LAYOUT = ("NHWC", "HWIO", "NHWC")
POWER_ITERATIONS = 4


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Widths of the network.

    Attributes:
        channels: of the latents and their context together.
        width: channels of the first convolution; the others have twice as many.
    """

    channels: int
    width: int = 64


class PatchDiscriminator(nnx.Module):
    """Four convolutions of 3×3, the second with a stride of 2; leaky ReLUs between them."""

    def __init__(self, config: DiscriminatorConfig, *, rngs: nnx.Rngs):
        self.config = config
        widths = [config.channels, config.width, 2 * config.width, 2 * config.width, 1]
        layers = itertools.pairwise(widths)
        self.layers = nnx.List(conv(before, after, dtype=jnp.float32, rngs=rngs) for before, after in layers)

    def __call__(self, latent: Float[Array, "b h w c"], context: Float[Array, "b h w k"]) -> Float[Array, "b h2 w2 1"]:
        """Return the logit of each patch: positive for patches classified as original."""
        x = jnp.concatenate([latent, context], axis=-1)
        for i, layer in enumerate(self.layers):
            weights = {name: array.get_value() for name, array in nnx.state(layer).items()}
            kernel = weights["kernel"] / spectral_norm(weights["kernel"])
            x = jax.nn.leaky_relu(x, SLOPE) if i else x
            x = jax.lax.conv_general_dilated(x, kernel, STRIDES[i], "SAME", dimension_numbers=LAYOUT)
            x = x + weights["bias"]
        return x


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
