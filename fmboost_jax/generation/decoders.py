"""A base model's own decoder as a pure function of (weights, scaled latents): where no booster follows."""

from collections.abc import Callable
from typing import Any, TypeAlias, cast

from jaxtyping import Array, Float

from fmboost_jax.boosting.latent_formats import pipeline_latents
from fmboost_jax.errors import InputError
from fmboost_jax.generation.torch_models import Weights
from fmboost_jax.interop.autoencoder_kinds import load_autoencoder_kl, load_autoencoder_tiny
from fmboost_jax.models.parameters import merge, split

# (weights, scaled latents (b, h, w, c)) → images (b, H, W, 3) in [−1, 1].
Decoder: TypeAlias = Callable[[Any, Float[Array, "b h w c"]], Float[Array, "b H W 3"]]

_LOADERS: dict[str, Callable[..., Any]] = {
    "AutoencoderKL": load_autoencoder_kl,
    "AutoencoderKLFlux2": load_autoencoder_kl,
    "AutoencoderTiny": load_autoencoder_tiny,
}


def decoder_of(pipe: Any, dtype: str) -> tuple[Decoder, Weights]:
    """Take the decoder out of a pipeline.

    Args:
        pipe: of diffusers, in float32 on the CPU.
        dtype: "float32" or "bfloat16", what the decoder computes in.

    Raises:
        InputError: an autoencoder that this package does not have.
    """
    kind, spec = type(pipe.vae).__name__, pipeline_latents(pipe)
    if kind not in _LOADERS:
        raise InputError(f"{kind} of {type(pipe).__name__} cannot be decoded in JAX; give a booster")
    config = {**pipe.vae.config, "_class_name": kind}
    graph, weights = split(_LOADERS[kind](pipe.vae.state_dict(), config, dtype))

    def decode(weights: Any, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        model: Any = merge(graph, weights)
        return model.decode(spec.unscale(latents))

    return decode, cast(Weights, weights)
