"""The boost as a pure function: from low-res latents along the flow to high-res latents.

Training's evaluation, the `Booster` and its exports share it.
"""

from collections.abc import Callable

from jaxtyping import Array, Float

from fmboost_jax.flow.coupling import Coupling
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.parallel.sharding import shared


def boost_latents(
    velocity_fn: Callable[[Array, Array, Array], Array],
    low_res: Float[Array, "b h w c"],
    noise: Float[Array, "b H W c"],
    *,
    coupling: Coupling,
    solver: Solver,
    upsampling_noise: Float[Array, "b H W c"] | None = None,
) -> Float[Array, "b H W c"]:
    """Integrate the flow from t = 0 to 1. Call it inside `jax.jit`.

    Args:
        velocity_fn: (x, t, context) → dx/dt.
        low_res: scaled low-res latents; with PSU they already have the noise's size.
        noise: standard normal, of the high-res latents' shape.
        coupling: how x0 and context follow from the low-res latents.
        solver: how to integrate.
        upsampling_noise: standard normal, where `coupling.draws_upsampling_noise`.

    Returns:
        Scaled high-res latents, float32.
    """
    x0, context = coupling.couple(low_res, noise.shape[1:3], noise, upsampling_noise)
    x0, context = shared(x0), shared(context)
    return solver.integrate(lambda x, t: velocity_fn(x, t, context), x0)
