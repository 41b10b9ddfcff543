"""The convolution as a matrix product against XLA's own, and which platform gets which."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmboost_jax.models.convolution import SMALL_MAP, convolve

NHWC = jax.lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), ("NHWC", "HWIO", "NHWC"))


def _lowered(platform: str, size: int = 8, dtype=jnp.float32) -> str:
    x = jax.ShapeDtypeStruct((1, size, size, 4), dtype)
    kernel = jax.ShapeDtypeStruct((3, 3, 4, 4), dtype)
    call = jax.jit(lambda x, k: convolve(x, k, (1, 1), ((1, 1), (1, 1)), dimension_numbers=NHWC))
    return call.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()


@given(
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    kernel=st.sampled_from([(1, 1), (2, 2), (3, 3), (1, 3)]),
    stride=st.sampled_from([(1, 1), (2, 2), (1, 2)]),
    padding=st.sampled_from([((0, 0), (0, 0)), ((1, 1), (1, 1)), ((0, 1), (0, 1)), ((1, 0), (0, 1))]),
)
@settings(max_examples=12, deadline=None)
def test_values_and_gradients_are_those_of_a_convolution(size, kernel, stride, padding):
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.standard_normal((2, *size, 3), np.float32))
    weights = jnp.asarray(generator.standard_normal((*kernel, 3, 5), np.float32))

    def both(function):
        def total(x, weights):
            out = function(x, weights, stride, padding, dimension_numbers=NHWC)
            return jnp.sum(jnp.sin(out)), out

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(x, weights)

    (_, out), gradient = both(convolve)
    (_, expected), expected_gradient = both(jax.lax.conv_general_dilated)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for found, wanted in zip(gradient, expected_gradient, strict=True):
        np.testing.assert_allclose(found, wanted, atol=5e-5)


@pytest.mark.parametrize(
    ("platform", "size", "dtype", "product"),
    [
        ("cpu", 8, jnp.float32, True),
        ("cpu", int(SMALL_MAP**0.5) + 1, jnp.float32, False),
        ("cpu", 8, jnp.bfloat16, False),
        ("tpu", 8, jnp.float32, False),
        ("cuda", 8, jnp.float32, False),
    ],
)
def test_only_small_float32_maps_on_cpus_become_products(platform, size, dtype, product):
    text = _lowered(platform, size, dtype)
    assert ("stablehlo.dot_general" in text) == product
    assert ("stablehlo.convolution" in text) != product
