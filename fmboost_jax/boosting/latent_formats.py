"""Conversion of the latents of diffusers' pipelines to the scaled latents that a booster expects.

Two tables: `AUTOENCODERS` has the facts of an autoencoder's latents by its class, `PIPELINES` the layout of a
pipeline's latents by its class. Source of both: the classes themselves, in diffusers 0.42.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from fmboost_jax.errors import InputError
from fmboost_jax.models.first_stage import LatentSpec

# A PyTorch tensor; this module calls its methods and imports no PyTorch.
Tensor = Any


def pipeline_latents(pipe: Any) -> LatentSpec:
    """The spec of a pipeline's latents, by the config of its autoencoder.

    Raises:
        InputError: no autoencoder, or one of a class that `AUTOENCODERS` does not have.
    """
    vae = getattr(pipe, "vae", None)
    if vae is None:
        raise InputError(f"{type(pipe).__name__} has no autoencoder (pipe.vae); a latent diffusion pipeline is needed")
    kind = type(vae).__name__
    if kind not in AUTOENCODERS:
        known = ", ".join(AUTOENCODERS)
        raise InputError(f"{type(pipe).__name__}: latents of {kind} cannot be boosted; expected those of {known}")
    try:
        facts = AUTOENCODERS[kind](vae.config)
    except KeyError as error:
        raise InputError(f"{kind}: its config has no {error.args[0]}") from error
    return LatentSpec(kind=kind, path=str(vae.config.get("_name_or_path") or ""), **facts)


def scaled_latents(pipe: Any, latents: Any, size: tuple[int | None, int | None] = (None, None)) -> Tensor:
    """A pipeline's latents → scaled ones (b, c, h, w), by the entry of its class in `PIPELINES`.

    The results of FLUX.2, and of autoencoders with a mean and a deviation for each channel, are normalised, whether the
    pipeline undoes that or not.

    Args:
        pipe: the pipeline.
        latents: what it returned with `output_type="latent"`.
        size: height and width of the image in pixels; default: the pipeline's.

    Raises:
        InputError: the latents do not have the shape of the pipeline's class.
    """
    name = type(pipe).__name__
    shape = tuple(getattr(latents, "shape", ()))
    to_planes = PIPELINES.get(name, _planes)
    if len(shape) != _DIMENSIONS[to_planes]:
        layout = "(batch, channels, height, width)" if _DIMENSIONS[to_planes] == 4 else "(batch, tokens, channels)"
        raise InputError(f"{name}: expected latents {layout}, found {shape or type(latents).__name__}")
    return to_planes(pipe, latents.detach(), size)


def flux2_statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and deviation (1, c, 1, 2, 1, 2) that FLUX.2's latents are normalised by, in patches of 2×2."""
    norm = vae.bn
    deviation = (norm.running_var.float() + vae.config["batch_norm_eps"]).sqrt()
    return norm.running_mean.float().reshape(1, -1, 1, 2, 1, 2), deviation.reshape(1, -1, 1, 2, 1, 2)


def _planes(pipe: Any, latents: Tensor, size: tuple[int | None, int | None]) -> Tensor:
    return latents


def _tokens(pipe: Any, latents: Tensor, size: tuple[int | None, int | None]) -> Tensor:
    """Patches of 2×2 as tokens, row by row; channels (c, row, column)."""
    unit = 2 * pipe.vae_scale_factor
    default = pipe.default_sample_size * pipe.vae_scale_factor
    height, width = (2 * ((side or default) // unit) for side in size)
    batch, tokens, channels = latents.shape
    if 4 * tokens != height * width or channels % 4:
        name = type(pipe).__name__
        raise InputError(f"{name}: expected {height * width // 4} tokens, found {tokens} of {channels} channels")
    patches = latents.reshape(batch, height // 2, width // 2, channels // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, height, width)


def _flux2_raw(pipe: Any, latents: Tensor, size: tuple[int | None, int | None]) -> Tensor:
    """Apply the norm again, which FLUX.2 [klein]'s pipeline undoes."""
    mean, deviation = flux2_statistics(pipe.vae)
    batch, channels, height, width = latents.shape
    patches = latents.float().reshape(batch, channels, height // 2, 2, width // 2, 2)
    return ((patches - mean.to(latents.device)) / deviation.to(latents.device)).reshape(latents.shape)


# (pipeline, its latents, the image's height and width) → scaled latents (b, c, h, w).
ToPlanes: TypeAlias = Callable[[Any, Tensor, tuple[int | None, int | None]], Tensor]
_DIMENSIONS: dict[ToPlanes, int] = {_planes: 4, _tokens: 3, _flux2_raw: 4}

# Layout of the latents by the pipeline's class; all others return their denoiser's scaled (b, c, h, w).
PIPELINES: dict[str, ToPlanes] = {
    "BriaFiboPipeline": _tokens,
    "BriaPipeline": _tokens,
    "ChromaPipeline": _tokens,
    "Flux2KleinPipeline": _flux2_raw,
    "Flux2Pipeline": _tokens,  # still normalised
    "FluxPipeline": _tokens,
    "LongCatImagePipeline": _tokens,
    "OvisImagePipeline": _tokens,
    "QwenImagePipeline": _tokens,
}


def _kl(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "channels": config["latent_channels"],
        "downsampling": 2 ** (len(config["block_out_channels"]) - 1),
        "scaling_factor": float(config.get("scaling_factor") or 1),
        "shift_factor": float(config.get("shift_factor") or 0),
        # Playground 2.5 normalises SDXL's latents channel by channel.
        "normalized": config.get("latents_mean") is not None,
    }


def _tiny(config: Mapping[str, Any]) -> dict[str, Any]:
    # A tiny autoencoder's latent is the scaled latent of the autoencoder that it imitates, whose scale is irrelevant.
    return {**_kl(config), "normalized": None}


def _flux2(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**_kl(config), "normalized": True}


def _deep_compression(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sana's: 32 channels, 32× smaller."""
    return _kl({**config, "block_out_channels": config["encoder_block_out_channels"]})


def _qwen(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"channels": config["z_dim"], "downsampling": 2 ** len(config["temperal_downsample"]), "normalized": True}


AUTOENCODERS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "AutoencoderDC": _deep_compression,
    "AutoencoderKL": _kl,
    "AutoencoderKLFlux2": _flux2,
    "AutoencoderKLQwenImage": _qwen,
    "AutoencoderTiny": _tiny,
}
