"""The layers' quicker forms against the plain ones, and which platform gets which."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from fmboost_jax.models.blocks import GroupNorm
from fmboost_jax.models.convolution import SMALL_MAP, convolve, convolve_enlarged, upsample_nearest

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


SMALL, LARGE = st.tuples(st.integers(1, 5), st.integers(1, 5)), st.just((17, 16))


@given(
    size=st.one_of(SMALL, LARGE),
    padding=st.sampled_from([((1, 1), (1, 1)), ((0, 0), (1, 1))]),
    on_accelerators=st.booleans(),
)
@settings(max_examples=16, deadline=None)
def test_enlarged_convolution_is_that_of_the_enlarged_map(size, padding, on_accelerators):
    """Values and gradients; (0, 0) leaves out the outermost values' own."""
    size = (size[0] + 3 * (padding[0][0] == 0), size[1])
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.standard_normal((2, *size, 3), np.float32))
    kernel = jnp.asarray(generator.standard_normal((3, 3, 3, 5), np.float32))

    def plain(x, kernel):
        cut = [slice(1, -1) if before == 0 else slice(None) for before, _ in padding]
        return convolve(upsample_nearest(x)[:, cut[0], cut[1]], kernel, (1, 1), padding)

    def enlarged(x, kernel):
        if not on_accelerators:
            return convolve_enlarged(x, kernel, (1, 1), padding)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax.lax, "platform_dependent", lambda *arguments, default, **platforms: default(*arguments))
            return convolve_enlarged(x, kernel, (1, 1), padding)

    for found, expected in zip(
        _value_and_gradients(enlarged, x, kernel), _value_and_gradients(plain, x, kernel), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=2e-4)


def _value_and_gradients(way, x, kernel):
    def total(x, kernel):
        out = way(x, kernel)
        return jnp.sum(jnp.sin(out)), out

    (_, out), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(x, kernel)
    return out, *gradients


def test_accelerators_never_make_the_large_map():
    x, kernel = jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.bfloat16), jax.ShapeDtypeStruct((3, 3, 4, 6), jnp.bfloat16)
    traced = jax.jit(lambda x, k: convolve_enlarged(x, k, (1, 1), ((1, 1), (1, 1)), dimension_numbers=NHWC)).trace(
        x, kernel
    )
    for platform in ("tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "1x16x16x4xbf16" not in text
        assert "1x16x16x6xbf16" in text


def test_enlarged_convolution_refuses_other_kernels():
    x = jnp.zeros((1, 4, 4, 2))
    with pytest.raises(ValueError, match="expected a 3×3 kernel of stride 1"):
        convolve_enlarged(x, jnp.zeros((5, 5, 2, 2)), (1, 1), ((1, 1), (1, 1)))
    with pytest.raises(ValueError, match="expected a 3×3 kernel of stride 1"):
        convolve_enlarged(x, jnp.zeros((3, 3, 2, 2)), (2, 2), ((1, 1), (1, 1)))


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.sampled_from([32, 64, 96])),
    offset=st.sampled_from([0.0, 3.0]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
)
@settings(max_examples=12, deadline=None)
def test_group_norm_is_flaxs(shape, offset, dtype):
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.standard_normal(shape, np.float32) + offset).astype(dtype)
    ours, flax = GroupNorm(shape[-1]), nnx.GroupNorm(shape[-1], num_groups=32, epsilon=1e-5, rngs=nnx.Rngs(0))
    for norm in (ours, flax):
        norm.scale[...] = jnp.linspace(0.5, 2, shape[-1])
        norm.bias[...] = jnp.linspace(-1, 1, shape[-1])
    found = ours(x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, flax(x.astype(jnp.float32)), atol=2e-4)


def test_group_norm_wants_whole_groups():
    with pytest.raises(ValueError, match="48 channels are not a multiple of 32 groups"):
        GroupNorm(48)
