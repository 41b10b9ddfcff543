"""The finish: terms of the loss that compare the decoded result of one step with the decoded original.

A velocity loss weighs all latent channels alike, whatever their errors do to an image. The finish decodes the result
of one Euler step from the source and measures the image itself, through the frozen decoder.

Source: the second phase of RFMSR, arXiv 2607.12753; the perceptual distance is
`fmboost_jax.training.perceptual.perceptual_distance`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fmboost_jax.configuration import require, require_at_least
from fmboost_jax.flow.objectives import Network, Objective
from fmboost_jax.images.resize import shrink
from fmboost_jax.models.first_stage import FirstStage, LatentSpec
from fmboost_jax.models.parameters import Parameters, merge, split
from fmboost_jax.training.perceptual import load_perceptual_network, perceptual_distance

CONSISTENCY_FACTOR = 2  # by which images are shrunk before their colours are compared


@dataclasses.dataclass(frozen=True)
class FinishConfig:
    """Section `finish`: weights of the terms of the loss; a weight of 0 leaves a term and its cost out.

    Attributes:
        velocity: weight of the objective's own loss, over all times. At 0 the network becomes a map for one step, and
            an update costs one evaluation instead of two.
        latent: weight of the one-step result's mean square error.
        pixels: weight of each image's root mean square error, values in [-1, 1].
        perceptual: weight of the distance in feature maps of efficientnet-lite0.
        consistency: weight of the root mean square error of both images at half their size.
        crop: side of the decoded part in latent positions, cut at random; 0 for the whole latent.
    """

    velocity: float = 1.0
    latent: float = 0.0
    pixels: float = 0.0
    perceptual: float = 0.0
    consistency: float = 0.0
    crop: int = 0

    def __post_init__(self):
        require_at_least("finish.", self, velocity=0, latent=0, pixels=0, perceptual=0, consistency=0, crop=0)
        require("finish.", self, "velocity", "more than 0 where no other weight is", self.velocity > 0 or self.active)

    @property
    def active(self) -> bool:
        """Whether any term beside the objective's own loss has a weight."""
        return any((self.latent, self.pixels, self.perceptual, self.consistency))


@dataclasses.dataclass(frozen=True)
class Finish:
    """The terms of a config with the decoder that they need.

    Attributes:
        config: section `finish`.
        spec: of the latents.
        decode: (decoder's parameters, raw latents) → images in about [-1, 1].
        parameters: of the decoder, an argument of the train step, so that they are no constants of its program.
    """

    config: FinishConfig
    spec: LatentSpec
    decode: Callable[[Parameters, Array], Array]
    parameters: Parameters

    @classmethod
    def of(cls, config: FinishConfig, first_stage: FirstStage) -> "Finish | None":
        """Return the finish of a config with this first stage; None where all weights are 0."""
        if not config.active:
            return None
        graph, parameters = split(first_stage.model)
        return cls(config, first_stage.spec, lambda weights, raw: merge(graph, weights).decode(raw), parameters)

    def terms(
        self,
        parameters: Parameters,
        velocity_fn: Network,
        objective: Objective,
        x0: Float[Array, "b h w c"],
        x1: Float[Array, "b h w c"],
        key: Key[Array, ""],
    ) -> dict[str, Float[Array, ""]]:
        """Return the terms by name, each times its weight, float32.

        Args:
            parameters: of the decoder.
            velocity_fn: see `fmboost_jax.flow.objectives.Network`.
            objective: says what the network's second time is, where it has one.
            x0: sources, scaled latents.
            x1: targets, scaled latents.
            key: of the crops' corners.
        """
        start, end = jnp.zeros(len(x0)), jnp.ones(len(x0))
        second = objective.second_time(start, end)
        velocity = velocity_fn(x0, start) if second is None else velocity_fn(x0, start, second)
        result = x0 + velocity.astype(jnp.float32)
        config, terms = self.config, {}
        if config.latent:
            terms["latent"] = config.latent * jnp.mean(jnp.square(result - x1))
        if not any((config.pixels, config.perceptual, config.consistency)):
            return terms
        result, original = self._crop(key, result, x1)
        # Decoded activations are several times the latents' memory; they are computed again for the gradient.
        decode = jax.checkpoint(lambda latent: self.decode(parameters, self.spec.unscale(latent)))
        image = decode(result)
        target = jax.lax.stop_gradient(self.decode(parameters, self.spec.unscale(original)))
        if config.pixels:
            terms["pixels"] = config.pixels * root_mean_square(image - target)
        if config.perceptual:
            terms["perceptual"] = config.perceptual * perceptual_distance(load_perceptual_network(), image, target)
        if config.consistency:
            size = image.shape[1] // CONSISTENCY_FACTOR
            terms["consistency"] = config.consistency * root_mean_square(shrink(image - target, size))
        return terms

    def _crop(self, key: Key[Array, ""], *latents: Float[Array, "b h w c"]) -> tuple[Float[Array, "b s s c"], ...]:
        side, (height, width) = self.config.crop, latents[0].shape[1:3]
        if not side or side >= min(height, width):
            return latents
        row, column = (
            jax.random.randint(part, (), 0, size - side + 1)
            for part, size in zip(jax.random.split(key), (height, width), strict=True)
        )
        return tuple(
            jax.lax.dynamic_slice(x, (0, row, column, 0), (x.shape[0], side, side, x.shape[3])) for x in latents
        )


def root_mean_square(difference: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """Root mean square of each image, averaged over images: PSNR's error before the logarithm."""
    return jnp.mean(jnp.sqrt(jnp.mean(jnp.square(difference), axis=(1, 2, 3)) + 1e-8))
