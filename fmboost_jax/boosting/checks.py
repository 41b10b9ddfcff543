"""Checks of latents: shape, scale, and values that are finite."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fmboost_jax.errors import InputError
from fmboost_jax.models.first_stage import LatentSpec, LatentStatistics
from fmboost_jax.models.parameters import split

# Scaled latents have a standard deviation near 1. SD 1.x' unscaled ones have 5.5, FLUX.1's 2.8; SD's scaled twice 0.18.
USUAL_DEVIATIONS = (0.3, 2.5)
# In units of the training data's. Small latents of held-out photographs have 0.7 to 1.02 with TAEF2, and 0.55 to 1.56
# with photo-autoencoder (95% are below 1.2); FLUX.2's before their norm have 1.77 times as much.
RELATIVE_DEVIATIONS = (0.55, 1.4)
FLAT = 0.1  # images without detail have less; no warning for them
# FLUX.2's have 0.7 to 0.85 on photographs; before their norm, as diffusers returns them, 1.77 times as much.
NORMALIZED_DEVIATIONS = (0.3, 1.2)


def latents_array(latents: Any, spec: LatentSpec) -> Float[Array, "b h w c"]:
    """Return latents as float32.

    Args:
        latents: an array of any library, NHWC; PyTorch's may have a gradient.
        spec: the latents that are expected.

    Raises:
        InputError: no array, or one of another shape.
    """
    try:
        array = jnp.asarray(_detached(latents), jnp.float32)
    # Other libraries' arrays raise exceptions of any type.
    except Exception as error:
        raise InputError(f"latents cannot become an array: {error}") from error
    if array.ndim != 4 or array.shape[-1] != spec.channels or not array.size:
        raise InputError(
            f"latents must be (batch, height, width, {spec.channels}) for this booster's {spec.kind} "
            f"autoencoder, found {array.shape}; PyTorch's (batch, channels, height, width) needs a transpose"
        )
    return array


def warn_of_scale(
    latents: Float[Array, "b h w c"], spec: LatentSpec, statistics: LatentStatistics | None = None
) -> None:
    """Warn of latents whose standard deviation suggests that they are unscaled, or scaled twice.

    Args:
        latents: to be boosted.
        spec: of the booster's autoencoder.
        statistics: of the booster's training data, where they are known. Default: None.
    """
    if statistics is not None:
        relative = statistics.relative_deviation(latents)
        if relative > FLAT and not RELATIVE_DEVIATIONS[0] < relative < RELATIVE_DEVIATIONS[1]:
            warnings.warn(
                f"the latents' standard deviation is {relative:.2f} times that of the latents that this booster was "
                f"trained on, the median over {spec.channels} channels; expected about 1. {_advice(spec)}",
                stacklevel=4,
            )
        return
    deviation = float(jnp.std(latents))
    low, high = NORMALIZED_DEVIATIONS
    if spec.normalized and not low < deviation < high:
        warnings.warn(
            f"the latents' standard deviation is {deviation:.2f}, expected about 0.8. {_advice(spec)}", stacklevel=4
        )
    if spec.scaling_factor != 1 and not USUAL_DEVIATIONS[0] < deviation < USUAL_DEVIATIONS[1]:
        warnings.warn(
            f"the latents' standard deviation is {deviation:.2f}, expected about 1. {_advice(spec)}", stacklevel=4
        )


def _advice(spec: LatentSpec) -> str:
    if spec.normalized:
        return (
            "Boosters expect normalised latents; diffusers returns FLUX.2's before their norm, "
            "fmboost_jax.boosting.prompt_latents applies it"
        )
    return f"Boosters expect scaled latents, (latent − {spec.shift_factor}) · {spec.scaling_factor}, scaled once"


def check_finite(array: Array, what: str, weights: Any = None) -> Array:
    """Return an array whose values are finite.

    Args:
        array: to be checked.
        what: the latents' name, or the stage that computed them.
        weights: of that stage, a module or parameters; None for input.

    Raises:
        InputError: it has NaN or infinite values; the message names the stage, and its first such weight.
    """
    if _all_finite(array):
        return array
    if weights is None:
        raise InputError(f"{what} hold NaN or infinite values; expected finite values")
    parameters = weights if isinstance(weights, dict) else split(weights)[1]
    bad = [name for name in sorted(parameters) if not _all_finite(parameters[name])]
    reason = f"{len(bad)} of its weights are not finite, such as {bad[0]}" if bad else "its weights are finite"
    advice = "load them again" if bad else 'compute in float32 (dtype="float32"), and check the range of the input'
    raise InputError(f"{what} returned NaN or infinite values; {reason}; {advice}")


@jax.jit
def _all_finite(array: Array) -> Array:
    return jnp.isfinite(array).all()


def _detached(latents: Any) -> Any:
    """A PyTorch tensor without its gradient, in a type that NumPy has; anything else as it is."""
    if hasattr(latents, "detach") and hasattr(latents, "cpu"):
        return latents.detach().cpu().float().numpy()
    if np.iscomplexobj(latents):
        raise TypeError("complex numbers")
    return latents
