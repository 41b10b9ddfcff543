"""The frozen autoencoder beside the flow: one interface over identity, AutoencoderKL and AutoencoderTiny.

Stored latents are *unscaled*, as the encoder gives them; the flow works on scaled ones. `FirstStage.scale` and
`FirstStage.unscale` are the two sides of that border.
"""

import dataclasses
import functools
from typing import Protocol

import jax
from flax import nnx
from jaxtyping import Array, Float

from fmboost_jax.errors import InputError


class Autoencoder(Protocol):
    """What every first stage's network offers. Images are NHWC in [-1, 1]; latents are unscaled."""

    def encode(self, image: Float[Array, "b h w 3"]) -> tuple[Array, Array | None]:
        """Mean and log-variance of the latent's distribution; log-variance None where there is no distribution."""
        ...

    def decode(self, latent: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """The image of a latent."""
        ...


class Identity(nnx.Module):
    """Pixels as latents: three channels, no downsampling."""

    def encode(self, image: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b h w 3"], None]:
        """The image itself; no log-variance."""
        return image, None

    def decode(self, latent: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """The latent itself."""
        return latent


@dataclasses.dataclass(frozen=True)
class FirstStageConfig:
    """Section `first_stage` of a config: arguments of `fmboost_jax.interop.load_first_stage`.

    Attributes:
        kind: "identity" (pixels as latents), "kl" (Stable Diffusion's family) or "tiny" (TAESD's family).
        path: folder, packaged name or hub id of its weights; "" for identity.
        dtype: "float32" or "bfloat16", what its convolutions and matrix products compute in.
    """

    kind: str = "kl"
    path: str = ""
    dtype: str = "float32"

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f'first_stage.dtype is {self.dtype!r}, expected "float32" or "bfloat16"')


@dataclasses.dataclass(frozen=True)
class FirstStage:
    """A frozen autoencoder with the numbers that belong to its latents.

    Attributes:
        kind: "identity", "kl" or "tiny".
        path: where its weights came from (folder, file or hub id); "" for identity.
        model: the network.
        channels: latent channels.
        downsampling: image pixels per latent position and axis.
        scaling_factor: scaled = (unscaled − shift_factor) · scaling_factor.
        shift_factor: see above; 0 for most autoencoders.
    """

    kind: str
    path: str
    model: nnx.Module
    channels: int
    downsampling: int
    scaling_factor: float = 1.0
    shift_factor: float = 0.0

    def scale(self, latent: Array) -> Array:
        """Unscaled latent (as stored) → scaled latent (as the flow sees it)."""
        return (latent - self.shift_factor) * self.scaling_factor

    def unscale(self, latent: Array) -> Array:
        """Scaled latent → unscaled latent."""
        return latent / self.scaling_factor + self.shift_factor

    @functools.cached_property
    def _split(self) -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(self.model)

    def on(self, sharding: jax.sharding.Sharding) -> "FirstStage":
        """The same with its weights lying there."""
        graphdef, state = self._split
        return dataclasses.replace(self, model=nnx.merge(graphdef, jax.device_put(state, sharding)))

    def encode(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
        """Image in [-1, 1] → unscaled latent (the distribution's mean), jitted once a shape."""
        return _encode(*self._split, image)

    def decode(self, latent: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """Scaled latent → image in [-1, 1], jitted once a shape."""
        return _decode(*self._split, self.unscale(latent))


@functools.partial(jax.jit, static_argnums=0)
def _encode(graphdef, state, image):
    return nnx.merge(graphdef, state).encode(image)[0]


@functools.partial(jax.jit, static_argnums=0)
def _decode(graphdef, state, latent):
    return nnx.merge(graphdef, state).decode(latent)
