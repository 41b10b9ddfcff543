"""The optimiser of a config: Adam with a linear warm-up, then a constant rate (arXiv 2312.07360, appendix).

An update touches every parameter, its gradient, two moments and the average: memory bandwidth bounds it. XLA's CPU
compiler makes a kernel for each output, and copies what a later kernel reads after an earlier one has overwritten it.
`cpu_optimization_barrier` enforces an order that needs no copy: moments, then parameters from the new moments, then the
average from the new parameters. That is 14 reads and writes of the parameters' size instead of 29; an average of the
parameters before the update costs a copy of them, 2 more.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from fmboost_jax.configuration import require, require_at_least
from fmboost_jax.runtime.barrier import cpu_optimization_barrier


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Section `optim` of the flow's training.

    Attributes:
        lr: learning rate after the warm-up.
        warmup_steps: updates W of the warm-up; 0 for none.
        warmup_offset: with offset o, update k (from 1) has the rate lr · min(1, (k − 1 + o) / W). 1 is the reference's
            order; 0, a first update of rate 0, is that of version 0.1.
        decay_steps: updates from the first until the rate is 0, along a cosine (Loshchilov and Hutter 2017, arXiv
            1608.03983, equation 5, without restarts); 0 for a constant rate.
        b1, b2, eps: Adam's.
        clip_norm: largest norm of the gradient; 0 for no clipping.
        accumulate: parts that a batch is computed in, one after the other.
    """

    lr: float = 3e-5
    warmup_steps: int = 1000
    warmup_offset: int = 1
    decay_steps: int = 0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 0.0
    accumulate: int = 1

    def __post_init__(self):
        require("optim.", self, "lr", "more than 0", self.lr > 0)
        for name in ("b1", "b2"):
            require("optim.", self, name, "0 or more and less than 1", 0 <= getattr(self, name) < 1)
        require("optim.", self, "eps", "more than 0", self.eps > 0)
        require_at_least("optim.", self, warmup_steps=0, decay_steps=0, clip_norm=0, accumulate=1)
        require("optim.", self, "warmup_offset", "0 or 1", self.warmup_offset in (0, 1))


@dataclasses.dataclass(frozen=True)
class MuonConfig:
    """Section `optim` of an autoencoder's training: Muon for the kernels, Adam for the biases.

    Attributes:
        lr, momentum: Muon's.
        bias_lr, b1, b2: Adam's.
        warmup_steps: updates until the rates are reached; then they fall to 0 along a cosine.
        clip_norm: largest norm of the gradient.
    """

    lr: float = 1e-3
    momentum: float = 0.95
    bias_lr: float = 2e-4
    b1: float = 0.9
    b2: float = 0.99
    warmup_steps: int = 100
    clip_norm: float = 1.0

    def __post_init__(self):
        for name in ("lr", "bias_lr", "clip_norm"):
            require("optim.", self, name, "more than 0", getattr(self, name) > 0)
        for name in ("momentum", "b1", "b2"):
            require("optim.", self, name, "0 or more and less than 1", 0 <= getattr(self, name) < 1)
        require_at_least("optim.", self, warmup_steps=0)


def learning_rate(optim: OptimConfig) -> Callable[[Any], Float[Array, ""]]:
    """Return the schedule: linear over `optim.warmup_steps` updates, then constant, each rate rounded once.

    With `optim.decay_steps` the rate is multiplied by (1 + cos πk/K) / 2 before update k + 1 of K.
    """
    warmup, offset = optim.warmup_steps, optim.warmup_offset
    rates = np.asarray([optim.lr * step / warmup for step in range(offset, warmup)] + [optim.lr], np.float32)

    def rate(count: Any) -> Float[Array, ""]:
        constant = jnp.asarray(rates)[jnp.minimum(count, len(rates) - 1)]
        if not optim.decay_steps:
            return constant
        return constant * (1 + jnp.cos(jnp.pi * jnp.minimum(count / optim.decay_steps, 1))) / 2

    return rate


def make_optimizer(optim: OptimConfig) -> optax.GradientTransformationExtraArgs:
    """Adam (Kingma and Ba 2014, arXiv 1412.6980); gradients clipped to the norm `optim.clip_norm`, 0 for none.

    State and numbers are `optax.adam`'s. `update` takes `finite` too, a boolean scalar: where it is false the state
    does not change, and the updates must not be used.
    """
    adam = guarded_adam(learning_rate(optim), optim.b1, optim.b2, optim.eps)
    return optax.chain(clip_by_global_norm(optim.clip_norm), adam) if optim.clip_norm else adam


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` up to rounding, by one factor: a division of each entry would cost another pass."""

    def clip(gradient, _):
        norm = global_norm(gradient)
        factor = jnp.where(norm < limit, 1.0, limit / norm)
        return jax.tree.map(lambda entry: factor * entry, gradient)

    return optax.stateless(clip)


def global_norm(gradient) -> Float[Array, ""]:
    """`optax.tree.norm`. Adam squares the gradient too: XLA's CPU compiler would share the squares and so write them
    to memory, as much as the gradient again. Behind the barrier they are only added up.
    """
    return optax.tree.norm(cpu_optimization_barrier(gradient))


def guarded_adam(rate: optax.Schedule, b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """`optax.adam` that skips updates that are not finite and computes the others from the stored moments."""
    moments, descent = optax.scale_by_adam(b1, b2, eps), optax.scale_by_learning_rate(rate)

    def init(params: Any):
        return moments.init(params), descent.init(params)

    def update(updates: Any, state: Any, params: Any = None, *, finite: Bool[Array, ""] | bool = True, **_: Any):
        new = cpu_optimization_barrier(skip_nonfinite(finite, moments.update(updates, state[0])[1], state[0]))
        first, second = (
            optax.tree.bias_correction(moment, decay, new.count) for moment, decay in ((new.mu, b1), (new.nu, b2))
        )
        direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), first, second)
        updates, descended = descent.update(direction, state[1], params)
        return updates, (new, skip_nonfinite(finite, descended, state[1]))

    return optax.GradientTransformationExtraArgs(init, update)


def guarded(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Return an optimizer whose `update` also takes `finite`: where it is false, the state does not change."""

    def update(updates: Any, state: Any, params: Any = None, *, finite: Bool[Array, ""] | bool = True, **_: Any):
        updates, new = optimizer.update(updates, state, params)
        return updates, skip_nonfinite(finite, new, state)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def skip_nonfinite(finite: Bool[Array, ""] | bool, new: Any, old: Any) -> Any:
    """Return the tree `new`, or `old` where `finite` is false."""
    return jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, old)
