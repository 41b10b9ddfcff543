"""The functions that replace torchax's, against PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fmboost_jax.generation import lowerings
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
