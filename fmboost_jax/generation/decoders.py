"""A base model's own decoder as a pure function of (weights, scaled latents): where no booster follows."""

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import jax.numpy as jnp
from jaxtyping import Array, Float

from fmboost_jax.boosting.latent_formats import flux2_statistics, pipeline_latents
from fmboost_jax.errors import InputError
from fmboost_jax.generation.torch_models import Weights, extract
from fmboost_jax.interop.autoencoder_kinds import load_autoencoder_kl, load_autoencoder_tiny
from fmboost_jax.models.parameters import merge, split

# (weights, scaled latents (b, h, w, c)) → images (b, H, W, 3) in [−1, 1].
Decoder: TypeAlias = Callable[[Any, Float[Array, "b h w c"]], Float[Array, "b H W 3"]]


def decoder_of(pipe: Any, dtype: str) -> tuple[Decoder, Weights]:
    """Take the decoder out of a pipeline.

    AutoencoderKL and AutoencoderTiny become this package's networks, FLUX.2's goes through torchax.

    Args:
        pipe: of diffusers, in float32 on the CPU.
        dtype: "float32" or "bfloat16", what the decoder computes in.

    Raises:
        InputError: another autoencoder, or one whose latents are normalised channel by channel.
    """
    kind, spec = type(pipe.vae).__name__, pipeline_latents(pipe)
    if kind == "AutoencoderKLFlux2":
        return _flux2_decoder(pipe.vae, dtype)
    loaders = {"AutoencoderKL": load_autoencoder_kl, "AutoencoderTiny": load_autoencoder_tiny}
    if kind not in loaders or spec.normalized:
        raise InputError(f"{kind} of {type(pipe).__name__} cannot be decoded in JAX; give a booster")
    config = {**pipe.vae.config, "_class_name": kind}
    graph, weights = split(loaders[kind](pipe.vae.state_dict(), config, dtype))

    def decode(weights: Any, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        model: Any = merge(graph, weights)
        return model.decode(spec.unscale(latents))

    return decode, cast(Weights, weights)


def _flux2_decoder(vae: Any, dtype: str) -> tuple[Decoder, Weights]:
    import torch

    class Decode(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = vae

        def forward(self, latents):
            return self.vae.decode(latents, return_dict=False)[0]

    # (1, c, 1, 2, 1, 2) → (2, 2, c)
    mean, deviation = (jnp.asarray(table.numpy())[0, :, 0, :, 0].transpose(1, 2, 0) for table in flux2_statistics(vae))
    vae.encoder, vae.quant_conv = torch.nn.Identity(), None
    function, weights = extract(Decode(), dtype)

    def decode(weights: Weights, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        _, height, width, _ = latents.shape
        repeats = (height // 2, width // 2, 1)
        raw = latents * jnp.tile(deviation, repeats) + jnp.tile(mean, repeats)
        image = function(weights, raw.transpose(0, 3, 1, 2).astype(dtype))
        return image.transpose(0, 2, 3, 1)

    return decode, weights
