"""A velocity network from outside the package: patches, attention, an MLP (a DiT in small)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from fmboost_jax.models.networks import NETWORKS, NetworkKind


@dataclasses.dataclass(frozen=True)
class ToyDiTConfig:
    """Settings of the toy."""

    state_channels: int = 3
    context_channels: int = 3
    width: int = 16
    patch: int = 4
    time_inputs: int = 1
    dtype: str = "float32"

    replicated: ClassVar[str] = r"norm\.scale$"

    @property
    def size_multiple(self) -> int:
        """Sides of whole patches."""
        return self.patch

    def flops(self, height: int, width: int) -> int:
        """Those of the two projections alone."""
        inputs = self.state_channels + self.context_channels
        return 2 * height * width * self.width * (inputs + self.state_channels)


class ToyDiT(nnx.Module):
    """One block."""

    def __init__(self, config: ToyDiTConfig, *, rngs: nnx.Rngs):
        self.config = config
        inputs, area = config.state_channels + config.context_channels, config.patch**2
        self.embed = nnx.Linear(inputs * area, config.width, rngs=rngs)
        self.times = nnx.Linear(config.time_inputs, config.width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, config.width, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(config.width, rngs=rngs)
        self.head = nnx.Linear(config.width, config.state_channels * area, rngs=rngs)

    def velocity(self, x, t, context, *, second_time=None, dropout_key=None):
        """d x / d t."""
        patch, (b, h, w, c) = self.config.patch, x.shape
        tokens = jnp.concatenate([x, context], axis=-1)
        tokens = tokens.reshape(b, h // patch, patch, w // patch, patch, -1).swapaxes(2, 3)
        tokens = self.embed(tokens.reshape(b, h * w // patch**2, -1))
        times = [t] if second_time is None else [t, second_time]
        tokens = tokens + self.times(jnp.stack(times, axis=-1))[:, None]
        tokens = tokens + self.attention(self.norm(tokens))
        out = self.head(jax.nn.silu(tokens)).reshape(b, h // patch, w // patch, patch, patch, c)
        return out.swapaxes(2, 3).reshape(x.shape)


NETWORKS["dit"] = NetworkKind(ToyDiTConfig, ToyDiT)
