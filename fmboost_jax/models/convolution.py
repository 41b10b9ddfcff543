"""Convolutions in the form that is quickest where they run; the numbers are the same up to rounding.

Accelerators convolve as they are told. CPUs, which multiply slowly, get fewer multiplications or plain matrix products
(`python -m bench.convolution`):

* Small maps: the product of the kernel with the map's patches. XLA's CPU convolutions are made for large maps; at 16×16
  positions and fewer, where a UNet has most of its weights, the product runs up to three times as fast.
* Large maps and 3×3 kernels: Winograd's minimal filtering along the height, two multiplications where there were four.
* 1×1 kernels: the matrix product that they are.

Enlarging and convolving at once: a 3×3 kernel on a map whose every position stands there twice along height and width
meets each value two or four times. With those weights added up first, 4 products an output do instead of 9, on CPUs
2.25, and the large map is never made.
"""

import functools
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim
from jaxtyping import Array, Float

# Positions of the output up to which the patches are worth their memory, and from which on Winograd's transforms of the
# kernel are worth their time; channels in and out from which on those of the map are.
SMALL_MAP = 256
LARGE_MAP = 1024
WIDE = 32

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
    way = on_cpus(x, kernel, strides, padding)
    if way is direct:
        return direct(x, kernel, strides, padding, **options)
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: way(x, kernel, strides, padding),
        default=lambda x, kernel: direct(x, kernel, strides, padding, **options),
    )


def on_cpus(x: Map, kernel: Kernel, strides: Sequence[int], padding: Padding) -> Callable[..., Output]:
    """What `convolve` does on a CPU: `direct`, `product` or `winograd`; arguments as there."""
    size = _output_size(x.shape[1:3], kernel, strides, padding)
    if x.dtype != jnp.float32 or any(map(is_symbolic_dim, size)):
        return direct
    positions = size[0] * size[1]
    if positions <= SMALL_MAP or kernel.shape[:2] == (1, 1):
        return product
    filters = kernel.shape[:2] == (3, 3) and tuple(strides) == (1, 1)
    return winograd if filters and min(kernel.shape[2:]) >= WIDE and positions >= LARGE_MAP else direct


def convolve_enlarged(x: Map, kernel: Kernel, strides: Sequence[int], padding: Padding, **options) -> Output:
    """Nearest neighbours ×2, then a 3×3 convolution of stride 1; `flax.nnx.Conv` can take it.

    Args:
        x: feature map, not yet enlarged.
        kernel: 3, 3, input and output channels.
        strides: (1, 1).
        padding: zeros around `x`: (1, 1) along an axis for twice its length; (0, 0) leaves out what the outermost
            values give, which are then there as neighbours alone.
        options: passed on to `jax.lax.conv_general_dilated`.

    Raises:
        ValueError: another kernel or stride.
    """
    if kernel.shape[:2] != (3, 3) or tuple(strides) != (1, 1):
        raise ValueError(f"expected a 3×3 kernel of stride 1, found {kernel.shape[:2]} and {tuple(strides)}")
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: differences(x, kernel, padding),
        default=lambda x, kernel: dilated(x, kernel, padding, **options),
    )


def dilated(x: Map, kernel: Kernel, padding: Padding, **options) -> Output:
    """A transposed convolution: the taps folded to 4×4, the map with zeros between its values, which XLA skips."""
    folded = _fold(_fold(kernel.astype(jnp.float32), 0), 1).astype(kernel.dtype)
    padding = [(2 * before, 2 * after) for before, after in padding]
    return direct(x, folded, (1, 1), padding, **{**options, "lhs_dilation": (2, 2)})


def differences(x: Map, kernel: Kernel, padding: Padding) -> Output:
    """Nine matrix products, in float32, for the four outputs that each position of the map has.

    Along one axis, with the taps a, b and c and their sum s: the output at 2i is s·x[i] − a·(x[i] − x[i − 1]), at
    2i + 1 it is s·x[i] + c·(x[i + 1] − x[i]). Along both, every product here is three there.
    """
    dtype, x, kernel = x.dtype, x.astype(jnp.float32), kernel.astype(jnp.float32)
    x = jax.lax.pad(x, jnp.float32(0), [(0, 0, 0), *((*around, 0) for around in padding), (0, 0, 0)])
    rows = _even_and_odd(x, kernel, 1, lambda x, taps: _even_and_odd(x, taps, 2, jnp.matmul))
    interleaved = jnp.stack([jnp.stack(columns, axis=3) for columns in rows], axis=2)
    b, height, _, width, _, channels = interleaved.shape
    return interleaved.reshape(b, 2 * height, 2 * width, channels).astype(dtype)


