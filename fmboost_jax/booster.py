"""Boosting from Python: low-res latents (or photographs) in, large images out.

booster = Booster.load("runs/demo")
images = booster.upscale(photographs, factor=2)     # uint8 (b, h, w, 3) → (b, 2h, 2w, 3)
"""

import dataclasses
import functools
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from fmboost_jax.errors import InputError
from fmboost_jax.flow.coupling import couple, pixel_space_upsample, upsample
from fmboost_jax.flow.solvers import integrate
from fmboost_jax.models.first_stage import FirstStage, load_first_stage
from fmboost_jax.models.parameters import Parameters, merge, split
from fmboost_jax.models.unet import UNet, UNetConfig, abstract_unet
from fmboost_jax.pictures import to_float, to_uint8
from fmboost_jax.training.checkpoints import load_weights


@dataclasses.dataclass(frozen=True)
class Source:
    """How a boost starts: the `source` section of a config with what its data says.

    Attributes:
        start: "low_res" or "noise", see `fmboost_jax.flow.coupling.couple`.
        noise_step: diffusion step of the noise augmentation, of 1000.
        upsampling: "psu" or "lsu": in which space the low-res input grows to the high-res latent's size.
        mode: how a latent is resized ("lsu").
    """

    start: str = "low_res"
    noise_step: int = 400
    upsampling: str = "psu"
    mode: str = "bilinear"


def boost_latents(
    unet: UNet,
    low_res: Float[Array, "b h w c"],
    noise: Float[Array, "b H W c"],
    *,
    source: Source,
    method: str,
    steps: int,
    upsampling_noise: Float[Array, "b H W c"] | None = None,
) -> Float[Array, "b H W c"]:
    """The flow from t = 0 to 1: a pure function, to be jitted.

    Args:
        unet: the velocity.
        low_res: scaled low-res latents, of the noise's size where they were upsampled in pixels (PSU).
        noise: standard normal, of the high-res latents' shape.
        source: how the flow starts.
        method: see `fmboost_jax.flow.solvers.integrate`.
        steps: intervals of the integration grid.
        upsampling_noise: standard normal, for mode "noise" only.

    Returns:
        Scaled high-res latents, float32.
    """
    x0, context = couple(
        low_res,
        size=noise.shape[1:3],
        start=source.start,
        noise_step=source.noise_step,
        mode="identity" if source.upsampling == "psu" else source.mode,
        noise=noise,
        upsampling_noise=upsampling_noise,
    )
    told = context if unet.config.context_channels else None
    return integrate(lambda x, t: unet(x, t, told), x0, method=method, steps=steps)


