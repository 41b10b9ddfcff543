"""Classifier-free guidance of a velocity.

Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", arXiv 2207.12598.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fmboost_jax.errors import InputError
from fmboost_jax.flow.solvers import Velocity


def guided(
    velocity_fn: Callable[[Array, Array, PyTree], Array],
    conditional: PyTree[Array],
    unconditional: PyTree[Array],
    scale: float | Float[Array, ""],
) -> Velocity:
    """Classifier-free guidance v_u + scale · (v_c − v_u), both evaluated in one call on a doubled batch.

    Args:
        velocity_fn: (x, t, conditioning) → dx/dt; called with batch 2b, the unconditional half first.
        conditional: conditioning; any pytree of arrays whose first axis is the batch.
        unconditional: the same tree; a first axis of 1 is broadcast to all examples.
        scale: 0 is unconditional, 1 is conditional, above 1 is guidance.

    Returns:
        (x, t) → velocity, for `integrate` and `integrate_sde`. It counts as one evaluation of twice the batch.

    Raises:
        InputError: the two conditionings do not match.
    """

    def both(without, given):
        if without.shape not in (given.shape, (1, *given.shape[1:])):
            raise InputError(f"unconditional conditioning has shape {without.shape}, expected {given.shape} or batch 1")
        return jnp.concatenate([jnp.broadcast_to(without, given.shape), given])

    if jax.tree.structure(conditional) != jax.tree.structure(unconditional):
        raise InputError(
            f"conditional and unconditional conditioning differ in structure: {jax.tree.structure(conditional)} and "
            f"{jax.tree.structure(unconditional)}; guidance needs the same tree twice"
        )
    conditioning = jax.tree.map(both, unconditional, conditional)

    def velocity(x, t):
        doubled = velocity_fn(jnp.concatenate([x, x]), jnp.concatenate([t, t]), conditioning)
        without, given = jnp.split(doubled.astype(jnp.float32), 2)
        return without + scale * (given - without)

    return velocity
