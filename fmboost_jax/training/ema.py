"""The exponential moving average of the parameters, with the reference's warm-up."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fmboost_jax.configuration import require, require_at_least

POWER = 3 / 4


@dataclasses.dataclass(frozen=True)
class EmaConfig:
    """Section `ema`.

    Attributes:
        decay: weight of the old average in an update, after the warm-up.
        copy_until: updates of the warm-up, in which the average is a copy.
        takes_in: parameters that an update averages: those "before" it, as in the reference, or those "after" it, as
            in version 0.1 of this package.
    """

    decay: float = 0.999
    copy_until: int = 1000
    takes_in: str = "before"

    def __post_init__(self):
        require("ema.", self, "decay", "0 or more and less than 1", 0 <= self.decay < 1)
        require_at_least("ema.", self, copy_until=0)
        require("ema.", self, "takes_in", '"before" or "after"', self.takes_in in ("before", "after"))


def ema_decay(update: Int[Array, ""] | int, *, decay: float = 0.999, copy_until: int = 1000) -> Float[Array, ""]:
    """Weight of the old average at update number `update` (the first is 1).

    0 (the average is a copy) until update copy_until + 2, then 1 − (update − copy_until)^(−3/4), at most `decay`.
    """
    n = jnp.asarray(update, jnp.float32) - copy_until
    warm = jnp.minimum(decay, 1 - jnp.maximum(n, 1.0) ** -POWER)
    return jnp.where(n > 2, warm, 0.0)


def update_ema(average, parameters, update: Int[Array, ""] | int, *, decay: float, copy_until: int):
    """The average after one more update, `average` and `parameters` being trees of the same shape."""
    keep = ema_decay(update, decay=decay, copy_until=copy_until)
    return jax.tree.map(lambda old, new: jnp.where(keep > 0, old + (1 - keep) * (new - old), new), average, parameters)