def _even_and_odd(x: Map, taps: Array, axis: int, product: Callable) -> list:
    """What stands at even and at odd places along an axis of the output, of a padded map.

    Args:
        x: the map, with one value more before and after.
        taps: three, on the first axis.
        axis: of the map.
        product: of a map and one tap; an array or a list of them.
    """
    length = x.shape[axis]
    part = functools.partial(jax.lax.slice_in_dim, axis=axis)
    first, middle, last = (tap[0] for tap in jax.lax.split(taps, (1, 1, 1)))
    whole = product(part(x, 1, length - 1), first + middle + last)
    steps = part(x, 1, length) - part(x, 0, length - 1)
    to_here, from_here = product(steps, first), product(steps, last)
    return [
        jax.tree.map(lambda whole, step: whole - part(step, 0, length - 2), whole, to_here),
        jax.tree.map(lambda whole, step: whole + part(step, 1, length - 1), whole, from_here),
    ]


def _fold(kernel: Array, axis: int) -> Array:
    """Three taps on doubled values as four taps on values with zeros between them: neighbours added."""
    one = [(0, 0)] * kernel.ndim
    before, after = list(one), list(one)
    before[axis], after[axis] = (1, 0), (0, 1)
    return jnp.pad(kernel, before) + jnp.pad(kernel, after)


def direct(x: Map, kernel: Kernel, strides: Sequence[int], padding: Padding, **options) -> Output:
    """XLA's convolution."""
    numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), **options}
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **numbers)


def _powers(terms: int) -> np.ndarray:
    """A row for each of the points that products are taken at: its powers; the last row is infinity's.

    These points lose less to rounding than the usual ones, 0, ±1 and ±2.
    """
    points = (0, 0.75, -0.75, 1.5, -1.5)
    return np.array([[point**power for power in range(terms)] for point in points] + [[0] * (terms - 1) + [1]])


# Halved and doubled, as XLA would copy the rows and taps whose only factor is one.
OF_TAPS, OF_PRODUCTS = _powers(3) / 2, _powers(4).T
OF_ROWS = 2 * np.round(np.linalg.inv(_powers(6)).T, 12)


def winograd(x: Map, kernel: Kernel, strides: Sequence[int], padding: Padding) -> Output:
    """A 3×3 convolution of stride 1 that takes four rows of the output from six products instead of twelve.

    Source: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308, section 4.1:
    F(4, 3), here along the height alone.
    """
    (before, after), across = padding
    height = x.shape[1] + before + after - 2
    tiles = -(-height // 4)
    x = jax.lax.pad(
        x, jnp.zeros((), x.dtype), [(0, 0, 0), (before, after + 4 * tiles - height, 0), (0, 0, 0), (0, 0, 0)]
    )
    rows = [x[:, i : i + 4 * tiles - 3 : 4] for i in range(6)]
    taps = jax.lax.split(kernel, (1, 1, 1))
    products = [
        direct(_combination(of_rows, rows), _combination(of_taps, taps), (1, 1), ((0, 0), across))
        for of_rows, of_taps in zip(OF_ROWS, OF_TAPS, strict=True)
    ]
    outputs = jnp.stack([_combination(of_products, products) for of_products in OF_PRODUCTS], axis=2)
    return outputs.reshape(x.shape[0], 4 * tiles, *outputs.shape[3:])[:, :height]


def _combination(coefficients: np.ndarray, terms: Sequence[Array]) -> Array:
    weighted = (np.float32(factor) * term for factor, term in zip(coefficients, terms, strict=True) if factor)
    return functools.reduce(operator.add, weighted)


def product(x: Map, kernel: Kernel, strides: Sequence[int], padding: Padding) -> Output:
    """The matrix product of the map's patches with the kernel; negative padding cuts, as in XLA's."""
    (height, width), (down, right) = _output_size(x.shape[1:3], kernel, strides, padding), strides
    padded = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*around, 0) for around in padding), (0, 0, 0)])
    patches = [
        padded[:, i : i + down * (height - 1) + 1 : down, j : j + right * (width - 1) + 1 : right]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def upsample_nearest(x: Map, factor: int = 2) -> Output:
    """Every position repeated `factor` times along height and width."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, factor, w, factor, c))
    return x.reshape(b, h * factor, w * factor, c)


def _output_size(size, kernel, strides, padding) -> list:
    return [
        (length + sum(pad) - extent) // stride + 1
        for length, extent, stride, pad in zip(size, kernel.shape[:2], strides, padding, strict=True)
    ]
