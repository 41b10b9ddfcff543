"""Convolutions in the fastest form of each platform; the forms agree up to rounding.

Accelerators run XLA's convolution. CPUs multiply slowly and get the forms of `convolution_cpu.py`, chosen by
measurement (`python -m bench.convolution`):

* Small maps: im2col. XLA's CPU convolutions are tuned for large maps. At 16×16 positions and fewer, where a UNet has
  most of its weights, the matrix product runs up to three times as fast.
* Large maps and 3×3 kernels: Winograd's minimal filtering.
* 1×1 kernels: one matrix product.

`upsample_conv` upsamples by nearest neighbours and convolves in one operation. A 3×3 kernel on the upsampled map reads
each value two or four times. Weights of the same value are added first: an output then takes 4 products instead of 9
(2.25 on CPUs), and the upsampled map is never materialised. TPUs run this form well on batches alone; on a few images
they upsample first. GPUs, whose libraries have no such convolution, run one of 2×2 taps and interleave its results.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jaxtyping import Array

from fmboost_jax.models.bilinear import bilinear
from fmboost_jax.models.convolution_cpu import (
    Kernel,
    Map,
    Output,
    Padding,
    canonical,
    im2col,
    output_size,
    upsample_conv_differences,
    winograd,
)

# im2col takes maps of at most SMALL_MAP output positions: larger patches cost too much memory. Winograd takes maps of
# at least LARGE_MAP output positions (they repay the transform of the kernel) and WIDE channels (that of the map).
SMALL_MAP = 256
LARGE_MAP = 1024
WIDE = 32
# Images from which TPUs run `transposed_conv` faster than `upsample_first`.
TRANSPOSED_BATCH = 8


def convolve(x: Map, kernel: Kernel, strides: Sequence[int], padding: Padding, **options) -> Output:
    """`jax.lax.conv_general_dilated` of NHWC arrays without dilation or groups; `flax.nnx.Conv` accepts it instead.

    Args:
        x: feature map.
        kernel: height, width, input and output channels.
        strides: along height and width.
        padding: zeros before and after, along height and width.
        options: passed on to `jax.lax.conv_general_dilated`.
    """
    form = cpu_form(x, kernel, strides, padding)
    if form is direct:
        return direct(x, kernel, strides, padding, **options)
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: form(x, kernel, strides, padding),
        default=lambda x, kernel: direct(x, kernel, strides, padding, **options),
    )


def cpu_form(x: Map, kernel: Kernel, strides: Sequence[int], padding: Padding) -> Callable[..., Output]:
    """The function that `convolve` runs on CPUs; arguments as for `convolve`.

    It is `canonical`, `im2col` or `winograd`, and `direct` for maps of symbolic size.
    """
    size = output_size(x.shape[1:3], kernel, strides, padding)
    if any(map(is_symbolic_dim, size)):
        return direct
    if x.dtype != jnp.float32:
        return canonical
    positions = size[0] * size[1]
    if positions <= SMALL_MAP or kernel.shape[:2] == (1, 1):
        return im2col
    filters = kernel.shape[:2] == (3, 3) and tuple(strides) == (1, 1)
    return winograd if filters and min(kernel.shape[2:]) >= WIDE and positions >= LARGE_MAP else canonical


def direct(x: Map, kernel: Kernel, strides: Sequence[int], padding: Padding, **options) -> Output:
    """XLA's convolution."""
    numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), **options}
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **numbers)


