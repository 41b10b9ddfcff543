"""The finish: terms of the loss that compare the decoded result of one step with the original image.

A velocity loss weighs all latent channels alike, whatever their errors do to an image. The finish decodes the result
of one Euler step from the source and measures the image itself, through the frozen decoder. The original is the image
of the record, where the dataset has images (`data.images`), otherwise the decoded latent x1. The decoded latent lacks
what the autoencoder loses; compared with the image, the network also learns latents that lose less.

Source: the second phase of RFMSR, arXiv 2607.12753; the perceptual distance is
`fmboost_jax.training.perceptual.perceptual_distance`.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from fmboost_jax.configuration import require, require_at_least
from fmboost_jax.flow.objectives import Network, Objective
from fmboost_jax.images.resize import shrink, upsample
from fmboost_jax.images.value_range import to_float
from fmboost_jax.models.discriminator import DiscriminatorConfig, ImageDiscriminatorConfig, LatentDiscriminatorConfig
from fmboost_jax.models.first_stage import FirstStage, LatentSpec, decode_part, square
from fmboost_jax.models.networks import NetworkConfig
from fmboost_jax.models.parameters import Parameters, merge, split
from fmboost_jax.registry import check_name
from fmboost_jax.training.perceptual import (
    JUDGED_CHANNELS,
    judged_maps,
    load_perceptual_network,
    perceptual_distance,
    perceptual_maps,
    standardised,
)

# Positions at the edges of a decoded part that are not compared: there the decoder pads what the image continues.
MARGIN = 1

# What a discriminator sees and what it returns.
Sample: TypeAlias = Array | list[Array]

# Latent positions along each axis over which `repeating` takes means.
REPETITIONS = 4


@dataclasses.dataclass(frozen=True)
class FinishConfig:
    """Section `finish`: weights of the terms of the loss; a weight of 0 omits a term and its cost.

    Attributes:
        velocity: weight of the objective's own loss, over all times. At 0 the network becomes a map for one step, and
            an update costs one evaluation instead of two.
        latent: weight of the one-step result's mean square error.
        pixels: weight of each image's root mean square error, values in [-1, 1].
        perceptual: weight of the distance in feature maps of efficientnet-lite0.
        consistency: weight of the root mean square error of both images at the small image's size.
        grid: weight of the root mean square of the error that repeats from one latent position to the next, see
            `repeating`. Photographs have no such pattern.
        detail: weight of the root mean square error that remains after consistency with the small image, see
            `fmboost_jax.images.colour.consistency`.
        adversarial: weight of a patch discriminator's loss.
        discriminator: what it sees: "latents" with the context, or "images", in feature maps of efficientnet-lite0.
        discriminator_width: channels of its first convolution.
        discriminator_every: updates of the network for one of the discriminator.
        discriminator_rate: learning rate of the discriminator over that of the network (arXiv 1706.08500).
        crop: side of the decoded part in latent positions, cut at random; 0 for the whole latent. The outermost
            positions of a part are decoded but not compared.
    """

    velocity: float = 1.0
    latent: float = 0.0
    pixels: float = 0.0
    perceptual: float = 0.0
    consistency: float = 0.0
    grid: float = 0.0
    detail: float = 0.0
    adversarial: float = 0.0
    discriminator: str = "latents"
    discriminator_width: int = 64
    discriminator_every: int = 2
    discriminator_rate: float = 1.0
    crop: int = 0

    def __post_init__(self):
        weights = ("velocity", "latent", "pixels", "perceptual", "consistency", "grid", "detail", "adversarial")
        require("finish.", self, "discriminator_rate", "more than 0", self.discriminator_rate > 0)
        counts = {"discriminator_width": 1, "discriminator_every": 1, "crop": 0}
        require_at_least("finish.", self, **dict.fromkeys(weights, 0), **counts)
        check_name("finish.discriminator", self.discriminator, ("latents", "images"))
        needed = f"0 or more than {2 * MARGIN}"
        require("finish.", self, "crop", needed, self.crop == 0 or self.crop > 2 * MARGIN)
        require("finish.", self, "velocity", "more than 0 where no other weight is", self.velocity > 0 or self.active)

    @property
    def active(self) -> bool:
        """Whether any term beside the objective's own loss has a weight."""
        return any((self.latent, self.adversarial)) or self.decodes

    @property
    def decodes(self) -> bool:
        """Whether a term needs the decoder."""
        return any((self.pixels, self.perceptual, self.consistency, self.grid, self.detail, self.judges_images))

    @property
    def judges_images(self) -> bool:
        """Whether there is a discriminator of images."""
        return self.adversarial > 0 and self.discriminator == "images"

    def discriminator_config(self, network: NetworkConfig) -> DiscriminatorConfig | None:
        """Return the config of the discriminator beside a network; None where no weight needs one."""
        if not self.adversarial:
            return None
        if self.judges_images:
            return ImageDiscriminatorConfig(JUDGED_CHANNELS, self.discriminator_width)
        channels = network.state_channels + network.context_channels
        return LatentDiscriminatorConfig(channels, self.discriminator_width)


