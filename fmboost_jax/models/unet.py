"""The velocity network: a time-conditioned UNet on latents, as the FMBoost paper trains it (arXiv 2312.07360).

The architecture is that of guided diffusion (Dhariwal and Nichol 2021, arXiv 2105.05233, appendix). Weights of the
PyTorch reference need `attention_layout="interleaved"`, see `fmboost_jax.models.attention`.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmboost_jax.configuration import from_mapping, require, require_at_least, require_at_most
from fmboost_jax.errors import InputError, shown
from fmboost_jax.models.attention import SpatialAttention
from fmboost_jax.models.blocks import GroupNorm, bias_apart, conv, linear, uniform_fan_in
from fmboost_jax.models.convolution import upsample_nearest
from fmboost_jax.models.parameters import abstract, kernel_flops


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Shape of a `UNet`; the defaults are the paper's base network of 305,806,340 parameters.

    Attributes:
        in_channels: channels of the state plus those of the context.
        model_channels: width of the first level; a multiple of 32.
        out_channels: channels of the velocity, those of the state.
        num_res_blocks: residual blocks of each level on the way down; one more on the way up.
        channel_mult: width of each level as a multiple of `model_channels`.
        attention_resolutions: downsampling factors of the levels that attend (the middle always does). The levels
            have the factors 1, 2, 4, …; other values have no effect, as 16 in the default. A training refuses most
            of them, see `check_attention`.
        dropout: probability of dropping an activation before a residual block's last convolution.
        conv_resample: resample by learned convolutions; False: average pooling and nearest upsampling.
        dim_head: channels of one attention head, at every level.
        num_heads: attention heads.
        use_linear_attn: linear attention in the levels; the middle keeps softmax attention.
        use_scale_shift_norm: the time embedding scales and shifts the second norm; False: it is added before it.
        pool_factor: stride of a convolution before and a transposed one after the network; 1 or less for none.
        attention_layout: "heads", the ordinary one, or "interleaved", that of the reference's checkpoints.
        dtype: "float32" or "bfloat16", dtype of convolutions and matrix products; parameters are float32.
        remat: recompute the blocks' activations in the backward pass, for less memory.
        time_inputs: 2 for a second time, as shortcut models and MeanFlow need it. Default: 1.
    """

    in_channels: int = 8
    model_channels: int = 128
    out_channels: int = 4
    num_res_blocks: int = 3
    channel_mult: tuple[int, ...] = (1, 2, 4, 8)
    attention_resolutions: tuple[int, ...] = (8, 16)
    dropout: float = 0.0
    conv_resample: bool = True
    dim_head: int = 64
    num_heads: int = 4
    use_linear_attn: bool = False
    use_scale_shift_norm: bool = True
    pool_factor: int = 1
    attention_layout: str = "heads"
    dtype: str = "float32"
    remat: bool = False
    time_inputs: int = 1

    # Parameters that every device holds whole.
    replicated: ClassVar[str] = r"(norm\w*|time\d)\.(scale|bias|kernel)$"

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "UNetConfig":
        """Return the config of a mapping from JSON (lists for tuples).

        Raises:
            InputError: an unknown field, or a value out of range.
        """
        return from_mapping(cls, fields, "unet")

    def __post_init__(self):
        if self.model_channels % 32:
            raise InputError(f"unet.model_channels must be a multiple of 32 (group norm), found {self.model_channels}")
        require_at_least("unet.", self, model_channels=32, out_channels=1, num_res_blocks=1, num_heads=1, dim_head=1)
        most = {
            "model_channels": 65536,
            "in_channels": 65536,
            "num_res_blocks": 64,
            "num_heads": 4096,
            "dim_head": 65536,
        }
        require_at_most("unet.", self, **most, pool_factor=1024, time_inputs=2)
        require("unet.", self, "in_channels", f"{self.out_channels} or more", self.in_channels >= self.out_channels)
        require(
            "unet.",
            self,
            "channel_mult",
            "1 to 12 whole numbers from 1 to 256",
            1 <= len(self.channel_mult) <= 12 and all(1 <= multiple <= 256 for multiple in self.channel_mult),
        )
        require("unet.", self, "dropout", "0 or more and less than 1", 0 <= self.dropout < 1)
        if self.attention_layout not in ("heads", "interleaved"):
            raise InputError(
                f'unet.attention_layout must be "heads" or "interleaved", found {shown(self.attention_layout)}'
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f'unet.dtype must be "float32" or "bfloat16", found {shown(self.dtype)}')

    @property
    def size_multiple(self) -> int:
        """Height and width of the state must be multiples of this: every level halves them."""
        return max(self.pool_factor, 1) * 2 ** (len(self.channel_mult) - 1)

    @property
    def level_factors(self) -> tuple[int, ...]:
        """Downsampling factor of each level, from the first to the last."""
        return tuple(2**depth for depth in range(len(self.channel_mult)))

    @property
    def attends(self) -> tuple[bool, ...]:
        """Whether each level has attention, from the first to the last."""
        return tuple(factor in self.attention_resolutions for factor in self.level_factors)

    def check_attention(self) -> None:
        """Refuse `attention_resolutions` that would train a network without the attention that they ask for.

        Powers of two beyond the last level's factor are accepted beside one that a level has, as the default has 16.

        Raises:
            InputError: a factor that is not a power of two, or no factor that a level has.
        """
        holds = all(factor > 0 and factor.bit_count() == 1 for factor in self.attention_resolutions)
        require(
            "unet.",
            self,
            "attention_resolutions",
            f"factors of this UNet's levels, {', '.join(map(str, self.level_factors))}, or () for attention in the "
            "middle block alone",
            holds and (any(self.attends) or not self.attention_resolutions),
        )

    @property
    def state_channels(self) -> int:
        """Channels of the state and of its velocity."""
        return self.out_channels

    @property
    def context_channels(self) -> int:
        """Channels of the context; 0 for a network without one."""
        return self.in_channels - self.out_channels

    def flops(self, height: int, width: int) -> int:
        """FLOPs of one forward pass of one example: convolutions, linear layers and attention's products.

        A multiply-add is two FLOPs. Norms and activations do not count.

        Args:
            height, width: of the state.
        """
        unet = abstract(UNet, self)
        positions = height * width // max(self.pool_factor, 1) ** 2
        last = len(self.channel_mult) - 1
        total = sum(kernel_flops(layer, 1) for layer in (unet.time1, unet.time2, unet.second_time1, unet.second_time2))
        total += sum(kernel_flops(layer, positions) for layer in (unet.pool, unet.unpool, unet.conv_in, unet.conv_out))
        for depth, level in enumerate(unet.down):
            total += level.flops(positions // 4**depth) + kernel_flops(level.resample, positions // 4 ** (depth + 1))
        for depth, level in zip(range(last, -1, -1), unet.up, strict=True):
            total += level.flops(positions // 4**depth) + kernel_flops(level.resample, positions * 4 // 4**depth)
        return total + unet.middle.flops(positions // 4**last)


class ResBlock(nnx.Module):
    """Two 3×3 convolutions, the time embedding between them, a skip around them."""

    def __init__(self, in_channels: int, out_channels: int, embedding: int, config: UNetConfig, *, rngs: nnx.Rngs):
        self.scale_shift = config.use_scale_shift_norm
        self.dtype = config.dtype
        self.norm1 = GroupNorm(in_channels)
        self.conv1 = conv(in_channels, out_channels, dtype=config.dtype, rngs=rngs)
        width = 2 * out_channels if self.scale_shift else out_channels
        self.embed = linear(embedding, width, dtype=jnp.float32, rngs=rngs)
        self.norm2 = GroupNorm(out_channels)
        self.dropout = nnx.Dropout(config.dropout)
        self.conv2 = conv(out_channels, out_channels, zero=True, dtype=config.dtype, rngs=rngs)
        self.skip = (
            conv(in_channels, out_channels, 1, dtype=config.dtype, rngs=rngs) if in_channels != out_channels else None
        )

    def __call__(
        self,
        x: Float[Array, "b h w i"],
        embedding: Float[Array, "b e"],
        key: Array | None = None,
        beside: Float[Array, "b h w j"] | None = None,
    ) -> Float[Array, "b h w o"]:
        """Features → features.

        Args:
            x: features.
            embedding: time embedding.
            key: draws the dropout; None switches it off. Default: None.
            beside: features whose channels follow those of `x`. Default: None.
        """
        parts = (x,) if beside is None else (x, beside)
        x = jnp.concatenate(parts, axis=-1)
        h, bias = bias_apart(self.conv1, nnx.silu(self.norm1(x, parts).astype(self.dtype)))
        embedded = self.embed(nnx.silu(embedding))
        if self.scale_shift:
            scale, shift = jnp.split(embedded[:, None, None, :], 2, axis=-1)
            h = self.norm2(h, shift=bias) * (1 + scale) + shift
        else:
            h = self.norm2(h, shift=bias + embedded)
        h = self.dropout(nnx.silu(h.astype(self.dtype)), deterministic=key is None, rngs=key)
        return self.conv2(h) + (x if self.skip is None else self.skip(x)).astype(self.dtype)

    def flops(self, positions: int) -> int:
        """FLOPs of one example on a map of `positions` positions."""
        layers = (self.conv1, self.conv2, self.skip)
        return sum(kernel_flops(layer, positions) for layer in layers) + kernel_flops(self.embed, 1)


class Downsample(nnx.Module):
    """Half the height and width: a stride-2 convolution, or 2×2 average pooling."""

    def __init__(self, channels: int, config: UNetConfig, *, rngs: nnx.Rngs):
        self.conv = conv(channels, channels, stride=2, dtype=config.dtype, rngs=rngs) if config.conv_resample else None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Features at half the resolution."""
        if self.conv is not None:
            return self.conv(x)
        return nnx.avg_pool(x, (2, 2), strides=(2, 2))


class Upsample(nnx.Module):
    """Twice the height and width: nearest neighbours, then a convolution where resampling is learned."""

    def __init__(self, channels: int, config: UNetConfig, *, rngs: nnx.Rngs):
        self.conv = (
            conv(channels, channels, upsample=True, dtype=config.dtype, rngs=rngs) if config.conv_resample else None
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Features at twice the resolution."""
        return upsample_nearest(x) if self.conv is None else self.conv(x)


class Level(nnx.Module):
    """The blocks of one resolution, each with its attention where the level attends, and the change to the next."""

    def __init__(
        self, widths: list[tuple[int, int]], embedding: int, attends: bool, config: UNetConfig, *, resample, rngs
    ):
        self.remat = config.remat
        self.blocks = nnx.List([ResBlock(i, o, embedding, config, rngs=rngs) for i, o in widths])
        self.attentions = nnx.List(
            [SpatialAttention(o, config, linear_attention=config.use_linear_attn, rngs=rngs) for _, o in widths]
            if attends
            else []
        )
        self.resample = resample(widths[-1][1], config, rngs=rngs) if resample else None

    def flops(self, positions: int) -> int:
        """FLOPs of one example without the resampling."""
        return sum(layer.flops(positions) for layer in (*self.blocks, *self.attentions))

    def block(self, index: int, x, embedding, key, beside=None):
        """Residual block and attention number `index`; with `remat`, the backward pass saves only its input."""

        def apply(level, x, embedding, key, beside):
            x = level.blocks[index](x, embedding, key, beside)
            return level.attentions[index](x) if level.attentions else x

        return (nnx.remat(apply) if self.remat else apply)(self, x, embedding, key, beside)


class Middle(nnx.Module):
    """Block, softmax attention, block at the lowest resolution."""

    def __init__(self, channels: int, embedding: int, config: UNetConfig, *, rngs: nnx.Rngs):
        self.block1 = ResBlock(channels, channels, embedding, config, rngs=rngs)
        self.attention = SpatialAttention(channels, config, linear_attention=False, rngs=rngs)
        self.block2 = ResBlock(channels, channels, embedding, config, rngs=rngs)

    def __call__(self, x, embedding, key1=None, key2=None):
        """Features → features of the same shape; the keys draw the blocks' dropout."""
        return self.block2(self.attention(self.block1(x, embedding, key1)), embedding, key2)

    def flops(self, positions: int) -> int:
        """FLOPs of one example."""
        return sum(layer.flops(positions) for layer in (self.block1, self.attention, self.block2))


class UNet(nnx.Module):
    """Velocity of a latent at time t, given the context. `UNet(config, rngs=nnx.Rngs(0))`."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, dtype = config.model_channels, config.dtype
        embedding = 4 * width
        self.time1 = linear(width, embedding, dtype=jnp.float32, rngs=rngs)
        self.time2 = linear(embedding, embedding, dtype=jnp.float32, rngs=rngs)

        second = config.time_inputs == 2
        self.second_time1 = linear(width, embedding, dtype=jnp.float32, rngs=rngs) if second else None
        # Zeros: a network initialised from the weights of one without a second time has the same velocity.
        self.second_time2 = linear(embedding, embedding, zero=True, dtype=jnp.float32, rngs=rngs) if second else None

        pool = config.pool_factor
        channels = config.in_channels
        pools = pool > 1
        self.pool = conv(channels, width, pool, stride=pool, padding=0, dtype=dtype, rngs=rngs) if pools else None
        self.unpool = _transposed_conv(width, config.out_channels, pool, dtype=dtype, rngs=rngs) if pools else None
        channels = width if pools else channels
        self.conv_in = conv(channels, width, dtype=dtype, rngs=rngs)

        skips = [width]
        levels = []
        last = len(config.channel_mult) - 1
        channels = width
        for depth, mult in enumerate(config.channel_mult):
            widths = [(channels if j == 0 else mult * width, mult * width) for j in range(config.num_res_blocks)]
            channels = mult * width
            skips += [channels] * config.num_res_blocks + ([channels] if depth < last else [])
            resample = Downsample if depth < last else None
            levels.append(Level(widths, embedding, config.attends[depth], config, resample=resample, rngs=rngs))
        self.down = nnx.List(levels)

        self.middle = Middle(channels, embedding, config, rngs=rngs)

        levels = []
        for depth, mult in reversed(list(enumerate(config.channel_mult))):
            widths = []
            for _ in range(config.num_res_blocks + 1):
                widths.append((channels + skips.pop(), mult * width))
                channels = mult * width
            levels.append(
                Level(widths, embedding, config.attends[depth], config, resample=Upsample if depth else None, rngs=rngs)
            )
        self.up = nnx.List(levels)

        self.norm_out = GroupNorm(channels)
        self.conv_out = conv(channels, width if pools else config.out_channels, zero=not pools, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, "b"],
        context: Float[Array, "b h w k"] | None = None,
        *,
        second_time: Float[Array, "b"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "b h w c"]:
        """Velocity d x / d t.

        Args:
            x: state at time t, float32.
            t: time in [0, 1] of each example; not multiplied by 1000.
            context: upsampled low-res latent without noise, of x's height and width; None for a network without one.
            second_time: of each example, for a network with `time_inputs` 2. Default: None.
            dropout_key: draws the dropout; None switches it off. Default: None.

        Returns:
            float32 of x's shape.

        Raises:
            InputError: channels or times other than the config's, or a size that the levels cannot halve.
        """
        config = self.config
        self._check(x, context, second_time)
        h = x if context is None else jnp.concatenate([x, context], axis=-1)
        h = h.astype(config.dtype)
        embedding = self.time2(nnx.silu(self.time1(time_features(t, config.model_channels))))
        if second_time is not None and self.second_time1 is not None and self.second_time2 is not None:
            features = time_features(second_time, config.model_channels)
            embedding += self.second_time2(nnx.silu(self.second_time1(features)))

        keys = (None if dropout_key is None else jax.random.fold_in(dropout_key, i) for i in itertools.count())

        if self.pool is not None:
            h = self.pool(h)
        h = self.conv_in(h)
        skips = [h]
        for level in self.down:
            for j in range(len(level.blocks)):
                h = level.block(j, h, embedding, next(keys))
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h)
                skips.append(h)
        h = self.middle(h, embedding, next(keys), next(keys))
        for level in self.up:
            for j in range(len(level.blocks)):
                h = level.block(j, h, embedding, next(keys), beside=skips.pop())
            if level.resample is not None:
                h = level.resample(h)
        h = self.conv_out(nnx.silu(self.norm_out(h).astype(config.dtype)))
        if self.unpool is not None:
            h = self.unpool(h)
        return h.astype(jnp.float32)

    def velocity(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, "b"],
        context: Float[Array, "b h w k"],
        *,
        second_time: Float[Array, "b"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "b h w c"]:
        """Return `__call__`; a network without context channels ignores the context."""
        return self(
            x,
            t,
            context if self.config.context_channels else None,
            second_time=second_time,
            dropout_key=dropout_key if self.config.dropout else None,
        )

    def _check(self, x: Array, context: Array | None, second_time: Array | None) -> None:
        config = self.config
        times = 1 if second_time is None else 2
        if times != config.time_inputs:
            raise InputError(
                f"the UNet reads {config.time_inputs} time(s), found {times}; unet.time_inputs must be what the "
                "objective needs"
            )
        found = 0 if context is None else context.shape[-1]
        if x.shape[-1] != config.out_channels or found != config.context_channels:
            raise InputError(
                f"the UNet expects a state of {config.out_channels} channels and a context of "
                f"{config.context_channels}, found {x.shape[-1]} and {found}"
            )
        multiple = config.size_multiple
        if x.shape[1] % multiple or x.shape[2] % multiple:
            raise InputError(
                f"the UNet halves its input {len(config.channel_mult) - 1} times, so height and width must be "
                f"multiples of {multiple}, found {x.shape[1]}×{x.shape[2]}; pad the latent and crop the result"
            )


def time_features(t: Float[Array, "b"], width: int) -> Float[Array, "b f"]:
    """Sinusoids of the time: cosines, then sines, at frequencies 10000^(−i / half), of t in [0, 1].

    Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5.
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(10000) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def _transposed_conv(in_channels: int, out_channels: int, stride: int, *, dtype, rngs: nnx.Rngs) -> nnx.ConvTranspose:
    init = uniform_fan_in(out_channels * stride * stride)
    return nnx.ConvTranspose(
        in_channels,
        out_channels,
        (stride, stride),
        strides=(stride, stride),
        padding="VALID",
        transpose_kernel=True,
        kernel_init=init,
        bias_init=init,
        dtype=dtype,
        param_dtype=jnp.float32,
        rngs=rngs,
    )
