"""The TAESD family as a first stage: tiny autoencoders that share the latent space of a large one.

Source: madebyollin/taesd ("Tiny AutoEncoder for Stable Diffusion"), which distils SD's, SDXL's, SD 3's, FLUX.1's and
FLUX.2's autoencoders. The encoder returns a point, not a distribution. The networks work on images in [0, 1]; `encode`
and `decode` convert from and to [-1, 1]. The latents are the large autoencoder's *after* its scaling factor.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from fmboost_jax.configuration import require, require_at_least, require_at_most
from fmboost_jax.errors import InputError
from fmboost_jax.models.blocks import GroupNorm, conv
from fmboost_jax.models.first_stage import square
from fmboost_jax.models.parameters import kernel_flops

# The decoder bounds latents smoothly to ±3, against outliers of a sampler.
LATENT_BOUND = 3.0
_Cut = Callable[[Array], Array]

# Width of the pool branch relative to its block; also its number of groups.
POOL_EXPANSION = 4


@dataclasses.dataclass(frozen=True)
class AutoencoderTinyConfig:
    """Architecture and latent scale; the defaults are TAESD for SD 1.x.

    Attributes:
        image_channels: channels of the image.
        patch_size: pixels a side of the patches that the network sees as one position of patch_size² · image_channels
            channels; 1, each pixel a position, in the whole TAESD family.
        latent_channels: 4 (SD 1.x/2.x, SDXL), 16 (SD 3, FLUX.1) or 32 (FLUX.2).
        width: feature channels at every size.
        encoder_blocks: residual blocks of each level, finest first; every level but the first halves the size.
        decoder_blocks: residual blocks of each level, coarsest first; every level but the last doubles the size.
        pool: group-norm branch in the blocks of the coarsest level (the FLUX.2 variant).
        scaling_factor, shift_factor: scaled latent = (latent − shift_factor) · scaling_factor.
        dtype: "float32" or "bfloat16", of convolutions; parameters and norms stay float32.
    """

    image_channels: int = 3
    patch_size: int = 1
    latent_channels: int = 4
    width: int = 64
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    pool: bool = False
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    dtype: str = "float32"

    def __post_init__(self):
        if len(self.encoder_blocks) != len(self.decoder_blocks):
            raise InputError(
                "tiny autoencoder: encoder and decoder must have the same number of levels, found "
                f"{len(self.encoder_blocks)} and {len(self.decoder_blocks)}"
            )
        require_at_least("tiny autoencoder: ", self, image_channels=1, patch_size=1, latent_channels=1, width=1)
        most = {"image_channels": 1024, "patch_size": 64, "latent_channels": 65536, "width": 65536}
        require_at_most("tiny autoencoder: ", self, **most)
        for name in ("encoder_blocks", "decoder_blocks"):
            blocks = getattr(self, name)
            holds = 1 <= len(blocks) <= 12 and all(0 <= count <= 64 for count in blocks)
            require("tiny autoencoder: ", self, name, "1 to 12 numbers from 0 to 64", holds)
        require("tiny autoencoder: ", self, "scaling_factor", "a number other than 0", self.scaling_factor != 0)

    @property
    def normalized(self) -> bool:
        """Whether each channel of the latents is normalised: TAEF2's code is FLUX.2's latent after its batch norm."""
        return self.pool

    @property
    def downsampling(self) -> int:
        """Image pixels per latent position and axis."""
        return self.patch_size * 2 ** (len(self.encoder_blocks) - 1)

    @property
    def patch_channels(self) -> int:
        """Channels of the positions that the network sees."""
        return self.patch_size**2 * self.image_channels


class PoolBranch(nnx.Module):
    """1×1 convolution to four times the width, group norm over the whole map, ReLU, 1×1 convolution back."""

    def __init__(self, config: AutoencoderTinyConfig, rngs: nnx.Rngs):
        wide = POOL_EXPANSION * config.width
        self.conv1 = conv(config.width, wide, 1, bias=False, dtype=config.dtype, rngs=rngs)
        self.norm = GroupNorm(wide, groups=POOL_EXPANSION)
        self.conv2 = conv(wide, config.width, 1, bias=False, dtype=config.dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return self.conv2(jax.nn.relu(self.norm(self.conv1(x))))


class Block(nnx.Module):
    """Three 3×3 convolutions with ReLUs around the input; the pool branch, if any, is added to the input first."""

    def __init__(self, pool: bool, config: AutoencoderTinyConfig, rngs: nnx.Rngs):
        width, dtype = config.width, config.dtype
        self.pool = PoolBranch(config, rngs) if pool else None
        self.conv1 = conv(width, width, dtype=dtype, rngs=rngs)
        self.conv2 = conv(width, width, dtype=dtype, rngs=rngs)
        self.conv3 = conv(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        if self.pool:
            x = x + self.pool(x)
        h = jax.nn.relu(self.conv1(x))
        h = jax.nn.relu(self.conv2(h))
        return jax.nn.relu(self.conv3(h) + x)


class DownLevel(nnx.Module):
    """A convolution (to the width at the finest level, of stride 2 at the others), then blocks."""

    def __init__(self, first: bool, blocks: int, pool: bool, config: AutoencoderTinyConfig, rngs: nnx.Rngs):
        inputs = config.patch_channels if first else config.width
        self.conv = conv(inputs, config.width, stride=1 if first else 2, bias=first, dtype=config.dtype, rngs=rngs)
        self.blocks = nnx.List([Block(pool, config, rngs) for _ in range(blocks)])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W d"]:
        x = self.conv(x)
        for block in self.blocks:
            x = block(x)
        return x


class UpLevel(nnx.Module):
    """Blocks, then nearest ×2 and a convolution; at the finest level only the convolution to the image.

    `cut` is applied between the two.
    """

    def __init__(self, last: bool, blocks: int, pool: bool, config: AutoencoderTinyConfig, rngs: nnx.Rngs):
        self.blocks = nnx.List([Block(pool, config, rngs) for _ in range(blocks)])
        outputs = config.patch_channels if last else config.width
        self.conv = conv(config.width, outputs, bias=last, upsample=not last, dtype=config.dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], cut: _Cut = lambda x: x) -> Float[Array, "b H W d"]:
        for block in self.blocks:
            x = block(x)
        return self.conv(cut(x))


class Encoder(nnx.Module):
    """Image in [0, 1] → latent."""

    def __init__(self, config: AutoencoderTinyConfig, rngs: nnx.Rngs):
        last = len(config.encoder_blocks) - 1
        self.levels = nnx.List(
            [
                DownLevel(i == 0, blocks, config.pool and i == last, config, rngs)
                for i, blocks in enumerate(config.encoder_blocks)
            ]
        )
        self.conv_out = conv(config.width, config.latent_channels, dtype=config.dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b H W c"]:
        for level in self.levels:
            x = level(x)
        return self.conv_out(x)


class Decoder(nnx.Module):
    """Latent → image in [0, 1]; `cut` is applied after the blocks at the latent's size."""

    def __init__(self, config: AutoencoderTinyConfig, rngs: nnx.Rngs):
        last = len(config.decoder_blocks) - 1
        self.conv_in = conv(config.latent_channels, config.width, dtype=config.dtype, rngs=rngs)
        self.levels = nnx.List(
            [
                UpLevel(i == last, blocks, config.pool and i == 0, config, rngs)
                for i, blocks in enumerate(config.decoder_blocks)
            ]
        )

    def __call__(self, x: Float[Array, "b h w c"], cut: _Cut = lambda x: x) -> Float[Array, "b H W i"]:
        x = jax.nn.relu(self.conv_in(jnp.tanh(x / LATENT_BOUND) * LATENT_BOUND))
        x = self.levels[0](x, cut)
        for level in self.levels[1:]:
            x = level(x)
        return x


