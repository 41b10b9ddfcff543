"""The functions that replace torchax's, against PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fmboost_jax.generation import lowerings, torch_models
from tests.conftest import relative_error

F = torch.nn.functional


def _draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (6, {}),
        (12, {"scale": 0.3}),
        (8, {"is_causal": True}),
        (6, {"attn_mask": _draw(2, 1, 6, 6, seed=4)}),
        (6, {"attn_mask": _draw(6, 6, seed=4) > -1}),
        (12, {"enable_gqa": True}),
    ],
)
def test_attention(rows, options, monkeypatch):
    monkeypatch.setattr(lowerings, "QUERY_ROWS", 4)
    heads = 2 if options.get("enable_gqa") else 4
    columns = 6 if "attn_mask" in options or rows == 6 else rows
    arrays = _draw(2, 4, rows, 8), _draw(2, heads, columns, 8, seed=1), _draw(2, heads, columns, 5, seed=2)
    tensors = {name: torch.tensor(value) if name == "attn_mask" else value for name, value in options.items()}
    expected = F.scaled_dot_product_attention(*map(torch.tensor, arrays), **tensors).numpy()
    given = {name: jnp.asarray(value) if name == "attn_mask" else value for name, value in options.items()}
    call = functools.partial(lowerings.attention, **given)
    assert relative_error(call(*map(jnp.asarray, arrays)), expected) < 1e-5
    in_chunks = rows % 4 == 0 and "is_causal" not in options
    assert ("scan" in str(jax.make_jaxpr(call)(*arrays))) == in_chunks


def test_group_norm():
    x, weight, bias = _draw(2, 6, 4, 5) + 3, _draw(6, seed=1), _draw(6, seed=2)
    tensors = [torch.tensor(array) for array in (x, weight, bias)]
    for parts in ((weight, bias), (weight, None), (None, bias), (None, None)):
        given = [None if part is None else torch.tensor(part) for part in parts]
        expected = torch.ops.aten.native_group_norm(tensors[0], *given, 2, 6, 20, 3, 1e-3)
        ours = [None if part is None else jnp.asarray(part) for part in parts]
        found = lowerings.group_norm(jnp.asarray(x), *ours, 2, 6, 20, 3, 1e-3)
        for ours, theirs in zip(found, expected, strict=True):
            assert relative_error(ours, theirs.numpy().reshape(ours.shape)) < 1e-5
    assert lowerings.group_norm(jnp.asarray(x, jnp.bfloat16), None, None, 2, 6, 20, 3)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((2, 3, 6, 5), (4, 3, 3, 3), {"padding": 1}),
        ((1, 3, 7, 6), (4, 3, 3, 3), {"padding": (1, 0), "stride": 2}),
        ((1, 4, 6, 5), (4, 2, 3, 3), {"groups": 2}),
        ((1, 3, 7, 7), (4, 3, 3, 3), {"dilation": 2}),
        ((1, 3, 9), (4, 3, 3), {"padding": 1}),
    ],
)
def test_convolution(shape, kernel, options):
    layer = functools.partial(F.conv2d if len(shape) == 4 else F.conv1d, **options)
    arrays = _draw(*shape), _draw(*kernel, seed=1), _draw(kernel[0], seed=2)
    sides = len(shape) - 2

    def each(name, default):
        value = options.get(name, default)
        return value if isinstance(value, tuple) else (value,) * sides

    rest = each("stride", 1), each("padding", 0), each("dilation", 1), False, (0,) * sides, options.get("groups", 1)
    for bias in (True, False):
        x, weight, last = arrays[0], arrays[1], arrays[2] if bias else None
        expected = layer(*(None if array is None else torch.tensor(array) for array in (x, weight, last)))
        given = [None if array is None else jnp.asarray(array) for array in (x, weight, last)]
        assert relative_error(lowerings.convolution(*given, *rest), expected.numpy()) < 1e-5


def test_transposed_convolution_is_torchaxs():
    x, weight = _draw(1, 3, 5, 4), _draw(3, 4, 3, 3, seed=1)
    expected = F.conv_transpose2d(torch.tensor(x), torch.tensor(weight), stride=2, padding=1)
    found = lowerings.convolution(jnp.asarray(x), jnp.asarray(weight), None, [2, 2], [1, 1], [1, 1], True, [0, 0], 1)
    assert relative_error(found, expected.numpy()) < 1e-5


@pytest.mark.parametrize(("platform", "channels"), [("cpu", "[b, 0, 1, f]"), ("tpu", "[b, f, 0, 1]")])
def test_channels_are_last_on_cpus_alone(platform, channels):
    x, weight = jax.ShapeDtypeStruct((1, 4, 40, 40), "float32"), jax.ShapeDtypeStruct((4, 4, 3, 3), "float32")
    rest = (1, 1), (1, 1), (1, 1), False, (0, 0), 1
    call = jax.jit(lambda x, weight: lowerings.convolution(x, weight, None, *rest))
    text = call.trace(x, weight).lower(lowering_platforms=(platform,)).as_text()
    assert f"dim_numbers = {channels}x" in text


def test_kernels_are_stored_as_convolutions_read_them():
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 5, (1, 3)), torch.nn.Conv2d(5, 2, 1))
    x = _draw(2, 3, 4, 6)
    expected = layer(torch.tensor(x)).detach().numpy()
    function, weights = torch_models.extract(layer)
    assert (weights["0.weight"].shape, weights["1.weight"].shape) == ((1, 3, 3, 5), (1, 1, 5, 2))
    assert relative_error(function(weights, jnp.asarray(x)), expected) < 1e-5
    # The transposition back is undone by the convolution's own.
    text = jax.jit(function).lower(weights, x).compile().as_text() or ""
    assert "f32[5,3,1,3]" not in text
