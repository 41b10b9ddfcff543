"""Perceptual distance of two images, in feature maps of a network that needs no download."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fmboost_jax.metrics.efficientnet import EfficientNetLite, load_efficientnet_lite0

BLOCKS = 3  # of efficientnet-lite0


@functools.cache
def load_perceptual_network() -> EfficientNetLite:
    """Return efficientnet-lite0, loaded once.

    Raises:
        InputError: the package with its weights is not installed.
    """
    return load_efficientnet_lite0()


def perceptual_distance(
    features: EfficientNetLite, image: Float[Array, "b h w 3"], target: Float[Array, "b h w 3"]
) -> Float[Array, ""]:
    """Square distance of the first feature maps, each position's features scaled to length 1, summed over the maps.

    That is LPIPS without learned weights (Zhang et al. 2018, arXiv 1801.03924, equation 1), in maps of 1/2 and 1/4 of
    the images' size. A decoder trained with it preserves texture that pixel losses alone smooth.

    Args:
        features: see `load_perceptual_network`.
        image: in [-1, 1].
        target: in [-1, 1].
    """

    def maps(images):
        return [_unit_length(array) for array in features.maps(127.5 * (images + 1), BLOCKS)]

    pairs = zip(maps(image), maps(target), strict=True)
    return jnp.sum(jnp.stack([jnp.mean(jnp.sum((a - b) ** 2, axis=-1)) for a, b in pairs]))


def _unit_length(array: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    return array * jax.lax.rsqrt(jnp.sum(array**2, axis=-1, keepdims=True) + 1e-6)