class AutoencoderTiny(nnx.Module):
    """The autoencoder, with the methods of every first stage.

    Args:
        config: architecture.
        rngs: draws the initial weights.
    """

    def __init__(self, config: AutoencoderTinyConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs)
        self.decoder = Decoder(config, rngs)
        # Default format of `fmboost_jax.interop.state_dict`; loading sets it.
        self.weight_names = "diffusers"

    def encode(self, image: Float[Array, "b h w i"]) -> tuple[Float[Array, "b H W c"], None]:
        """Latent of an image, and None, since the encoder is deterministic.

        Args:
            image: in [-1, 1]; height and width multiples of `config.downsampling`.

        Raises:
            InputError: height or width is not a multiple of `config.downsampling`.
        """
        factor = self.config.downsampling
        height, width = image.shape[1:3]
        if height % factor or width % factor:
            raise InputError(
                f"image of {height}×{width} pixels: this autoencoder needs multiples of {factor}; crop or resize it"
            )
        patches = to_patches((image + 1) / 2, self.config.patch_size)
        return self.encoder(patches.astype(self.config.dtype)).astype(jnp.float32), None

    def decode(self, latent: Float[Array, "b h w c"]) -> Float[Array, "b H W i"]:
        """Image of a latent: float32, in [-1, 1] up to the network's overshoot (not clipped)."""
        return self._image(self.decoder(latent.astype(self.config.dtype)))

    def decode_part(
        self, latent: Float[Array, "b h w c"], corner: Int[Array, "2"], side: int
    ) -> Float[Array, "b size size i"]:
        """Image of a square part of a latent, see `fmboost_jax.models.first_stage.decode_part`.

        The pool branch takes its statistics from the whole latent, so the coarsest blocks see all of it.
        """
        if not self.config.pool:
            return self.decode(square(latent, corner, side))
        return self._image(self.decoder(latent.astype(self.config.dtype), lambda x: square(x, corner, side)))

    def _image(self, patches: Array) -> Float[Array, "b H W i"]:
        return from_patches(patches.astype(jnp.float32), self.config.patch_size) * 2 - 1

    def decoder_flops(self, height: int, width: int) -> int:
        """FLOPs of decoding one latent of this size; a multiply-add is two, norms do not count."""
        positions = height * width
        total = kernel_flops(self.decoder.conv_in, positions)
        last = len(self.decoder.levels) - 1
        for number, level in enumerate(self.decoder.levels):
            total += kernel_flops(level.blocks, positions)
            positions *= 1 if number == last else 4
            total += kernel_flops(level.conv, positions)
        return total


def to_patches(image: Float[Array, "b h w c"], size: int) -> Float[Array, "b H W d"]:
    """Move squares of `size`² pixels to the channels of one position: rows first, then columns, then colours."""
    b, h, w, c = image.shape
    image = image.reshape(b, h // size, size, w // size, size, c)
    return image.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // size, w // size, size * size * c)


def from_patches(patches: Float[Array, "b h w d"], size: int) -> Float[Array, "b H W c"]:
    """The inverse of `to_patches`."""
    b, h, w, d = patches.shape
    patches = patches.reshape(b, h, w, size, size, d // size**2)
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * size, w * size, d // size**2)