@dataclasses.dataclass(frozen=True)
class Finish:
    """The terms of a config with the decoder that they need.

    Attributes:
        config: section `finish`.
        spec: of the latents.
        decode: (decoder's parameters, raw latents, corner or None) → images in about [-1, 1], of the part of
            `config.crop`² positions at the corner, or of all.
        parameters: of the decoder, an argument of the train step, not constants of its program.
        factor: by which the images are larger than the small ones.
    """

    config: FinishConfig
    spec: LatentSpec
    decode: Callable[[Parameters, Array, Array | None], Array]
    parameters: Parameters
    factor: int = 2

    @classmethod
    def of(cls, config: FinishConfig, first_stage: FirstStage, factor: int) -> "Finish | None":
        """Return the finish of a config with this first stage and factor; None where all weights are 0."""
        if not config.active:
            return None
        graph, parameters = split(first_stage.model)

        def decode(weights, raw, corner):
            model = merge(graph, weights)
            return model.decode(raw) if corner is None else decode_part(model, raw, corner, config.crop)

        return cls(config, first_stage.spec, decode, parameters, factor)

    def terms(
        self,
        parameters: Parameters,
        velocity_fn: Network,
        objective: Objective,
        x0: Float[Array, "b h w c"],
        x1: Float[Array, "b h w c"],
        key: Key[Array, ""],
        judge: "Judge | None" = None,
        image: UInt8[Array, "b H W 3"] | None = None,
    ) -> dict[str, Float[Array, ""]]:
        """Return the terms by name, each times its weight, float32.

        Args:
            parameters: of the decoder.
            velocity_fn: see `fmboost_jax.flow.objectives.Network`.
            objective: defines the network's second time, where it has one.
            x0: sources, scaled latents.
            x1: targets, scaled latents.
            key: of the crops' corners.
            judge: the discriminator, where `config.adversarial` is not 0.
            image: the images of x1. Default: None, x1 decoded.
        """
        start, end = jnp.zeros(len(x0)), jnp.ones(len(x0))
        second = objective.second_time(start, end)
        velocity = velocity_fn(x0, start) if second is None else velocity_fn(x0, start, second)
        result = x0 + velocity.astype(jnp.float32)
        config, terms = self.config, {}
        if config.latent:
            terms["latent"] = config.latent * jnp.mean(jnp.square(result - x1))
        if judge is not None and not config.judges_images:
            terms |= judge.terms(config.adversarial, *(judge.with_context(latent) for latent in (result, x1)))
        if not config.decodes:
            return terms
        corner = self._corner(key, x1)
        # Decoded activations are several times the latents' memory; they are computed again for the gradient.
        decode = jax.checkpoint(lambda latent: self.decode(parameters, self.spec.unscale(latent), corner))
        decoded = decode(result)
        target = jax.lax.stop_gradient(decode(x1) if image is None else self._part(to_float(image), corner))
        if corner is not None:
            edge = MARGIN * self.spec.downsampling
            decoded, target = (x[:, edge:-edge, edge:-edge] for x in (decoded, target))
        if config.pixels:
            terms["pixels"] = config.pixels * root_mean_square(decoded - target)
        if config.perceptual or config.judges_images:
            # Feature maps of stride 2 and 4 see each position of the latent's grid at one phase alone. Without a random
            # shift, the network learns patterns with the grid's period that the maps do not show.
            shift = jax.random.randint(jax.random.fold_in(key, 1), (2,), 0, self.spec.downsampling)
            shifted = [jnp.roll(x, shift, (1, 2)) for x in (decoded, target)]
            maps = [perceptual_maps(load_perceptual_network(), x) for x in shifted]
            if config.perceptual:
                terms["perceptual"] = config.perceptual * perceptual_distance(*maps)
            if judge is not None and config.judges_images:
                result_maps, originals = map(judged_maps, shifted, maps)
                samples = (standardised(each, originals) for each in (result_maps, originals))
                terms |= judge.terms(config.adversarial, *samples)
        if config.grid:
            terms["grid"] = config.grid * root_mean_square(repeating(decoded - target, self.spec.downsampling))
        if config.consistency or config.detail:
            error = decoded - target
            coarse = shrink(error, error.shape[1] // self.factor)
            if config.consistency:
                terms["consistency"] = config.consistency * root_mean_square(coarse)
            if config.detail:
                fine = error - upsample(coarse, (error.shape[1], error.shape[2]), "bicubic")
                terms["detail"] = config.detail * root_mean_square(fine)
        return terms

    def _corner(self, key: Key[Array, ""], latent: Float[Array, "b h w c"]) -> Int[Array, "2"] | None:
        """Row and column of a random part; None where the part is all of the latent."""
        side, (height, width) = self.config.crop, latent.shape[1:3]
        if not side or side >= min(height, width):
            return None
        sizes = zip(jax.random.split(key), (height, width), strict=True)
        return jnp.stack([jax.random.randint(part, (), 0, size - side + 1) for part, size in sizes])

    def _part(self, image: Float[Array, "b H W 3"], corner: Int[Array, "2"] | None) -> Float[Array, "b s s 3"]:
        if corner is None:
            return image
        return square(image, corner * self.spec.downsampling, self.config.crop * self.spec.downsampling)


@dataclasses.dataclass(frozen=True)
class Judge:
    """A discriminator for one batch: its two losses, each with a gradient for one side alone.

    Source: the hinge losses of Lim and Ye 2017, arXiv 1705.02894, equations 5 and 6.

    Attributes:
        graph: of the discriminator, see `fmboost_jax.models.parameters.split`. It maps samples, arrays or lists of
            arrays, to logits, an array or a list of arrays.
        parameters: of the discriminator.
        context: of the batch, scaled latents.
        due: whether this update trains the discriminator; its loss is 0 otherwise.
    """

    graph: nnx.GraphDef
    parameters: Parameters
    context: Float[Array, "b h w k"]
    due: Bool[Array, ""]

    def terms(self, weight: float, result: Sample, original: Sample) -> dict[str, Float[Array, ""]]:
        """Return the loss of the network, times its weight, and that of the discriminator."""
        return {
            "adversarial": weight * self.generator_loss(result),
            "discriminator": self.hinge_loss(result, original),
        }

    def with_context(self, latent: Float[Array, "b h w c"]) -> Float[Array, "b h w k"]:
        """Return what a discriminator of latents sees."""
        return jnp.concatenate([latent, self.context], axis=-1)

    def generator_loss(self, result: Sample) -> Float[Array, ""]:
        """Loss of the network: the negative mean logit of its results."""
        return -_mean(self._logits(jax.lax.stop_gradient(self.parameters), result))

    def hinge_loss(self, result: Sample, original: Sample) -> Float[Array, ""]:
        """Loss of the discriminator: 0 where originals are above 1 and results below -1."""

        def loss(parameters):
            false = self._logits(parameters, jax.lax.stop_gradient(result))
            true = self._logits(parameters, jax.lax.stop_gradient(original))
            margins = jax.tree.map(lambda t, f: jax.nn.relu(1 - t) + jax.nn.relu(1 + f), true, false)
            return _mean(margins)

        return jax.lax.cond(self.due, loss, lambda parameters: jnp.zeros(()), self.parameters)

    def _logits(self, parameters: Parameters, sample: Sample) -> Sample:
        return merge(self.graph, parameters)(sample)


def _mean(values: Sample) -> Float[Array, ""]:
    """Mean over arrays of each one's mean."""
    return jnp.mean(jnp.stack([jnp.mean(array) for array in jax.tree.leaves(values)]))


def repeating(image: Float[Array, "b H W 3"], period: int) -> Float[Array, "b h w 3"]:
    """The part of an image that repeats with a period: means over `REPETITIONS`² neighbouring squares of its size.

    The mean of each square is subtracted first. Texture that differs from square to square is averaged out; a gradient
    over several squares is not.
    """
    batch, height, width, channels = image.shape
    squares = image.reshape(batch, height // period, period, width // period, period, channels)
    squares = squares - jnp.mean(squares, axis=(2, 4), keepdims=True)
    for axis in (1, 3):
        count = squares.shape[axis]
        size = min(REPETITIONS, count)
        windows = [jax.lax.slice_in_dim(squares, start, count - size + 1 + start, axis=axis) for start in range(size)]
        squares = sum(windows[1:], windows[0]) / size
    return squares.reshape(batch, squares.shape[1] * period, squares.shape[3] * period, channels)


def root_mean_square(difference: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """Root mean square of each image, averaged over images: PSNR's error before the logarithm."""
    return jnp.mean(jnp.sqrt(jnp.mean(jnp.square(difference), axis=(1, 2, 3)) + 1e-8))
