"""Products of a map and a kernel whose gradients have forms of their own, for every mode of differentiation."""

from collections.abc import Callable, Hashable

import jax
from jaxtyping import Array


def bilinear(
    product: Callable[[Array, Array, Hashable], Array],
    map_gradient: Callable[[Array, Array, tuple[int, ...], Hashable], Array],
    kernel_gradient: Callable[[Array, Array, tuple[int, ...], Hashable], Array],
) -> Callable[[Array, Array, Hashable], Array]:
    """Return `product`, differentiated by these gradients; `jax.vmap` of a gradient is not supported.

    Args:
        product: (map, kernel, options) → output, linear in map and kernel; options are hashable.
        map_gradient: (kernel, gradient of the output, shape of the map, options) → gradient of the map.
        kernel_gradient: (map, gradient of the output, shape of the kernel, options) → gradient of the kernel.
    """

    def linear_in_map(x, kernel, options):
        return jax.custom_derivatives.linear_call(
            lambda kernel, x: product(x, kernel, options),
            lambda kernel, output: map_gradient(kernel, output, x.shape, options),
            kernel,
            x,
        )

    def linear_in_kernel(x, kernel, options):
        return jax.custom_derivatives.linear_call(
            lambda x, kernel: product(x, kernel, options),
            lambda x, output: kernel_gradient(x, output, kernel.shape, options),
            x,
            kernel,
        )

    def derivative(options, primals, tangents):
        (x, kernel), (dx, dkernel) = primals, tangents
        return whole(x, kernel, options), of_map(dx, kernel, options) + of_kernel(x, dkernel, options)

    # The same product three times, with the same derivative. The second and the third define their transposes, which
    # makes forward mode, reverse mode and their combinations (the objective `meanflow`) work.
    whole, of_map, of_kernel = (
        jax.custom_jvp(function, nondiff_argnums=(2,)) for function in (product, linear_in_map, linear_in_kernel)
    )
    for function in (whole, of_map, of_kernel):
        function.defjvp(derivative)
    return whole