def upsample_nearest(x: Map, factor: int = 2) -> Output:
    """Repeat every position `factor` times along height and width."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, factor, w, factor, c))
    return x.reshape(b, h * factor, w * factor, c)


def upsample_conv(x: Map, kernel: Kernel, strides: Sequence[int], padding: Padding, **options) -> Output:
    """Upsample ×2 by nearest neighbours, then convolve 3×3 with stride 1; `flax.nnx.Conv` accepts it.

    Args:
        x: feature map before upsampling.
        kernel: 3, 3, input and output channels.
        strides: (1, 1).
        padding: zeros around `x`, before and after, along height and width. With (1, 1) the output is twice as long as
            `x`. With (0, 0) it is four positions shorter: the first and the last value of `x` are neighbours only.
        options: passed on to `jax.lax.conv_general_dilated`.

    Raises:
        ValueError: another kernel size or stride.
    """
    if kernel.shape[:2] != (3, 3) or tuple(strides) != (1, 1):
        raise ValueError(f"expected a 3×3 kernel of stride 1, found {kernel.shape[:2]} and {tuple(strides)}")
    few = not is_symbolic_dim(x.shape[0]) and x.shape[0] < TRANSPOSED_BATCH
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: upsample_conv_differences(x, kernel, padding),
        tpu=lambda x, kernel: (
            upsample_first(x, kernel, padding, **options) if few else transposed_conv(x, kernel, padding)
        ),
        default=lambda x, kernel: interleaved_conv(x, kernel, padding, **options),
    )


def upsample_first(x: Map, kernel: Kernel, padding: Padding, **options) -> Output:
    """`upsample_conv` as its two operations."""
    around = [(2 * before - 1, 2 * after - 1) for before, after in padding]
    return direct(upsample_nearest(x), kernel, (1, 1), around, **options)


def transposed_conv(x: Map, kernel: Kernel, padding: Padding) -> Output:
    """`upsample_conv` as a transposed convolution of a folded 4×4 kernel; XLA skips the zeros between the values."""
    folded = _fold(_fold(kernel.astype(jnp.float32), 0), 1).astype(kernel.dtype)
    return _transposed(x, folded, tuple((2 * before, 2 * after) for before, after in padding))


def _transposed_product(x, kernel, padding):
    return direct(x, kernel, (1, 1), padding, lhs_dilation=(2, 2))


def _map_gradient(kernel, output, shape, padding):
    """The gradient of the map: a convolution of stride 2."""
    return direct(output, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), (2, 2), _around(kernel.shape, padding))


def _kernel_gradient(x, output, shape, padding):
    """The gradient of the kernel: a convolution of the output's gradient with the map.

    JAX convolves the map with the output's gradient instead, and XLA reverses one of the two in memory for that. Here
    the result, which is small, is reversed.
    """
    numbers = ("CHWN", "IHWO", "HWCN")
    turned = jax.lax.conv_general_dilated(
        output, x, (1, 1), _around(shape, padding), rhs_dilation=(2, 2), dimension_numbers=numbers
    )
    return jnp.flip(turned, (0, 1))


def _around(kernel: Sequence[int], padding: Padding) -> list[tuple[int, int]]:
    """The padding of both gradients' convolutions."""
    return [
        (extent - 1 - before, extent - 1 - after) for extent, (before, after) in zip(kernel[:2], padding, strict=True)
    ]


_transposed = bilinear(_transposed_product, _map_gradient, _kernel_gradient)


def interleaved_conv(x: Map, kernel: Kernel, padding: Padding, **options) -> Output:
    """`upsample_conv` as one 2×2 convolution with four results at each position, for even and odd rows and columns."""
    outputs = kernel.shape[3]
    taps = _pairs(_pairs(kernel.astype(jnp.float32), 0), 2)  # even or odd row, its taps, even or odd column, its taps
    folded = taps.transpose(1, 3, 4, 0, 2, 5).reshape(2, 2, -1, 4 * outputs).astype(kernel.dtype)
    y = direct(x, folded, (1, 1), padding, **options)
    batch, height, width, _ = y.shape
    y = y.reshape(batch, height, width, 2, 2, outputs)
    # An even row starts at the value above its own, an odd one at its own; columns likewise.
    rows = [jnp.stack([y[:, i : height - 1 + i, j : width - 1 + j, i, j] for j in range(2)], axis=3) for i in range(2)]
    return jnp.stack(rows, axis=2).reshape(batch, 2 * (height - 1), 2 * (width - 1), outputs)


def _pairs(kernel: Array, axis: int) -> Array:
    """Three taps on repeated values → two taps on the values; the axis before them is that of even and odd results."""
    first, middle, last = (jax.lax.index_in_dim(kernel, tap, axis, keepdims=False) for tap in range(3))
    even, odd = (first, middle + last), (first + middle, last)
    return jnp.stack([jnp.stack(taps, axis) for taps in (even, odd)], axis)


def _fold(kernel: Array, axis: int) -> Array:
    """Three taps on repeated values → four taps on values with zeros between them: neighbours are added."""
    one = [(0, 0)] * kernel.ndim
    before, after = list(one), list(one)
    before[axis], after[axis] = (1, 0), (0, 1)
    return jnp.pad(kernel, before) + jnp.pad(kernel, after)
