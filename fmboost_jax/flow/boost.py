"""The boost itself as a pure function: from low-res latents along the flow to high-res ones.

What training's evaluation, the `Booster` and its exports share.
"""

import dataclasses
from collections.abc import Callable

from jaxtyping import Array, Float

from fmboost_jax.flow.coupling import couple
from fmboost_jax.flow.solvers import integrate
from fmboost_jax.parallel.sharding import shared


@dataclasses.dataclass(frozen=True)
class Source:
    """How a boost starts: the `source` section of a config with what its data says.

    Attributes:
        start: "low_res" or "noise", see `fmboost_jax.flow.coupling.couple`.
        noise_step: diffusion step of the noise augmentation, of 1000.
        upsampling: "psu" or "lsu": in which space the low-res input grows to the high-res latent's size.
        mode: how a latent is resized ("lsu").
    """

    start: str = "low_res"
    noise_step: int = 400
    upsampling: str = "psu"
    mode: str = "bilinear"


def boost_latents(
    velocity_fn: Callable[[Array, Array, Array], Array],
    low_res: Float[Array, "b h w c"],
    noise: Float[Array, "b H W c"],
    *,
    source: Source,
    method: str,
    steps: int,
    upsampling_noise: Float[Array, "b H W c"] | None = None,
) -> Float[Array, "b H W c"]:
    """The flow from t = 0 to 1: a pure function, to be jitted.

    Args:
        velocity_fn: (x, t, context) → dx/dt.
        low_res: scaled low-res latents, of the noise's size where they were upsampled in pixels (PSU).
        noise: standard normal, of the high-res latents' shape.
        source: how the flow starts.
        method: see `fmboost_jax.flow.solvers.integrate`.
        steps: intervals of the integration grid.
        upsampling_noise: standard normal, for mode "noise" only.

    Returns:
        Scaled high-res latents, float32.
    """
    x0, context = couple(
        low_res,
        size=noise.shape[1:3],
        start=source.start,
        noise_step=source.noise_step,
        mode="identity" if source.upsampling == "psu" else source.mode,
        noise=noise,
        upsampling_noise=upsampling_noise,
    )
    x0, context = shared(x0), shared(context)
    return integrate(lambda x, t: velocity_fn(x, t, context), x0, method=method, steps=steps)
