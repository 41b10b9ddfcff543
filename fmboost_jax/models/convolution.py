"""A convolution that is a matrix product where that is quicker: on CPUs, for small feature maps.

XLA's CPU convolutions are made for large maps. At 8×8 positions and fewer, where a UNet has most of its weights, the
product of the kernel with the map's patches runs two to four times as fast, its gradient even more so
(`python -m bench.convolution`). Accelerators always convolve. The numbers are the same up to float32 rounding.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jaxtyping import Array, Float

# Positions of the output up to which the patches are worth their memory.
SMALL_MAP = 64


def convolve(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "kh kw i o"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options,
) -> Float[Array, "b H W o"]:
    """`jax.lax.conv_general_dilated` of NHWC arrays without dilation or groups; `flax.nnx.Conv` can take it instead.

    Args:
        x: feature map.
        kernel: height, width, input and output channels.
        strides: along height and width.
        padding: zeros before and after, along height and width.
        options: passed on to `jax.lax.conv_general_dilated`.
    """

    def direct(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)

    size = [
        (length + sum(pad) - extent) // stride + 1
        for length, extent, stride, pad in zip(x.shape[1:3], kernel.shape[:2], strides, padding, strict=True)
    ]
    small = not any(map(is_symbolic_dim, size)) and size[0] * size[1] <= SMALL_MAP
    if x.dtype != jnp.float32 or not small or kernel.shape[:2] == (1, 1):
        return direct(x, kernel)

    def product(x, kernel):
        padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        (height, width), (down, right) = size, strides
        patches = [
            padded[:, i : i + down * (height - 1) + 1 : down, j : j + right * (width - 1) + 1 : right]
            for i in range(kernel.shape[0])
            for j in range(kernel.shape[1])
        ]
        return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])

    return jax.lax.platform_dependent(x, kernel, cpu=product, default=direct)
