"""The KL autoencoder of Stable Diffusion's family as a first stage: image ↔ Gaussian over latents.

Source: "High-Resolution Image Synthesis with Latent Diffusion Models", Rombach et al., CVPR 2022, arXiv 2112.10752,
appendix G. Encoding and decoding are exact at any size in bounded memory: convolutions over large maps run in row
chunks (`models/row_chunks.py`), the middle's attention in blocks of queries.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmboost_jax.configuration import require, require_at_least, require_at_most
from fmboost_jax.errors import InputError
from fmboost_jax.models import convolution
from fmboost_jax.models.attention import attend
from fmboost_jax.models.blocks import of_groups
from fmboost_jax.models.parameters import kernel_flops
from fmboost_jax.models.row_chunks import RowChunk, RowStrips, map_row_chunks, strips_of

NORM_EPS = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)


@dataclasses.dataclass(frozen=True)
class AutoencoderKLConfig:
    """Architecture and latent scale; the defaults are SD 1.x (83,653,863 parameters).

    Attributes:
        image_channels: channels of the image.
        latent_channels: channels of the latent (4 in SD 1.x/2.x/SDXL, 16 in SD 3 and FLUX.1).
        channels: feature channels of each level, finest level first; each level but the last halves the size.
        decoder_channels: feature channels of the decoder, finest level first; empty: those of `channels`.
        blocks: residual blocks in each level of the encoder; the decoder has one more.
        norm_groups: groups of every group norm.
        quant_convs: a 1×1 convolution after the encoder and one before the decoder.
        mid_attention: self-attention between the middle's two residual blocks.
        scaling_factor, shift_factor: scaled latent = (latent − shift_factor) · scaling_factor.
        latents_mean, latents_std: statistics that the model normalises its latents by: latent = (encoder's output −
            mean) / deviation. Empty: none. One value a channel, as Playground 2.5 has; or one for each channel and
            position in patches of 2×2, in the order (channel, row, column), as FLUX.2 has.
        dtype: "float32" or "bfloat16", of convolutions and matmuls; parameters, norms and softmax stay float32.
    """

    image_channels: int = 3
    latent_channels: int = 4
    channels: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    norm_groups: int = 32
    quant_convs: bool = True
    mid_attention: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    dtype: str = "float32"
    decoder_channels: tuple[int, ...] = ()
    latents_mean: tuple[float, ...] = ()
    latents_std: tuple[float, ...] = ()

    def __post_init__(self):
        require_at_least("autoencoder: ", self, image_channels=1, latent_channels=1, blocks=1, norm_groups=1)
        require_at_most("autoencoder: ", self, image_channels=1024, latent_channels=65536, blocks=64)
        for name, lengths in (("channels", range(1, 13)), ("decoder_channels", (0, len(self.channels)))):
            widths = getattr(self, name)
            multiples = all(0 < width <= 65536 and width % self.norm_groups == 0 for width in widths)
            expected = f"1 to 12 multiples of its {self.norm_groups} norm groups, at most 65536"
            require("autoencoder: ", self, name, expected, len(widths) in lengths and multiples)
        require("autoencoder: ", self, "scaling_factor", "a number other than 0", self.scaling_factor != 0)
        counts = (0, self.latent_channels, 4 * self.latent_channels)
        expected = f"{counts[1]} or {counts[2]} values, as many as latents_std has"
        same = len(self.latents_mean) == len(self.latents_std)
        require("autoencoder: ", self, "latents_mean", expected, same and len(self.latents_mean) in counts)
        require("autoencoder: ", self, "latents_std", "values above 0", all(value > 0 for value in self.latents_std))

    @property
    def downsampling(self) -> int:
        """Image pixels per latent position and axis."""
        return 2 ** (len(self.channels) - 1)

    @property
    def normalized(self) -> bool:
        """Whether the mean and deviation of each channel of the latents are normalised."""
        return bool(self.latents_mean)

    @property
    def patch(self) -> int:
        """Side of the statistics' patches in latent positions: 1 or 2."""
        return 2 if len(self.latents_mean) > self.latent_channels else 1


