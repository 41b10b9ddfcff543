"""The first stage: the frozen autoencoder around the flow, and the shape and scale of its latents.

Two kinds of latents appear in this package. The autoencoder's own output is the *raw* latent; datasets store it. An
autoencoder with statistics for each channel (FLUX.2's, Playground 2.5's) has normalised it already. The flow
works on *scaled* latents, (raw − shift_factor) · scaling_factor, whose standard deviation is about 1.
`FirstStage.encode` and `FirstStage.decode` are inverses on scaled latents; `FirstStage.encode_raw` returns raw ones.

An encoder is only about an inverse of its decoder. `invert_decoder` brings a latent closer to the one that decodes to
an image, without gradients.
"""

import dataclasses
import functools
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from fmboost_jax.configuration import require_at_least
from fmboost_jax.errors import InputError

Latent: TypeAlias = Float[Array, "b h w c"]
RawLatent: TypeAlias = Float[Array, "b h w c"]


@runtime_checkable
class AutoencoderConfig(Protocol):
    """Fields that the config of every autoencoder has."""

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        ...

    @property
    def downsampling(self) -> int:
        """Image pixels per latent position and axis."""
        ...

    @property
    def scaling_factor(self) -> float:
        """scaled = (raw − shift_factor) · scaling_factor."""
        ...

    @property
    def shift_factor(self) -> float:
        """See `scaling_factor`."""
        ...


@dataclasses.dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of each channel of the scaled high-res latents that a flow was trained on."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __post_init__(self):
        if len(self.mean) != len(self.deviation) or not all(0 < value < float("inf") for value in self.deviation):
            raise InputError("latent statistics need a mean and a positive deviation for each channel")

    @classmethod
    def of(cls, latents: Float[Array, "b h w c"]) -> "LatentStatistics":
        """Return the statistics of scaled latents."""
        means, deviations = (jnp.asarray(f(latents, (0, 1, 2)), jnp.float32) for f in (jnp.mean, jnp.std))
        return cls(tuple(map(float, means)), tuple(float(value) + 1e-6 for value in deviations))

    def relative_deviation(self, latents: Float[Array, "b h w c"]) -> float:
        """Median over channels of the latents' standard deviation in units of that of these statistics."""
        return float(jnp.median(jnp.std(latents, (0, 1, 2)) / jnp.asarray(self.deviation)))


@dataclasses.dataclass(frozen=True)
class LatentSpec:
    """The latents of one autoencoder: where they come from, their shape and their scale.

    Attributes:
        kind: name of the autoencoder's kind, such as "identity", "kl" or "tiny".
        path: folder, file or hub id of its weights; "" for identity.
        channels: latent channels.
        downsampling: image pixels per latent position and axis.
        scaling_factor: scaled = (raw − shift_factor) · scaling_factor.
        shift_factor: see above; 0 for most autoencoders.
        normalized: whether the latents are also normalised by each channel's mean and deviation, as FLUX.2's are; None
            if unknown.
        inversion_steps: steps of `invert_decoder` that follow the encoder. Default: 0.
    """

    kind: str
    path: str
    channels: int
    downsampling: int
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    normalized: bool | None = None
    inversion_steps: int = 0

    @classmethod
    def from_config(cls, kind: str, path: str, config: AutoencoderConfig, inversion_steps: int = 0) -> "LatentSpec":
        """Build the spec of an autoencoder from its config."""
        return cls(
            kind,
            path,
            channels=config.latent_channels,
            downsampling=config.downsampling,
            scaling_factor=float(config.scaling_factor),
            shift_factor=float(config.shift_factor),
            normalized=getattr(config, "normalized", None),
            inversion_steps=inversion_steps,
        )

    def scale(self, raw: RawLatent) -> Latent:
        """Map raw latents, as the encoder returns them and datasets store them, to scaled ones."""
        return (raw - self.shift_factor) * self.scaling_factor

    def unscale(self, latent: Latent) -> RawLatent:
        """Map scaled latents to raw ones."""
        return latent / self.scaling_factor + self.shift_factor

    def check(self, other: "LatentSpec", name: str) -> None:
        """Refuse latents that do not fit a network trained on these.

        Args:
            other: the latents that were found.
            name: where they come from, for the message.

        Raises:
            InputError: channels, downsampling, scale, shift or normalisation differ.
        """
        for field in ("channels", "downsampling", "scaling_factor", "shift_factor"):
            expected, found = getattr(self, field), getattr(other, field)
            if abs(expected - found) > 1e-6 * abs(expected):
                raise InputError(
                    f"{name}: its autoencoder has {field} {found}, this booster was trained for {expected} "
                    f"({self.kind} {self.path}); use the autoencoder of the booster, or another booster"
                )
        if None not in (self.normalized, other.normalized) and self.normalized != other.normalized:
            kinds = ("not normalised", "normalised channel by channel")
            raise InputError(
                f"{name}: its latents are {kinds[bool(other.normalized)]}, this booster was trained on latents that "
                f"are {kinds[bool(self.normalized)]} ({self.kind} {self.path}); use another booster"
            )


