"""The forms of convolutions and norms against the plain ones, and the form of each platform."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from fmboost_jax.models.blocks import GroupNorm
from fmboost_jax.models.convolution import (
    LARGE_MAP,
    SMALL_MAP,
    WIDE,
    convolve,
    direct,
    interleaved_conv,
    transposed_conv,
    upsample_conv,
    upsample_first,
    upsample_nearest,
)
from fmboost_jax.models.convolution_cpu import canonical, winograd
from fmboost_jax.models.unet import ResBlock, UNetConfig

NHWC = jax.lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), ("NHWC", "HWIO", "NHWC"))
OPERATIONS = ("convolution", "dot_general")


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

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(x, weights)

    (_, out), gradient = both(convolve)
    (_, expected), expected_gradient = both(jax.lax.conv_general_dilated)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for found, wanted in zip(gradient, expected_gradient, strict=True):
        np.testing.assert_allclose(found, wanted, atol=5e-5)


@given(
    height=st.integers(32, 37),
    padding=st.sampled_from([((0, 0), (0, 0)), ((1, 1), (1, 1)), ((0, 0), (1, 1)), ((0, 1), (1, 0)), ((2, 1), (0, 2))]),
)
@settings(max_examples=12, deadline=None)
def test_winograds_values_and_gradients_are_those_of_a_convolution(height, padding):
    """Heights that are whole tiles and others."""
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.standard_normal((2, height, 40, WIDE), np.float32))
    kernel = jnp.asarray(generator.standard_normal((3, 3, WIDE, WIDE + 1), np.float32) / np.sqrt(9 * WIDE))
    ours, plain = (
        _value_and_gradients(lambda x, kernel, form=form: form(x, kernel, (1, 1), padding), x, kernel)
        for form in (winograd, direct)
    )
    for found, expected in zip(ours, plain, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.max(np.abs(expected)))


def _strided(form, stride):
    return lambda x, kernel: form(x, kernel, stride, ((1, 0), (1, 1)))


def _upsampling(form):
    return lambda x, kernel: form(x, kernel, ((1, 1), (0, 0)))


@pytest.mark.parametrize(
    ("ours", "plain"),
    [
        (_strided(canonical, (1, 1)), _strided(direct, (1, 1))),
        (_strided(canonical, (1, 2)), _strided(direct, (1, 2))),
        (_upsampling(transposed_conv), _upsampling(upsample_first)),
    ],
)
def test_derivatives_of_derivatives_are_those_of_a_convolution(ours, plain):
    """Reverse over forward mode, as the objective `meanflow` differentiates, computed again as with `unet.remat`."""
    generator = np.random.default_rng(0)
    x, dx = (jnp.asarray(generator.standard_normal((2, 6, 7, 3), np.float32)) for _ in range(2))
    kernel = jnp.asarray(generator.standard_normal((3, 3, 3, 4), np.float32))

    @functools.partial(jax.grad, argnums=(0, 1, 2))
    def gradients(x, dx, kernel, form):
        function = jax.checkpoint(lambda x: jnp.sin(form(x, kernel)))
        value, change = jax.jvp(function, (x,), (dx,))
        return jnp.sum(value * change + jnp.square(change))

    for found, expected in zip(gradients(x, dx, kernel, ours), gradients(x, dx, kernel, plain), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.max(np.abs(expected)))


LARGE = int(LARGE_MAP**0.5)


@pytest.mark.parametrize(
    ("size", "channels", "stride", "dtype"),
    [(LARGE, WIDE, 1, jnp.float32), (LARGE + 2, 4, 2, jnp.float32), (8, 4, 1, jnp.bfloat16)],
)
def test_gradients_on_cpus_have_the_layout_that_is_fast_in_loops(size, channels, stride, dtype):
    """XLA's CPU compiler computes a convolution of another layout in a loop value by value, four times slower."""
    x = jax.ShapeDtypeStruct((2, size, size, channels), dtype)
    kernel = jax.ShapeDtypeStruct((3, 3, channels, channels), dtype)
    gradients = jax.grad(lambda *both: convolve(*both, (stride, stride), ((1, 1),) * 2).sum(), (0, 1))
    text = jax.jit(gradients).lower(x, kernel).as_text()
    layouts = set(re.findall(r"stablehlo.convolution.*?dim_numbers = (.*?), window", text))
    assert layouts == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}