class Conv(nnx.Module):
    """A 3×3 convolution that pads the width by one and leaves the height's padding to `RowChunk.window`."""

    def __init__(self, inputs: int, outputs: int, config: AutoencoderKLConfig, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (3, 3, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.dtype = config.dtype

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        stride: int = 1,
        padding: tuple = ((0, 0), (1, 1)),
        convolve: Callable = convolution.convolve,
    ) -> Float[Array, "b H W d"]:
        y = convolve(x, self.kernel[...].astype(self.dtype), (stride, stride), padding)
        return y + self.bias[...].astype(self.dtype)


class GroupNorm(nnx.Module):
    """Group normalisation with the variance in two passes, which is accurate for maps with a large mean.

    Statistics and result are float32.
    """

    def __init__(self, channels: int, config: AutoencoderKLConfig):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.groups = config.norm_groups

    def fitted(self, x: Float[Array, "n h w c"], strips: int = 1) -> Callable[[Array], Array]:
        """Return the normalisation with the statistics of `x`, a function of any rows of the map.

        Args:
            x: features of any float type.
            strips: strips of an image on the batch axis, see `fmboost_jax.models.row_chunks`; 0 for row chunks,
                which have none. Default: 1.
        """
        strips, x = max(strips, 1), x.astype(jnp.float32)
        mean = self._mean(x, strips)
        variance = self._mean(jnp.square(x - mean), strips)
        factor, bias = jax.lax.rsqrt(variance + NORM_EPS) * self.scale[...], self.bias[...]
        return lambda rows: (rows.astype(jnp.float32) - mean) * factor + bias

    def _mean(self, x: Float[Array, "n h w c"], strips: int) -> Float[Array, "n 1 1 c"]:
        """Return the mean over each channel's group in its whole image."""
        values = jnp.mean(x, axis=(1, 2))
        values = jnp.mean(values.reshape(-1, strips, values.shape[-1]), axis=1) if strips > 1 else values
        values = of_groups(values, self.groups)
        return (jnp.repeat(values, strips, axis=0) if strips > 1 else values)[:, None, None]


class ResBlock(nnx.Module):
    """Norm → SiLU → 3×3 convolution, twice, plus the input (through a 1×1 convolution where channels change)."""

    def __init__(self, inputs: int, outputs: int, config: AutoencoderKLConfig, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(inputs, config)
        self.conv1 = Conv(inputs, outputs, config, rngs)
        self.norm2 = GroupNorm(outputs, config)
        self.conv2 = Conv(outputs, outputs, config, rngs)
        self.shortcut = nnx.Linear(inputs, outputs, dtype=config.dtype, rngs=rngs) if inputs != outputs else None

    def __call__(self, x: Float[Array, "n h w c"], strips: int = 0) -> Float[Array, "n h w d"]:
        h = _norm_silu_conv(self.norm1, self.conv1, x, strips)
        activation = _norm_silu(self.norm2, h, strips)

        def finish(chunk: RowChunk | RowStrips) -> Array:
            rows = chunk.of(x)
            return self.conv2(chunk.window(h, activation)) + (self.shortcut(rows) if self.shortcut else rows)

        return map_row_chunks(finish, x, strips=strips)


def _norm_silu(norm: GroupNorm, x: Array, strips: int):
    normalise, dtype = norm.fitted(x, strips), x.dtype
    return lambda rows: jax.nn.silu(normalise(rows)).astype(dtype)


def _norm_silu_conv(
    norm: GroupNorm, conv: Conv, x: Float[Array, "n h w c"], strips: int = 0
) -> Float[Array, "n h w d"]:
    activation = _norm_silu(norm, x, strips)
    return map_row_chunks(lambda chunk: conv(chunk.window(x, activation)), x, strips=strips)


class Attention(nnx.Module):
    """Self-attention over all positions, one head of full width, exact in blocks of queries."""

    def __init__(self, channels: int, config: AutoencoderKLConfig, rngs: nnx.Rngs):
        def linear() -> nnx.Linear:
            return nnx.Linear(channels, channels, dtype=config.dtype, rngs=rngs)

        self.norm = GroupNorm(channels, config)
        self.query, self.key, self.value, self.out = linear(), linear(), linear(), linear()

    def __call__(self, x: Float[Array, "n h w c"], strips: int = 0) -> Float[Array, "n h w c"]:
        count, *_, channels = x.shape
        normalised = self.norm.fitted(x, strips)(x).astype(x.dtype)
        images = count // max(strips, 1)
        positions = normalised.reshape(images, -1, channels)
        heads = (linear(positions)[:, :, None] for linear in (self.query, self.key, self.value))
        attended = attend(*heads)
        return x + self.out(attended).reshape(x.shape)


class Middle(nnx.Module):
    """Residual block, self-attention (where the config has it), residual block at the smallest size."""

    def __init__(self, channels: int, config: AutoencoderKLConfig, rngs: nnx.Rngs):
        self.block1 = ResBlock(channels, channels, config, rngs)
        self.attention = Attention(channels, config, rngs) if config.mid_attention else None
        self.block2 = ResBlock(channels, channels, config, rngs)

    def __call__(self, x: Float[Array, "n h w c"], strips: int = 0) -> Float[Array, "n h w c"]:
        x = self.block1(x, strips)
        if self.attention:
            x = self.attention(x, strips)
        return self.block2(x, strips)


class DownLevel(nnx.Module):
    """Residual blocks, then a convolution of stride 2 padded by one row and column at the far end only."""

    def __init__(self, inputs: int, outputs: int, last: bool, config: AutoencoderKLConfig, rngs: nnx.Rngs):
        widths = [inputs] + [outputs] * (config.blocks - 1)
        self.blocks = nnx.List([ResBlock(width, outputs, config, rngs) for width in widths])
        self.downsample = None if last else Conv(outputs, outputs, config, rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W d"]:
        for block in self.blocks:
            x = block(x)
        return self.downsample(x, stride=2, padding=((0, 1), (0, 1))) if self.downsample else x


class UpLevel(nnx.Module):
    """Residual blocks, then nearest ×2 and a convolution."""

    def __init__(self, inputs: int, outputs: int, last: bool, config: AutoencoderKLConfig, rngs: nnx.Rngs):
        widths = [inputs] + [outputs] * config.blocks
        self.blocks = nnx.List([ResBlock(width, outputs, config, rngs) for width in widths])
        self.upsample = None if last else Conv(outputs, outputs, config, rngs)
        self.width = outputs

    def __call__(self, x: Float[Array, "n h w c"], strips: int = 0) -> Float[Array, "n H W d"]:
        for block in self.blocks:
            x = block(x, strips)
        return _upsample_conv(self.upsample, x, strips) if self.upsample else x


def _upsample_conv(conv: Conv, x: Float[Array, "n h w c"], strips: int) -> Float[Array, "n H W d"]:
    def upsample(chunk: RowChunk | RowStrips) -> Array:
        return conv(chunk.window(x), convolve=convolution.upsample_conv)

    return map_row_chunks(upsample, x, scale=2, strips=strips)


class Encoder(nnx.Module):
    """Image → moments (mean and log-variance) of the latent."""

    def __init__(self, config: AutoencoderKLConfig, rngs: nnx.Rngs):
        channels = config.channels
        self.conv_in = Conv(config.image_channels, channels[0], config, rngs)
        widths = zip((channels[0], *channels), channels, strict=False)
        last = len(channels) - 1
        self.levels = nnx.List(
            [DownLevel(inputs, outputs, i == last, config, rngs) for i, (inputs, outputs) in enumerate(widths)]
        )
        self.middle = Middle(channels[-1], config, rngs)
        self.norm_out = GroupNorm(channels[-1], config)
        self.conv_out = Conv(channels[-1], 2 * config.latent_channels, config, rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W m"]:
        x = map_row_chunks(lambda chunk: self.conv_in(chunk.window(x)), x)
        for level in self.levels:
            x = level(x)
        return _norm_silu_conv(self.norm_out, self.conv_out, self.middle(x))


class Decoder(nnx.Module):
    """Latent → image; its levels are in the order of execution, coarsest first."""

    def __init__(self, config: AutoencoderKLConfig, rngs: nnx.Rngs):
        channels = (config.decoder_channels or config.channels)[::-1]
        self.conv_in = Conv(config.latent_channels, channels[0], config, rngs)
        self.middle = Middle(channels[0], config, rngs)
        widths = zip((channels[0], *channels), channels, strict=False)
        last = len(channels) - 1
        self.levels = nnx.List(
            [UpLevel(inputs, outputs, i == last, config, rngs) for i, (inputs, outputs) in enumerate(widths)]
        )
        self.norm_out = GroupNorm(channels[-1], config)
        self.conv_out = Conv(channels[-1], config.image_channels, config, rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W i"]:
        # The last levels have the largest maps; the last one's first map has the width of the one before.
        strips = strips_of(x, 2 ** (len(self.levels) - 1), max(level.width for level in self.levels[-2:]))
        if strips == 1:
            return self._decode(x)
        whole = functools.partial(self._decode, strips=1)
        forms = {"tpu": functools.partial(self._decode_strips, strips=strips), "cuda": whole, "rocm": whole}
        return jax.lax.platform_dependent(x, **forms, default=self._decode)

    def _decode_strips(self, x: Float[Array, "b h w c"], strips: int) -> Float[Array, "b H W i"]:
        batch, height, width, channels = x.shape
        image = self._decode(x.reshape(batch * strips, height // strips, width, channels), strips)
        return image.reshape(batch, strips * image.shape[1], *image.shape[2:])

    def _decode(self, x: Float[Array, "n h w c"], strips: int = 0) -> Float[Array, "n H W i"]:
        latent = x
        x = map_row_chunks(lambda chunk: self.conv_in(chunk.window(latent)), latent, strips=strips)
        x = self.middle(x, strips)
        for level in self.levels:
            x = level(x, strips)
        return _norm_silu_conv(self.norm_out, self.conv_out, x, strips)

    def flops(self, positions: int) -> int:
        """FLOPs of decoding a latent of `positions` positions."""
        attention = self.middle.attention
        total = kernel_flops(self.conv_in, positions) + kernel_flops(self.middle, positions)
        if attention is not None:
            total += 4 * positions**2 * attention.query.out_features
        for level in self.levels:
            total += kernel_flops(level.blocks, positions)
            if level.upsample is not None:
                positions *= 4
                total += kernel_flops(level.upsample, positions)
        return total + kernel_flops(self.conv_out, positions)


class AutoencoderKL(nnx.Module):
    """The autoencoder. Latents are normalised where the config has statistics.

    They are raw: the caller applies `config.scaling_factor` and `shift_factor`.

    Args:
        config: architecture.
        rngs: draws the initial weights.
    """

    def __init__(self, config: AutoencoderKLConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs)
        self.decoder = Decoder(config, rngs)
        # Default format of `fmboost_jax.interop.state_dict`; loading sets it.
        self.weight_names = "diffusers"
        moments, latent = 2 * config.latent_channels, config.latent_channels
        self.quant = nnx.Linear(moments, moments, dtype=config.dtype, rngs=rngs) if config.quant_convs else None
        self.post_quant = nnx.Linear(latent, latent, dtype=config.dtype, rngs=rngs) if config.quant_convs else None

    def encode(self, image: Float[Array, "b h w i"]) -> tuple[Float[Array, "b H W c"], Float[Array, "b H W c"]]:
        """Mean and log-variance of the latent's Gaussian.

        Args:
            image: in [-1, 1]; height and width multiples of `config.downsampling`.

        Returns:
            mean and log-variance, float32, raw; the log-variance clipped to [-30, 20] before it is normalised.

        Raises:
            InputError: height or width is not a multiple of `config.downsampling`, or of twice that where the
                statistics are of patches of 2×2.
        """
        factor = self.config.downsampling * self.config.patch
        height, width = image.shape[1:3]
        if height % factor or width % factor:
            raise InputError(
                f"image of {height}×{width} pixels: this autoencoder needs multiples of {factor}; crop or resize it"
            )
        moments = self.encoder(image.astype(self.config.dtype))
        if self.quant:
            moments = self.quant(moments)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        logvar = jnp.clip(logvar, *LOGVAR_RANGE)
        if not self.config.normalized:
            return mean, logvar
        centre, deviation = self._statistics(mean.shape)
        return (mean - centre) / deviation, logvar - 2 * jnp.log(deviation)

    def decode(self, latent: Float[Array, "b h w c"]) -> Float[Array, "b H W i"]:
        """Image of a raw latent: float32, in [-1, 1] up to the network's overshoot (not clipped).

        Raises:
            InputError: statistics of patches of 2×2, and a latent of an odd height or width.
        """
        if self.config.normalized:
            centre, deviation = self._statistics(latent.shape)
            latent = latent.astype(jnp.float32) * deviation + centre
        latent = latent.astype(self.config.dtype)
        if self.post_quant:
            latent = self.post_quant(latent)
        return self.decoder(latent).astype(jnp.float32)

    def _statistics(self, shape: tuple[int, ...]) -> tuple[Float[Array, "#h #w c"], Float[Array, "#h #w c"]]:
        """Mean and deviation that latents of this shape (b, h, w, c) are normalised by."""
        _, height, width, channels = shape
        patch = self.config.patch
        if height % patch or width % patch:
            raise InputError(f"latent of {height}×{width}: this autoencoder needs multiples of {patch}")

        def spread(values: tuple[float, ...]) -> Float[Array, "#h #w c"]:
            tile = jnp.array(values, jnp.float32).reshape(channels, patch, patch).transpose(1, 2, 0)
            return tile if patch == 1 else jnp.tile(tile, (height // patch, width // patch, 1))

        return spread(self.config.latents_mean), spread(self.config.latents_std)

    def decoder_flops(self, height: int, width: int) -> int:
        """FLOPs of decoding one latent of this size; a multiply-add is two, norms do not count."""
        return kernel_flops(self.post_quant, height * width) + self.decoder.flops(height * width)
