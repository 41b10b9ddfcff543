"""Layers that several networks share, with PyTorch's default initialisation.

Arrays are NHWC; parameters float32; `dtype` is that of convolutions and matrix products.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from fmboost_jax.models.convolution import convolve, upsample_conv

GROUPS = 32
EPSILON = 1e-5


def uniform_fan_in(fan_in: int) -> nnx.Initializer:
    """Return the initializer U(−1/√fan_in, 1/√fan_in), PyTorch's default for convolutions and linear layers.

    Source: He et al. 2015, arXiv 1502.01852, equation 10, with the leaky slope √5 that PyTorch passes.
    """
    bound = 1 / np.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound, out_sharding=out_sharding)

    return init


def conv(
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    padding: int | None = None,
    zero: bool = False,
    bias: bool = True,
    upsample: bool = False,
    dtype,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Return a square two-dimensional convolution with `padding` on all four sides (default: (kernel − 1) / 2).

    With `upsample`, it first upsamples the map ×2 by nearest neighbours.
    """
    padding = (kernel - 1) // 2 if padding is None else padding
    init = nnx.initializers.zeros if zero else uniform_fan_in(in_channels * kernel * kernel)
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel, kernel),
        strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        use_bias=bias,
        kernel_init=init,
        bias_init=init,
        dtype=dtype,
        param_dtype=jnp.float32,
        conv_general_dilated=upsample_conv if upsample else convolve,
        rngs=rngs,
    )


def bias_apart(layer: nnx.Conv, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b H W d"], Float[Array, "1 d"]]:
    """Return what a layer of `conv` computes without its bias, and the bias; a `GroupNorm` takes it as its `shift`.

    Raises:
        ValueError: a layer without a bias.
    """
    if layer.bias is None:
        raise ValueError("expected a convolution with a bias")
    x, kernel, bias = (array.astype(layer.dtype) for array in (x, layer.kernel[...], layer.bias[...]))
    return layer.conv_general_dilated(x, kernel, layer.strides, layer.padding), bias[None].astype(jnp.float32)


def linear(in_features: int, out_features: int, *, zero: bool = False, dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """Return a linear layer on the last axis."""
    init = nnx.initializers.zeros if zero else uniform_fan_in(in_features)
    return nnx.Linear(
        in_features, out_features, kernel_init=init, bias_init=init, dtype=dtype, param_dtype=jnp.float32, rngs=rngs
    )


class GroupNorm(nnx.Module):
    """Group normalisation (Wu and He 2018, arXiv 1803.08494); statistics and result are float32.

    The map is summed by channel first, then by group. `flax.nnx.GroupNorm` splits the channels into groups first, for
    which TPUs copy the whole map in float32 (bench/tpu.md). The variance is the mean square minus the squared mean,
    which reads the map once. Where the process has a GPU, the map is summed row by row first: XLA computes the sums
    of a whole map on a few of its multiprocessors.
    """

    def __init__(self, channels: int, *, groups: int = GROUPS, epsilon: float = EPSILON):
        if channels % groups:
            raise ValueError(f"{channels} channels are not a multiple of {groups} groups")
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.groups, self.epsilon = groups, epsilon

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        parts: Sequence[Float[Array, "b h w _"]] = (),
        shift: Float[Array, "#b c"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Normalise features of any float type; the result is float32.

        Args:
            x: the features.
            parts: the maps of which `x` is the concatenation, where it is one. Their channels are summed before they
                are concatenated, together with the operation that makes them. Default: (), none.
            shift: float32 values to add to each channel before, such as the bias of a convolution that made `x`. They
                change the statistics alone, so that no gradient of theirs is a sum over the map. Default: None.
        """
        maps = [part.astype(jnp.float32) for part in parts or (x,)]
        # Not by `jax.lax.platform_dependent`: a choice at lowering doubles the tracing, and CPUs then round otherwise.
        moments = self._moments_by_row if jax.default_backend() == "gpu" else self._moments
        mean, square = moments(maps, shift)
        variance = jnp.maximum(square - jnp.square(mean), 0)
        mean = mean if shift is None else mean - shift
        factor = jax.lax.rsqrt(variance + self.epsilon)[:, None, None] * self.scale[...]
        return (x.astype(jnp.float32) - mean[:, None, None]) * factor + self.bias[...]

    def _moments(
        self, maps: Sequence[Float[Array, "b h w _"]], shift: Float[Array, "#b c"] | None
    ) -> tuple[Float[Array, "b c"], Float[Array, "b c"]]:
        """Return mean and mean square of each channel's group; the channels are those of all maps, in order."""
        mean, square = (
            jnp.concatenate([jnp.mean(power(x), axis=(1, 2)) for x in maps], axis=-1)
            for power in (jnp.asarray, jnp.square)
        )
        if shift is not None:
            mean, square = mean + shift, square + shift * (2 * mean + shift)
        return of_groups(mean, self.groups), of_groups(square, self.groups)

    def _moments_by_row(
        self, maps: Sequence[Float[Array, "b h w _"]], shift: Float[Array, "#b c"] | None
    ) -> tuple[Float[Array, "b c"], Float[Array, "b c"]]:
        """Return the same, summed row by row; the barrier keeps XLA from merging the two sums."""
        x = jnp.concatenate(maps, axis=-1)
        x = x if shift is None else x + shift[:, None, None]
        size = x.shape[-1] // self.groups
        rows = jnp.stack(jax.lax.optimization_barrier([jnp.mean(values, axis=2) for values in (x, jnp.square(x))]))
        grouped = jnp.mean(rows.reshape(*rows.shape[:3], self.groups, size), axis=(2, 4))
        mean, square = jnp.repeat(grouped, size, axis=-1)
        return mean, square


def of_groups(values: Float[Array, "b c"], groups: int) -> Float[Array, "b c"]:
    """Replace each channel's value by the mean of its group."""
    grouped = values.reshape(values.shape[0], groups, -1)
    return jnp.broadcast_to(jnp.mean(grouped, axis=-1, keepdims=True), grouped.shape).reshape(values.shape)