@pytest.mark.parametrize(
    ("platform", "size", "kernel", "channels", "dtype", "operations"),
    [
        ("cpu", 8, 3, 4, jnp.float32, {"dot_general": 1}),
        ("cpu", int(SMALL_MAP**0.5) + 1, 3, WIDE, jnp.float32, {"convolution": 1}),
        ("cpu", LARGE, 3, WIDE, jnp.float32, {"convolution": 6}),
        ("cpu", LARGE, 3, WIDE - 1, jnp.float32, {"convolution": 1}),
        ("cpu", LARGE, 1, 4, jnp.float32, {"dot_general": 1}),
        ("cpu", 8, 3, 4, jnp.bfloat16, {"convolution": 1}),
        ("tpu", 8, 3, 4, jnp.float32, {"convolution": 1}),
        ("tpu", LARGE, 3, WIDE, jnp.float32, {"convolution": 1}),
        ("cuda", LARGE, 1, WIDE, jnp.float32, {"convolution": 1}),
    ],
)
def test_each_platform_and_size_runs_its_form(platform, size, kernel, channels, dtype, operations):
    x = jax.ShapeDtypeStruct((1, size, size, channels), dtype)
    weights = jax.ShapeDtypeStruct((kernel, kernel, channels, channels), dtype)
    around = ((kernel // 2,) * 2,) * 2
    call = jax.jit(lambda x, k: convolve(x, k, (1, 1), around, dimension_numbers=NHWC))
    text = call.trace(x, weights).lower(lowering_platforms=(platform,)).as_text()
    found = {name: text.count(f"stablehlo.{name}(") + text.count(f"stablehlo.{name} ") for name in OPERATIONS}
    assert {name: count for name, count in found.items() if count} == operations


@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    padding=st.sampled_from([((1, 1), (1, 1)), ((0, 0), (1, 1))]),
    form=st.sampled_from([upsample_conv, transposed_conv, upsample_first, interleaved_conv]),
)
@settings(max_examples=20, deadline=None)
def test_upsample_conv_is_that_of_the_upsampled_map(size, padding, form):
    """Values and gradients; with padding (0, 0) the outermost values are neighbours only."""
    size = (size[0] + 3 * (padding[0][0] == 0), size[1])
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.standard_normal((2, *size, 3), np.float32))
    kernel = jnp.asarray(generator.standard_normal((3, 3, 3, 5), np.float32))

    def plain(x, kernel):
        cut = [slice(1, -1) if before == 0 else slice(None) for before, _ in padding]
        return convolve(upsample_nearest(x)[:, cut[0], cut[1]], kernel, (1, 1), padding)

    def fused(x, kernel):
        return form(x, kernel, (1, 1), padding) if form is upsample_conv else form(x, kernel, padding)

    for found, expected in zip(
        _value_and_gradients(fused, x, kernel), _value_and_gradients(plain, x, kernel), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=2e-4)


def _value_and_gradients(form, x, kernel):
    def total(x, kernel):
        out = form(x, kernel)
        return jnp.sum(jnp.sin(out)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(x, kernel)
    return out, *gradients


@pytest.mark.parametrize("images", [1, 8])
def test_only_tpus_with_few_images_make_the_large_map(images):
    x, kernel = jax.ShapeDtypeStruct((images, 8, 8, 4), jnp.bfloat16), jax.ShapeDtypeStruct((3, 3, 4, 6), jnp.bfloat16)
    traced = jax.jit(lambda x, k: upsample_conv(x, k, (1, 1), ((1, 1), (1, 1)), dimension_numbers=NHWC)).trace(
        x, kernel
    )
    for platform in ("tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert (f"{images}x16x16x4xbf16" in text) == (platform == "tpu" and images == 1)
        assert f"{images}x16x16x6xbf16" in text


def test_the_gradient_of_upsampling_on_tpus_reverses_kernels_alone():
    """JAX's own gradient makes XLA reverse the large map in memory, 3% of a train step on v6e (bench/tpu.md)."""
    x, kernel = jax.ShapeDtypeStruct((8, 8, 8, 4), jnp.bfloat16), jax.ShapeDtypeStruct((3, 3, 4, 6), jnp.bfloat16)
    gradient = jax.grad(lambda *both: upsample_conv(*both, (1, 1), ((1, 1), (1, 1))).sum(), (0, 1))
    text = jax.jit(gradient).trace(x, kernel).lower(lowering_platforms=("tpu",)).as_text()
    kernels = re.findall(r"stablehlo.convolution.*?\[f, 0, 1, b\]x\[i, 0, 1, o\].*?: \((.*?), (.*?)\) ->", text)
    assert kernels == [("tensor<8x16x16x6xbf16>", "tensor<8x8x8x4xbf16>")]  # the large map is not the kernel
    reversed_arrays = re.findall(r"stablehlo.reverse.*: tensor<(\w+)>", text)
    assert set(reversed_arrays) == {"4x4x4x6xbf16"}


def test_upsample_conv_refuses_other_kernels():
    x = jnp.zeros((1, 4, 4, 2))
    with pytest.raises(ValueError, match="expected a 3×3 kernel of stride 1"):
        upsample_conv(x, jnp.zeros((5, 5, 2, 2)), (1, 1), ((1, 1), (1, 1)))
    with pytest.raises(ValueError, match="expected a 3×3 kernel of stride 1"):
        upsample_conv(x, jnp.zeros((3, 3, 2, 2)), (2, 2), ((1, 1), (1, 1)))


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.sampled_from([32, 64, 96])),
    offset=st.sampled_from([0.0, 3.0]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
)
@settings(max_examples=12, deadline=None)
def test_group_norm_agrees_with_flax(shape, offset, dtype):
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.standard_normal(shape, np.float32) + offset).astype(dtype)
    ours, flax = GroupNorm(shape[-1]), nnx.GroupNorm(shape[-1], num_groups=32, epsilon=1e-5, rngs=nnx.Rngs(0))
    for norm in (ours, flax):
        norm.scale[...] = jnp.linspace(0.5, 2, shape[-1])
        norm.bias[...] = jnp.linspace(-1, 1, shape[-1])
    found = ours(x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, flax(x.astype(jnp.float32)), atol=2e-4)


