"""A convolution that is a matrix product where that is quicker: on CPUs, for small feature maps.

XLA's CPU convolutions are made for large maps. At 16×16 positions and fewer, where a UNet has most of its weights, the
product of the kernel with the map's patches runs up to three times as fast, its gradient even more so
(`python -m bench.convolution`). Accelerators always convolve. The numbers are the same up to float32 rounding.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jaxtyping import Array, Float

# Positions of the output up to which the patches are worth their memory.
SMALL_MAP = 256

Map = Float[Array, "b h w i"]
Kernel = Float[Array, "kh kw i o"]
Output = Float[Array, "b H W o"]
Padding = Sequence[tuple[int, int]]


def convolve(x: Map, kernel: Kernel, strides: Sequence[int], padding: Padding, **options) -> Output:
    """`jax.lax.conv_general_dilated` of NHWC arrays without dilation or groups; `flax.nnx.Conv` can take it instead.

    Args:
        x: feature map.
        kernel: height, width, input and output channels.
        strides: along height and width.
        padding: zeros before and after, along height and width.
        options: passed on to `jax.lax.conv_general_dilated`.
    """
    size = _output_size(x, kernel, strides, padding)
    small = not any(map(is_symbolic_dim, size)) and size[0] * size[1] <= SMALL_MAP
    if x.dtype != jnp.float32 or not small or kernel.shape[:2] == (1, 1):
        return direct(x, kernel, strides, padding, **options)
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: product(x, kernel, strides, padding),
        default=lambda x, kernel: direct(x, kernel, strides, padding, **options),
    )


def direct(x: Map, kernel: Kernel, strides: Sequence[int], padding: Padding, **options) -> Output:
    """XLA's convolution."""
    numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), **options}
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **numbers)


def product(x: Map, kernel: Kernel, strides: Sequence[int], padding: Padding) -> Output:
    """The matrix product of the map's patches with the kernel."""
    (height, width), (down, right) = _output_size(x, kernel, strides, padding), strides
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    patches = [
        padded[:, i : i + down * (height - 1) + 1 : down, j : j + right * (width - 1) + 1 : right]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _output_size(x, kernel, strides, padding) -> list:
    return [
        (length + sum(pad) - extent) // stride + 1
        for length, extent, stride, pad in zip(x.shape[1:3], kernel.shape[:2], strides, padding, strict=True)
    ]
