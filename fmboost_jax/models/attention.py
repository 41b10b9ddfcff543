"""Self-attention over the positions of a feature map, in the standard layout and in the reference's.

The reference computes queries, keys and values as one (batch, 3·heads·dim_head, positions) array and re-reads that
memory, row-major and without a transpose, as (batch, heads, positions, 3·dim_head): positions and channels are
interleaved. Its checkpoints need that layout, which is `attention_layout="interleaved"` here.
"""

from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.export import is_symbolic_dim
from jaxtyping import Array, Float

from fmboost_jax.models.blocks import GroupNorm, linear
from fmboost_jax.models.parameters import kernel_flops

# Queries of one block: at 65,536 positions (the decoder at 2048²) logits take 256 MiB a head instead of 16 GiB.
QUERY_BLOCK = 1024


class SpatialAttention(nnx.Module):
    """Norm, multi-head self-attention, projection, added to the input."""

    def __init__(self, channels: int, config, *, linear_attention: bool, rngs: nnx.Rngs):
        self.num_heads, self.dim_head = config.num_heads, config.dim_head
        self.interleaved = config.attention_layout == "interleaved"
        self.linear_attention = linear_attention
        self.dtype = config.dtype
        inner = self.num_heads * self.dim_head
        self.norm = GroupNorm(channels)
        self.qkv = linear(channels, 3 * inner, dtype=config.dtype, rngs=rngs)
        self.proj_out = linear(inner, channels, zero=True, dtype=config.dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Features → features of the same shape."""
        b, h, w, c = x.shape
        qkv = self.qkv(self.norm(x).astype(self.dtype)).reshape(b, h * w, -1)
        q, k, v = self._split(qkv)
        out = self._join(attend_linear(q, k, v) if self.linear_attention else attend(q, k, v))
        return x + self.proj_out(out).reshape(b, h, w, c)

    def flops(self, positions: int) -> int:
        """FLOPs of one example on a map of `positions` positions."""
        each = self.dim_head if self.linear_attention else positions
        products = 4 * positions * self.num_heads * self.dim_head * each
        return kernel_flops(self.qkv, positions) + kernel_flops(self.proj_out, positions) + products

    def _split(self, qkv: Float[Array, "b n k"]) -> tuple[Array, Array, Array]:
        """Queries, keys and values, each (batch, positions, heads, dim_head)."""
        b, n, _ = qkv.shape
        if self.interleaved:
            qkv = qkv.swapaxes(1, 2).reshape(b, self.num_heads, n, 3 * self.dim_head).swapaxes(1, 2)
            q, k, v = jnp.split(qkv, 3, axis=-1)
        else:
            q, k, v = jnp.moveaxis(qkv.reshape(b, n, 3, self.num_heads, self.dim_head), 2, 0)
        return q, k, v

    def _join(self, out: Float[Array, "b n heads dim"]) -> Float[Array, "b n inner"]:
        b, n, heads, dim = out.shape
        if self.interleaved:
            return out.swapaxes(1, 2).reshape(b, heads * dim, n).swapaxes(1, 2)
        return out.reshape(b, n, heads * dim)


def attend(
    q: Float[Array, "b n heads dim"], k: Float[Array, "b m heads dim"], v: Float[Array, "b m heads dim"]
) -> Float[Array, "b n heads dim"]:
    """softmax(q kᵀ / √dim) v, exact; memory holds the logits of at most `QUERY_BLOCK` queries."""
    b, n, heads, dim = q.shape
    if not is_symbolic_dim(n) and n <= QUERY_BLOCK:
        return jax.nn.dot_product_attention(q, k, v)
    count = -(-n // QUERY_BLOCK)
    filling = cast(int, count * QUERY_BLOCK - n)  # may be symbolic, which jnp.pad supports but its stub does not
    blocks = jnp.pad(q, ((0, 0), (0, filling), (0, 0), (0, 0)))
    blocks = blocks.reshape(b, count, QUERY_BLOCK, heads, dim).swapaxes(0, 1)
    out = jax.lax.map(lambda block: jax.nn.dot_product_attention(block, k, v), blocks)
    return out.swapaxes(0, 1).reshape(b, -1, heads, dim)[:, :n]


def attend_linear(
    q: Float[Array, "b n heads dim"], k: Float[Array, "b n heads dim"], v: Float[Array, "b n heads dim"]
) -> Float[Array, "b n heads dim"]:
    """Attention at a cost linear in the positions: softmax of q over channels, of k over positions.

    Source: Shen et al. 2018, arXiv 1812.01243, equation 5; q is divided by √dim after its softmax.
    """
    dtype = v.dtype
    q = jax.nn.softmax(q.astype(jnp.float32), axis=-1) / jnp.sqrt(q.shape[-1])
    k = jax.nn.softmax(k.astype(jnp.float32), axis=1)
    summary = jnp.einsum("bnhd,bnhe->bhde", k.astype(dtype), v)
    return jnp.einsum("bnhd,bhde->bnhe", q.astype(dtype), summary)
