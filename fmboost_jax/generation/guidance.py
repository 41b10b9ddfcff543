"""Guidance of diffusion models by a text: classifier-free guidance, its rescaling, and LCM's embedding of the scale."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def guide(
    outputs: Float[Array, "b2 *s"], scale: Float[Array, ""], rescale: Float[Array, ""] | float = 0.0
) -> Float[Array, "b *s"]:
    """Classifier-free guidance of a batch that holds the unconditional half first (arXiv 2207.12598).

    Args:
        outputs: of the network, 2b examples.
        scale: 1 takes the conditional half alone.
        rescale: share, 0 to 1, of a result whose deviation is that of the conditional half (arXiv 2305.08891,
            equation 16).
    """
    without, conditional = jnp.split(outputs.astype(jnp.float32), 2)
    guided = without + scale * (conditional - without)
    axes = tuple(range(1, guided.ndim))
    ratio = jnp.std(conditional, axes, keepdims=True) / jnp.std(guided, axes, keepdims=True)
    return jnp.where(rescale > 0, rescale * guided * ratio + (1 - rescale) * guided, guided)


def guidance_embedding(scale: Float[Array, ""], width: int) -> Float[Array, "1 width"]:
    """Sines, then cosines, of 1000 · (scale − 1): what an LCM reads in place of classifier-free guidance.

    Source: arXiv 2310.04378; frequencies 10000^(−i / (width/2 − 1)).
    """
    half = width // 2
    frequencies = 10000.0 ** (-jnp.arange(half) / (half - 1))
    angles = 1000.0 * (scale - 1) * frequencies
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])
    return jnp.pad(embedding, (0, width % 2))[None]
