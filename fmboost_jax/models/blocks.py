"""Layers that several networks share, with PyTorch's default initialisation.

Arrays are NHWC; parameters float32; `dtype` is what convolutions and matrix products compute in.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from fmboost_jax.models.convolution import convolve

GROUPS = 32


def uniform_fan_in(fan_in: int) -> nnx.Initializer:
    """U(−1/√fan_in, 1/√fan_in): what PyTorch draws for weights and biases of convolutions and linear layers.

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
    dtype,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square two-dimensional convolution; `padding` on all four sides, (kernel − 1) / 2 unless told."""
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
        conv_general_dilated=convolve,
        rngs=rngs,
    )


def linear(in_features: int, out_features: int, *, zero: bool = False, dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer on the last axis."""
    init = nnx.initializers.zeros if zero else uniform_fan_in(in_features)
    return nnx.Linear(
        in_features, out_features, kernel_init=init, bias_init=init, dtype=dtype, param_dtype=jnp.float32, rngs=rngs
    )


def group_norm(channels: int, *, epsilon: float = 1e-5, groups: int = GROUPS, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Group normalisation (Wu and He 2018, arXiv 1803.08494); statistics and result in float32."""
    return nnx.GroupNorm(
        channels, num_groups=groups, epsilon=epsilon, dtype=jnp.float32, param_dtype=jnp.float32, rngs=rngs
    )


def upsample_nearest(x: Float[Array, "b h w c"], factor: int = 2) -> Float[Array, "b H W c"]:
    """Every position repeated `factor` times along height and width."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, factor, w, factor, c))
    return x.reshape(b, h * factor, w * factor, c)
