"""The scale of the latents of an autoencoder in a single file, which its tensors do not hold.

The autoencoders of Stable Diffusion 1.x and 2.x and of SDXL have the same tensors, and latents of different scales.
"""

import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

from fmboost_jax.errors import InputError
from fmboost_jax.interop.safetensors_file import read_metadata

SD, SDXL = 0.18215, 0.13025
_SD_LATENT_CHANNELS = 4
# Parts of a whole checkpoint beside the autoencoder.
_SDXL_TEXT_ENCODERS, _SD_TEXT_ENCODER = "conditioner.embedders.", "cond_stage_model."
_DENOISER, _SIZE_EMBEDDING = "model.diffusion_model.", "model.diffusion_model.label_emb.0.0.weight"
# Inputs of the size embedding: SDXL's base and its refiner. SD 2.1 unCLIP has others.
_SDXL_SIZE_INPUTS = (2816, 2560)
# A key of the ModelSpec standard: https://github.com/Stability-AI/ModelSpec
_ARCHITECTURE = "modelspec.architecture"
_SDXL_NAME = re.compile(r"sd[-_ ]?xl", re.IGNORECASE)


def scale_of(path: str, tensors: Mapping[str, Any], channels: int | None) -> float:
    """Return the latents' scale of an autoencoder in a file without a config.

    The rest of a whole checkpoint shows it, or the file's metadata. The file's name is only a hint.

    Args:
        path: of the file.
        tensors: all of the file's tensors.
        channels: of the latents.

    Warns:
        UserWarning: neither the file's tensors nor its metadata show the scale; the warning says how to choose it.

    Raises:
        InputError: another number of channels than Stable Diffusion's 4.
    """
    if channels != _SD_LATENT_CHANNELS:
        raise InputError(
            f"autoencoder {path}: {channels} latent channels and no scale in the file; put a config.json beside it: "
            '{"scaling_factor": …, "shift_factor": …}'
        )
    known = _by_tensors(tensors) or _by_metadata(path)
    if known:
        return known
    named = bool(_SDXL_NAME.search(os.path.basename(path)))
    found, other = (SDXL, SD) if named else (SD, SDXL)
    warnings.warn(
        f"autoencoder {path}: nothing in the file shows whether the scale of its latents is {SD} (Stable Diffusion 1 "
        f"and 2) or {SDXL} (SDXL); {found} is used{', by its name' if named else ''}; to choose, put a config.json "
        f'beside it: {{"scaling_factor": {other}}}',
        stacklevel=2,
    )
    return found


def _by_tensors(tensors: Mapping[str, Any]) -> float | None:
    embedding = tensors.get(_SIZE_EMBEDDING)
    shape = () if embedding is None else embedding.shape
    if any(name.startswith(_SDXL_TEXT_ENCODERS) for name in tensors) or shape[1:] in [(n,) for n in _SDXL_SIZE_INPUTS]:
        return SDXL
    return SD if any(name.startswith((_SD_TEXT_ENCODER, _DENOISER)) for name in tensors) else None


def _by_metadata(path: str) -> float | None:
    architecture = read_metadata(path).get(_ARCHITECTURE)
    if not isinstance(architecture, str):
        return None
    starts = {"stable-diffusion-xl": SDXL, "stable-diffusion-v1": SD, "stable-diffusion-v2": SD}
    return next((scale for start, scale in starts.items() if architecture.startswith(start)), None)
