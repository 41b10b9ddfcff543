"""Feature maps of a network that needs no download: what a perceptual distance and a discriminator of images see."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fmboost_jax.metrics.efficientnet import EfficientNetLite, load_efficientnet_lite0

BLOCKS = 3  # of efficientnet-lite0

Maps = list[Float[Array, "b _ _ _"]]

# Channels of the maps that a discriminator of images sees, of 1/2 and 1/4 of the image's size.
JUDGED_CHANNELS = (32 + 12, 24)


@functools.cache
def load_perceptual_network() -> EfficientNetLite:
    """Return efficientnet-lite0, loaded once.

    Raises:
        InputError: the package with its weights is not installed.
    """
    # The first call may be in a function that is traced: what is cached must not belong to its trace.
    with jax.ensure_compile_time_eval():
        return load_efficientnet_lite0()


def perceptual_maps(features: EfficientNetLite, image: Float[Array, "b h w 3"]) -> Maps:
    """Return the first feature maps of images in [-1, 1], of 1/2 and 1/4 of their size.

    Args:
        features: see `load_perceptual_network`.
        image: in [-1, 1].
    """
    return features.maps(127.5 * (image + 1), BLOCKS)


def perceptual_distance(maps: Maps, targets: Maps) -> Float[Array, ""]:
    """Square distance of two images' feature maps, each position's features scaled to length 1, summed over the maps.

    That is LPIPS without learned weights (Zhang et al. 2018, arXiv 1801.03924, equation 1). A decoder trained with it
    preserves texture that pixel losses alone smooth.

    Args:
        maps: of an image, see `perceptual_maps`.
        targets: of the other one.
    """
    pairs = ((_unit_length(a), _unit_length(b)) for a, b in zip(maps, targets, strict=True))
    return jnp.sum(jnp.stack([jnp.mean(jnp.sum((a - b) ** 2, axis=-1)) for a, b in pairs]))


def judged_maps(image: Float[Array, "b h w 3"], maps: Maps) -> Maps:
    """Return what a discriminator of images sees: the first of its feature maps and the last.

    Squares of 2×2 pixels go with the first: patterns that the frozen maps do not show are visible in them.

    Args:
        image: in [-1, 1]; height and width are even.
        maps: of the image, see `perceptual_maps`.
    """
    b, h, w, c = image.shape
    squares = image.reshape(b, h // 2, 2, w // 2, 2, c).swapaxes(2, 3).reshape(b, h // 2, w // 2, 4 * c)
    return [jnp.concatenate([maps[0], squares], axis=-1), maps[-1]]


def standardised(maps: Maps, originals: Maps) -> Maps:
    """Return maps less the mean of the original's, over its standard deviation, for each channel of each example.

    Differences between similar images are small beside the maps' own values. A discriminator with a spectral norm of 1
    hardly sees them otherwise.
    """

    def shift_and_scale(array, original):
        mean, deviation = (f(original, axis=(1, 2), keepdims=True) for f in (jnp.mean, jnp.std))
        return (array - mean) / (deviation + 0.05)  # some channels are 0 everywhere

    return list(map(shift_and_scale, maps, originals))


def _unit_length(array: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    return array * jax.lax.rsqrt(jnp.sum(array**2, axis=-1, keepdims=True) + 1e-6)
