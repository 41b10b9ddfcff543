"""PyTorch operations that torchax lowers badly for TPUs or CPUs, as JAX functions of the same results.

bench/tpu.md has the prediction and the outcome of each.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fmboost_jax.models.convolution import convolve

# Rows of queries whose scores are computed at once: those of a chunk stay in the chip's vector memory, where all rows'
# go to HBM and back between the softmax's passes.
QUERY_ROWS = 1024


def lowerings() -> dict[Any, Any]:
    """The functions of this module by the PyTorch operations that they replace."""
    import torch

    return {
        torch.nn.functional.scaled_dot_product_attention: attention,
        torch.ops.aten.convolution: convolution,
        torch.ops.aten.native_group_norm: group_norm,
    }


def convolution(
    x: Float[Array, "..."],
    weight: Float[Array, "o i *k"],
    bias: Float[Array, " o"] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Float[Array, "..."]:
    """`torch.ops.aten.convolution`; on CPUs the channels come last, in the forms of `fmboost_jax.models.convolution`.

    XLA's CPU compiler changes a convolution's layout to that of its fast kernel outside of loops alone. In a sampler's
    loop one with the channels first is computed value by value. Other devices keep torchax's form. So do transposed,
    grouped and dilated convolutions, and those of other than two dimensions.
    """

    def theirs(x: Array, weight: Array) -> Array:
        import torch
        from torchax.ops import jaten, ops_registry

        assert jaten is not None  # it fills the registry
        function: Any = ops_registry.all_aten_ops[torch.ops.aten.convolution].func
        return function(x, weight, None, stride, padding, dilation, transposed, output_padding, groups)

    def channels_last(x, weight):
        around = [(pad, pad) for pad in (tuple(padding) * 2)[:2]]
        y = convolve(jnp.transpose(x, (0, 2, 3, 1)), jnp.transpose(weight, (2, 3, 1, 0)), tuple(stride), around)
        return jnp.transpose(y, (0, 3, 1, 2))

    if x.ndim == 4 and not transposed and groups == 1 and all(step == 1 for step in dilation):
        result = jax.lax.platform_dependent(x, weight, cpu=channels_last, default=theirs)
    else:
        result = theirs(x, weight)
    return result if bias is None else result + bias.reshape(-1, *(1,) * (weight.ndim - 2))


def attention(
    query: Float[Array, "*b h q d"],
    key: Float[Array, "*b g k d"],
    value: Float[Array, "*b g k e"],
    attn_mask: Bool[Array, "..."] | Float[Array, "..."] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Array, "*b h q e"]:
    """Attention as `torch.nn.functional.scaled_dot_product_attention` defines it, without dropout.

    The scores are of the queries' type. Rows of queries are independent: chunks of `QUERY_ROWS` change no result.
    """
    del dropout_p
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (jnp.repeat(array, repeats, -3) for array in (key, value))
    rows, columns = query.shape[-2], key.shape[-2]
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if is_causal:
        attn_mask = jnp.tri(rows, columns, dtype=bool)
    keys = jnp.swapaxes(key, -1, -2)

    def attend(query, mask):
        scores = query @ keys * jnp.asarray(scale, query.dtype)
        if mask is not None:
            mask = jnp.where(mask, 0, -jnp.inf) if mask.dtype == bool else mask
            scores += mask.astype(scores.dtype)
        return jax.nn.softmax(scores, -1) @ value

    if attn_mask is not None or rows <= QUERY_ROWS or rows % QUERY_ROWS:
        return attend(query, attn_mask)
    chunks = query.reshape(*query.shape[:-2], rows // QUERY_ROWS, QUERY_ROWS, query.shape[-1])
    found = jax.lax.map(lambda chunk: attend(chunk, None), jnp.moveaxis(chunks, -3, 0))
    return jnp.moveaxis(found, 0, -3).reshape(*query.shape[:-1], value.shape[-1])


def group_norm(
    x: Float[Array, "b c *s"],
    weight: Float[Array, " c"] | None,
    bias: Float[Array, " c"] | None,
    count: int,
    channels: int,
    positions: int,
    groups: int,
    epsilon: float = 1e-5,
) -> tuple[Float[Array, "b c *s"], Float[Array, "b g"], Float[Array, "b g"]]:
    """`torch.ops.aten.native_group_norm`: the result, the groups' means and their reciprocal deviations.

    torchax flattens the map by group and runs a loop of one turn around the norm, which keeps the compiler from fusing
    it with its neighbours. Here every channel is summed where it is, in float32, and groups are sums of channels.
    """
    del positions
    axes = tuple(range(2, x.ndim))
    exact = x.astype(jnp.float32)
    mean, square = (
        jnp.mean(jnp.mean(values, axes).reshape(count, groups, -1), -1) for values in (exact, jnp.square(exact))
    )
    deviation = jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + epsilon)
    factor, shift = (jnp.repeat(values, channels // groups, 1) for values in (deviation, -mean * deviation))
    if weight is not None:
        factor, shift = factor * weight, shift * weight
    if bias is not None:
        shift += bias
    shape = (count, channels, *(1 for _ in axes))
    result = exact * factor.reshape(shape) + shift.reshape(shape)
    return result.astype(x.dtype), mean.astype(x.dtype), deviation.astype(x.dtype)