class Booster:
    """A trained flow with its first stage.

    Args:
        unet: the velocity network.
        first_stage: the autoencoder whose latents it was trained on.
        source: how its flow starts.
        factor: by how much it was trained to enlarge.
    """

    def __init__(self, unet: UNet, first_stage: FirstStage, source: Source, factor: int):
        self._graph, self._parameters = split(unet)
        self.unet_config, self.first_stage, self.source, self.factor = unet.config, first_stage, source, factor

    @classmethod
    def load(cls, directory: str | os.PathLike, *, step: int | None = None, dtype: str | None = None) -> "Booster":
        """A booster from a training run's folder: its averaged weights, and what its config says.

        Args:
            directory: a run's working directory, its `checkpoints` folder, or one step's folder.
            step: which checkpoint; the latest unless told.
            dtype: "float32" or "bfloat16" to compute in; as it was trained unless told.

        Raises:
            InputError: no checkpoint there, or a first stage that cannot be loaded.
        """
        parameters, config, _ = load_weights(os.fspath(directory), step=step)
        unet_config = UNetConfig.of(config["unet"])
        if dtype:
            unet_config = dataclasses.replace(unet_config, dtype=dtype)
        graph = split(abstract_unet(unet_config))[0]
        source = Source(**config["source"], upsampling=config["data"]["upsampling"])
        first_stage = load_first_stage(**config["first_stage"])
        factor = config["data"]["high_res"] // config["data"]["low_res"]
        return cls(merge(graph, parameters), first_stage, source, factor)

    def boost(
        self,
        latents: Float[Array | np.ndarray, "b h w c"],
        *,
        steps: int = 4,
        method: str = "euler",
        seed: int | Sequence[int] = 0,
    ) -> Float[Array, "b H W c"]:
        """Low-res latents → high-res latents, `factor` times as high and wide. One compiled program a shape.

        Args:
            latents: scaled, as a diffusion model gives them (`output_type="latent"`), NHWC.
            steps: intervals of the integration grid, 1 or more; 4 Euler steps are 4 network evaluations.
            method: euler, midpoint, heun, heun3, rk4 or dopri5.
            seed: image i draws its noise from seed + i, or from its own number of a sequence.

        Returns:
            Scaled high-res latents, float32.

        Raises:
            InputError: channels other than the autoencoder's, values that are not finite, unknown method.
        """
        latents = self._checked(latents)
        size = latents.shape[1] * self.factor, latents.shape[2] * self.factor
        if self.source.upsampling == "psu":
            latents = self._grow(latents, size)
        return self._flow(latents, size, steps=steps, method=method, seed=seed)

    def decode(self, latents: Float[Array | np.ndarray, "b h w c"]) -> UInt8[np.ndarray, "b H W 3"]:
        """Scaled latents → images."""
        return to_uint8(np.asarray(self.first_stage.decode(jnp.asarray(latents))))

    def upscale(
        self,
        images: UInt8[np.ndarray, "b h w 3"],
        factor: int | None = None,
        *,
        steps: int = 4,
        method: str = "euler",
        seed: int | Sequence[int] = 0,
    ) -> UInt8[np.ndarray, "b H W 3"]:
        """Photographs → `factor` times as high and wide; edges repeated to a size that the UNet takes, then cropped.

        Args:
            images: of one size.
            factor: what the booster was trained for, unless told.
            steps, method, seed: as for `boost`.

        Raises:
            InputError: a factor that it was not trained for; as for `boost`.
        """
        if factor is not None and factor != self.factor:
            raise InputError(f"this booster was trained to enlarge ×{self.factor}; a factor of {factor} was asked for")
        height, width = images.shape[1:3]
        images = _pad(images, self._image_multiple())
        size = images.shape[1] * self.factor, images.shape[2] * self.factor
        pixels = jnp.asarray(to_float(images))
        grown = upsample(pixels, size, "bilinear") if self.source.upsampling == "psu" else pixels
        low = self.first_stage.scale(self.first_stage.encode(grown))
        latent_size = size[0] // self.first_stage.downsampling, size[1] // self.first_stage.downsampling
        latents = self._flow(low, latent_size, steps=steps, method=method, seed=seed)
        return self.decode(latents)[:, : height * self.factor, : width * self.factor]

    def _image_multiple(self) -> int:
        """What the sides of a small image must be multiples of for the autoencoder and the UNet to halve them."""
        stage = self.first_stage.downsampling
        enlarged = stage * self.unet_config.size_multiple
        needed = -(-enlarged // self.factor)
        return needed if self.source.upsampling == "psu" else -(-needed // stage) * stage

    def _checked(self, latents) -> Array:
        latents = jnp.asarray(latents, jnp.float32)
        channels = self.first_stage.channels
        if latents.ndim != 4 or latents.shape[-1] != channels:
            raise InputError(
                f"latents must be (batch, height, width, {channels}) for this booster's {self.first_stage.kind} "
                f"autoencoder, found {latents.shape}; PyTorch's (batch, channels, height, width) needs a transpose"
            )
        if not bool(jnp.isfinite(latents).all()):
            raise InputError("the latents hold NaN or infinite values; nothing can be boosted from them")
        return latents

    def _grow(self, latents: Array, size: tuple[int, int]) -> Array:
        """PSU of scaled latents: through pixels."""
        stage = self.first_stage
        return pixel_space_upsample(latents, size, lambda image: stage.scale(stage.encode(image)), stage.decode)

    def _flow(self, low: Array, size: tuple[int, int], *, steps: int, method: str, seed) -> Array:
        seeds = [seed + i for i in range(low.shape[0])] if isinstance(seed, int) else list(seed)
        if len(seeds) != low.shape[0]:
            raise InputError(f"{low.shape[0]} images need as many seeds, found {len(seeds)}")
        keys = jnp.stack([jax.random.key(s) for s in seeds])
        return _boost(
            self._graph, self._parameters, low, keys, size=size, source=self.source, method=method, steps=steps
        )


@functools.partial(jax.jit, static_argnums=0, static_argnames=("size", "source", "method", "steps"))
def _boost(graph, parameters: Parameters, low, keys, *, size, source: Source, method: str, steps: int):
    shape = (*size, low.shape[-1])
    # One key of its own for each of: noise, upsampling.
    noise_keys, mode_keys = jax.vmap(lambda key: jax.random.split(key, 2))(keys).T
    draw = jax.vmap(lambda key: jax.random.normal(key, shape))
    upsampling_noise = draw(mode_keys) if source.mode == "noise" and source.upsampling == "lsu" else None
    return boost_latents(
        merge(graph, parameters),
        low,
        draw(noise_keys),
        source=source,
        method=method,
        steps=steps,
        upsampling_noise=upsampling_noise,
    )


def _pad(images: np.ndarray, multiple: int) -> np.ndarray:
    height, width = images.shape[1:3]
    return np.pad(images, ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0)), mode="edge")
