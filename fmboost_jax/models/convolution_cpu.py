"""Convolutions on CPUs, with fewer multiplications or as plain matrix products; all but `canonical` in float32.

* `canonical`: XLA's convolution, with gradients that are fast in loops, too.
* `im2col`: one matrix product of gathered patches.
* `winograd`: Winograd's minimal filtering along the height, two multiplications for every four.
* `upsample_conv_differences`: nearest ×2 and a 3×3 convolution in one, 2.25 products an output instead of nine.
"""

import functools
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fmboost_jax.models.bilinear import bilinear

Map = Float[Array, "b h w i"]
Kernel = Float[Array, "kh kw i o"]
Output = Float[Array, "b H W o"]
Padding = Sequence[tuple[int, int]]


def output_size(size: Sequence, kernel: Kernel, strides: Sequence[int], padding: Padding) -> list:
    """Height and width of a convolution's output; negative padding crops."""
    return [
        (length + sum(pad) - extent) // stride + 1
        for length, extent, stride, pad in zip(size, kernel.shape[:2], strides, padding, strict=True)
    ]


def canonical(x: Map, kernel: Kernel, strides: Sequence[int], padding: Padding) -> Output:
    """XLA's convolution; its gradients, too, are convolutions of NHWC arrays with HWIO kernels.

    JAX's gradients are convolutions with the channels elsewhere. XLA's CPU compiler brings these to the layout of its
    fast kernel outside of loops alone; inside, as in the parts of a batch (`optim.accumulate`), they are computed value
    by value. `jax.vmap` of a gradient is not supported.
    """
    return _canonical(x, kernel, (tuple(strides), tuple(map(tuple, padding))))


def _channels_last(x: Array, kernel: Array, strides: Sequence[int], padding: Padding, **dilation) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **dilation
    )


def _product(x, kernel, options):
    return _channels_last(x, kernel, *options)


def _map_gradient(kernel, output, shape, options):
    strides, padding = options
    around = [
        (extent - 1 - before, length + before - 1 - (outputs - 1) * stride)
        for length, extent, stride, outputs, (before, _) in zip(
            shape[1:3], kernel.shape[:2], strides, output.shape[1:3], padding, strict=True
        )
    ]
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    return _channels_last(output, turned, (1, 1), around, lhs_dilation=strides)


def _kernel_gradient(x, output, shape, options):
    strides, padding = options
    around = [
        (before, extent - length - before + (outputs - 1) * stride)
        for length, extent, stride, outputs, (before, _) in zip(
            x.shape[1:3], shape[:2], strides, output.shape[1:3], padding, strict=True
        )
    ]
    columns = _channels_last(
        x.transpose(3, 1, 2, 0), output.transpose(1, 2, 0, 3), (1, 1), around, rhs_dilation=strides
    )
    return columns.transpose(1, 2, 0, 3)


_canonical = bilinear(_product, _map_gradient, _kernel_gradient)


def im2col(x: Map, kernel: Kernel, strides: Sequence[int], padding: Padding) -> Output:
    """A convolution as the matrix product of the map's patches with the kernel; negative padding crops.

    Source: Chellapilla, Puri and Simard 2006, "High Performance Convolutional Neural Networks for Document Processing".
    """
    (height, width), (down, right) = output_size(x.shape[1:3], kernel, strides, padding), strides
    padded = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*around, 0) for around in padding), (0, 0, 0)])
    patches = [
        padded[:, i : i + down * (height - 1) + 1 : down, j : j + right * (width - 1) + 1 : right]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _vandermonde(terms: int) -> np.ndarray:
    """One row of powers for each interpolation point; the last row is the point at infinity.

    These points round less than the usual 0, ±1 and ±2.
    """
    points = (0, 0.75, -0.75, 1.5, -1.5)
    return np.array([[point**power for power in range(terms)] for point in points] + [[0] * (terms - 1) + [1]])


# The filter, output and input transforms of F(4, 3). G is halved and Bᵀ doubled, which cancels: XLA would copy the rows
# and taps whose only factor is one.
G = _vandermonde(3) / 2
A_TRANSPOSED = _vandermonde(4).T
B_TRANSPOSED = 2 * np.round(np.linalg.inv(_vandermonde(6)).T, 12)


def winograd(x: Map, kernel: Kernel, strides: Sequence[int], padding: Padding) -> Output:
    """A 3×3 convolution of stride 1: four rows of the output from six products instead of twelve.

    Winograd's F(4, 3) along the height: Aᵀ [(G g) ⊙ (Bᵀ d)] for taps g and six rows d of the map, where each product is
    a convolution along the width.

    Source: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308, section 4.1.
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
        canonical(_combination(of_rows, rows), _combination(of_taps, taps), (1, 1), ((0, 0), across))
        for of_rows, of_taps in zip(B_TRANSPOSED, G, strict=True)
    ]
    outputs = jnp.stack([_combination(of_products, products) for of_products in A_TRANSPOSED], axis=2)
    return outputs.reshape(x.shape[0], 4 * tiles, *outputs.shape[3:])[:, :height]


def _combination(coefficients: np.ndarray, terms: Sequence[Array]) -> Array:
    """The linear combination, without the terms whose coefficient is zero."""
    weighted = (np.float32(factor) * term for factor, term in zip(coefficients, terms, strict=True) if factor)
    return functools.reduce(operator.add, weighted)


def upsample_conv_differences(x: Map, kernel: Kernel, padding: Padding) -> Output:
    """Nearest ×2 and a 3×3 convolution: nine matrix products for the four outputs of each position of the map.

    Along one axis, with the taps a, b and c and their sum s: the output at 2i is s·x[i] − a·(x[i] − x[i − 1]), at
    2i + 1 it is s·x[i] + c·(x[i + 1] − x[i]). These are three products; along both axes there are nine.

    Args:
        x: feature map before upsampling.
        kernel: 3, 3, input and output channels.
        padding: zeros around `x`, before and after, along height and width.
    """
    dtype, x, kernel = x.dtype, x.astype(jnp.float32), kernel.astype(jnp.float32)
    x = jax.lax.pad(x, jnp.float32(0), [(0, 0, 0), *((*around, 0) for around in padding), (0, 0, 0)])
    rows = _even_and_odd(x, kernel, 1, lambda x, taps: _even_and_odd(x, taps, 2, jnp.matmul))
    interleaved = jnp.stack([jnp.stack(columns, axis=3) for columns in rows], axis=2)
    b, height, _, width, _, channels = interleaved.shape
    return interleaved.reshape(b, 2 * height, 2 * width, channels).astype(dtype)


def _even_and_odd(x: Map, taps: Array, axis: int, product: Callable) -> list:
    """The outputs at the even and at the odd indices along an axis.

    Args:
        x: feature map, padded by one value before and after.
        taps: the three taps along `axis`, on the first axis.
        axis: axis of the map.
        product: function of a map and one tap that returns an array or a list of arrays.
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
