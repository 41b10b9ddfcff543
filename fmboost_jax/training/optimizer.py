"""The optimiser of a config: Adam with a linear warm-up, then a constant rate (arXiv 2312.07360, appendix).

An update touches every parameter, its gradient, two moments and the average: memory's speed bounds it. XLA's CPU
compiler makes a kernel for each output, and copies what a later kernel reads after an earlier one has overwritten it.
`settle` gives the order in which nothing has to be copied: moments, then parameters from the new moments, then the
average from the new parameters. That is 14 readings and writings of the parameters' size instead of 29.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict


def learning_rate(optim: ConfigDict) -> optax.Schedule:
    """Rate at each update: from 0 linearly to `optim.lr` over `optim.warmup_steps` updates, then constant."""
    return optax.linear_schedule(0.0, optim.lr, optim.warmup_steps) if optim.warmup_steps else (lambda _: optim.lr)


def make_optimizer(optim: ConfigDict) -> optax.GradientTransformationExtraArgs:
    """Adam (Kingma and Ba 2014, arXiv 1412.6980); gradients clipped to the norm `optim.clip_norm`, 0 for none.

    State and numbers are `optax.adam`'s. `update` takes `finite` too, a boolean scalar: where it is false the state
    stays as it was, and the updates mean nothing.
    """
    adam = guarded_adam(learning_rate(optim), optim.b1, optim.b2, optim.eps)
    return optax.chain(clip_by_global_norm(optim.clip_norm), adam) if optim.clip_norm else adam


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` up to rounding, as one factor: a division an entry would be a pass of its own."""

    def clip(gradient, _):
        norm = global_norm(gradient)
        factor = jnp.where(norm < limit, 1.0, limit / norm)
        return jax.tree.map(lambda entry: factor * entry, gradient)

    return optax.stateless(clip)


def global_norm(gradient) -> Float[Array, ""]:
    """`optax.tree.norm`. Adam squares the gradient too: XLA's CPU compiler would share the squares and so write them
    to memory, as much as the gradient again; settled first, they are only added up.
    """
    return optax.tree.norm(settle(gradient))


def guarded_adam(rate: optax.Schedule, b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """`optax.adam`, guarded and settled: its updates come of the moments that are kept."""
    moments, descent = optax.scale_by_adam(b1, b2, eps), optax.scale_by_learning_rate(rate)

    def init(parameters):
        return moments.init(parameters), descent.init(parameters)

    def update(gradient, state, parameters=None, *, finite: Bool[Array, ""]):
        new = settle(where_finite(finite, moments.update(gradient, state[0])[1], state[0]))
        first, second = (
            optax.tree.bias_correction(moment, decay, new.count) for moment, decay in ((new.mu, b1), (new.nu, b2))
        )
        direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), first, second)
        updates, descended = descent.update(direction, state[1], parameters)
        return updates, (new, where_finite(finite, descended, state[1]))

    return optax.GradientTransformationExtraArgs(init, update)


def where_finite(finite: Bool[Array, ""], new, old):
    """The tree `new`, or `old` where `finite` is false."""
    return jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, old)


def settle(tree):
    """The tree, on CPUs computed as a whole before anything that uses it; elsewhere the compiler is free."""
    return jax.lax.platform_dependent(tree, cpu=jax.lax.optimization_barrier, default=lambda same: same)