@runtime_checkable
class Autoencoder(Protocol):
    """The network of a first stage. Images are NHWC in [-1, 1]; latents are raw."""

    def encode(self, image: Float[Array, "b H W 3"]) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"] | None]:
        """Mean and log-variance of the latent's distribution; the log-variance is None for a deterministic encoder."""
        ...

    def decode(self, latent: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """Map a raw latent to its image."""
        ...

    def decoder_flops(self, height: int, width: int) -> int:
        """FLOPs of decoding one latent of this size; a multiply-add is two."""
        ...


def invert_decoder(model: Autoencoder, image: Float[Array, "b H W 3"], steps: int) -> RawLatent:
    """Encode an image, then move the latent towards one that decodes to the image.

    z₀ = E(x), then zₖ₊₁ = zₖ + E(x) − E(D(zₖ)): the forward step method with step size 1 of Hong et al. 2024,
    "Gradient-free Decoder Inversion in Latent Diffusion Models", arXiv 2409.18442. Each step decodes and encodes once.

    Args:
        model: the autoencoder.
        image: in [-1, 1].
        steps: 0 or more; 0 is the encoder alone.
    """
    encoded = model.encode(image)[0]
    latent = encoded
    for _ in range(steps):
        latent = latent + (encoded - model.encode(model.decode(latent))[0])
    return latent


def square(x: Float[Array, "b h w c"], corner: Int[Array, "2"], side: int) -> Float[Array, "b side side c"]:
    """Cut a square of `side`² positions whose upper left one is `corner`, (row, column), out of a map."""
    return jax.lax.dynamic_slice(x, (0, corner[0], corner[1], 0), (x.shape[0], side, side, x.shape[3]))


def decode_part(
    model: Autoencoder, latent: RawLatent, corner: Int[Array, "2"], side: int
) -> Float[Array, "b size size 3"]:
    """Decode a square of `side`² positions of a raw latent, whose upper left one is `corner`.

    A model with layers that see the whole latent may define a method `decode_part`. Other models decode the square
    alone. In either case, pixels near the square's edges differ from those of the whole image.
    """
    own = getattr(model, "decode_part", None)
    return model.decode(square(latent, corner, side)) if own is None else own(latent, corner, side)


@dataclasses.dataclass(frozen=True)
class IdentityConfig:
    """Pixels as latents; `dtype` has no effect."""

    latent_channels: int = 3
    downsampling: int = 1
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    dtype: str = "float32"


class Identity(nnx.Module):
    """Pixels as latents: three channels, no downsampling."""

    def __init__(self, config: IdentityConfig | None = None, *, rngs: nnx.Rngs | None = None):
        self.config = config or IdentityConfig()

    def encode(self, image: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b h w 3"], None]:
        """Return the image and no log-variance."""
        return image, None

    def decode(self, latent: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Return the latent."""
        return latent

    def decoder_flops(self, height: int, width: int) -> int:
        """Return 0: there is no network."""
        return 0


@dataclasses.dataclass(frozen=True)
class FirstStageConfig:
    """Section `first_stage` of a config: arguments of `fmboost_jax.interop.load_first_stage`.

    Attributes:
        kind: "identity" (pixels as latents), "kl" (Stable Diffusion's family) or "tiny" (TAESD's family).
        path: folder, packaged name or hub id of its weights; "" for identity.
        dtype: "float32" or "bfloat16", what its convolutions and matrix products compute in.
        inversion_steps: steps of decoder inversion after the encoder, see `invert_decoder`; for latents of enlarged and
            of high-res images, not for the small latents that stand for a base model's.
    """

    kind: str = "kl"
    path: str = ""
    dtype: str = "float32"
    inversion_steps: int = 0

    def __post_init__(self):
        require_at_least("first_stage.", self, inversion_steps=0)
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f'first_stage.dtype is {self.dtype!r}, expected "float32" or "bfloat16"')


@dataclasses.dataclass(frozen=True)
class FirstStage:
    """A frozen autoencoder with the spec of its latents.

    Attributes:
        spec: kind, path, channels, downsampling and scale of the latents.
        model: the network, an `Autoencoder` and an `nnx.Module`.
    """

    spec: LatentSpec
    model: Any

    @property
    def kind(self) -> str:
        """Name of the autoencoder's kind."""
        return self.spec.kind

    @property
    def path(self) -> str:
        """Where the weights came from."""
        return self.spec.path

    @property
    def channels(self) -> int:
        """Latent channels."""
        return self.spec.channels

    @property
    def downsampling(self) -> int:
        """Image pixels per latent position and axis."""
        return self.spec.downsampling

    @property
    def image_multiple(self) -> int:
        """Required multiple of an image's sides."""
        return self.downsampling * getattr(self.model.config, "patch", 1)

    @property
    def statistics(self) -> tuple[tuple[float, ...], ...]:
        """Means and deviations that the model normalises its latents by; empty where it has none."""
        config = self.model.config
        return (config.latents_mean, config.latents_std) if getattr(config, "latents_mean", ()) else ()

    @functools.cached_property
    def _split(self) -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(self.model)

    def to(self, sharding: jax.sharding.Sharding) -> "FirstStage":
        """Return a first stage whose weights have the given sharding."""
        graphdef, state = self._split
        return dataclasses.replace(self, model=nnx.merge(graphdef, jax.device_put(state, sharding)))

    def encode(self, image: Float[Array, "b H W 3"]) -> Latent:
        """Image in [-1, 1] → scaled latent (the distribution's mean); the inverse of `decode`."""
        return self.spec.scale(self.encode_raw(image))

    @property
    def plain(self) -> "FirstStage":
        """The same first stage without decoder inversion: it encodes as for the training of a base model."""
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, inversion_steps=0))

    def decode(self, latent: Latent) -> Float[Array, "b H W 3"]:
        """Scaled latent → image in [-1, 1]; compiled once for each shape."""
        return _decode(*self._split, self.spec.unscale(latent))

    def encode_raw(self, image: Float[Array, "b H W 3"]) -> RawLatent:
        """Image in [-1, 1] → raw latent, as datasets store it; compiled once for each shape."""
        return _encode(*self._split, image, self.spec.inversion_steps)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _encode(graphdef, state, image, inversion_steps):
    return invert_decoder(nnx.merge(graphdef, state), image, inversion_steps)


@functools.partial(jax.jit, static_argnums=0)
def _decode(graphdef, state, latent):
    return nnx.merge(graphdef, state).decode(latent)