@given(split=st.integers(1, 95), offset=st.sampled_from([0.0, 3.0]))
@settings(max_examples=12, deadline=None)
def test_group_norm_of_parts_is_that_of_their_concatenation(split, offset):
    """Parts end inside of groups, too."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 4, 96), np.float32) + offset)
    norm = GroupNorm(96)
    parts = (x[..., :split], x[..., split:])
    np.testing.assert_allclose(norm(x, parts), norm(x), atol=1e-5)


@given(batch=st.sampled_from([1, 3]), offset=st.sampled_from([0.0, 3.0]))
@settings(max_examples=12, deadline=None)
def test_a_shift_is_added_before_the_norm(batch, offset):
    """Values and gradients; a shift of each image, or the same for all."""
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.standard_normal((3, 5, 4, 96), np.float32) + offset)
    shift = jnp.asarray(generator.standard_normal((batch, 96), np.float32))
    norm = GroupNorm(96)
    ours, plain = (
        _value_and_gradients(form, x, shift)
        for form in (lambda x, shift: norm(x, shift=shift), lambda x, shift: norm(x + shift[:, None, None]))
    )
    for found, expected in zip(ours, plain, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_bias_before_a_norm_has_a_gradient_without_a_sum_over_the_map():
    block = ResBlock(32, 64, 8, UNetConfig(model_channels=32), rngs=nnx.Rngs(0))
    graph, parameters = nnx.split(block)
    x, embedding = jnp.ones((1, 8, 8, 32)), jnp.ones((1, 8))

    def sums(**held):
        """Sums over maps of 64 channels in the gradient, without those of the parameters held constant."""

        def loss(parameters, x):
            kept = nnx.merge(graph, parameters)
            for layer in held:
                getattr(kept, layer).bias[...] = jax.lax.stop_gradient(getattr(kept, layer).bias[...])
            return kept(x, embedding).sum()

        text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(parameters, x).as_text()
        return len(re.findall(r"stablehlo.reduce\(.*?dimensions = \[(?:0, )?1, 2\] : \(tensor<1x8x8x64x", text))

    assert sums() == sums(conv1=True) == sums(conv2=True) + 1


def test_a_skip_is_summed_before_it_is_concatenated():
    """Its sums are then those of the next block on the way down, which XLA computes once."""
    block = ResBlock(64, 32, 8, UNetConfig(model_channels=32), rngs=nnx.Rngs(0))
    x, embedding = jnp.ones((1, 8, 8, 32)), jnp.ones((1, 8))
    text = jax.jit(lambda x: block(x, embedding, beside=2 * x)).lower(x).as_text()
    sums = re.findall(r"stablehlo.reduce\(.*?dimensions = \[1, 2\] : \(tensor<1x8x8x(\d+)xf32>", text)
    assert set(sums) == {"32"}
    concatenated = block(jnp.concatenate([x, 2 * x], axis=-1), embedding)
    np.testing.assert_allclose(block(x, embedding, beside=2 * x), concatenated, atol=1e-5)


@given(shape=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.sampled_from([32, 96])))
@settings(max_examples=12, deadline=None)
def test_group_norms_statistics_on_gpus_are_the_same(shape):
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32) + 1)
    norm = GroupNorm(shape[-1])
    shift = jnp.linspace(-1, 1, shape[-1])[None]
    for found, expected in zip(norm._moments_by_row([x], shift), norm._moments([x], shift), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "tpu", "gpu"])
def test_gpus_alone_sum_a_map_row_by_row(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    norm, x = GroupNorm(32), jax.ShapeDtypeStruct((1, 8, 8, 32), jnp.float32)
    text = jax.jit(lambda x: norm(x)).lower(x).as_text()
    assert ("stablehlo.optimization_barrier" in text) == (backend == "gpu")


def test_group_norm_needs_whole_groups():
    with pytest.raises(ValueError, match="48 channels are not a multiple of 32 groups"):
        GroupNorm(48)
