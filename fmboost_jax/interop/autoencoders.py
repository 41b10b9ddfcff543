"""First stages from diffusers folders, CompVis state dicts, TAESD's files and our own converted folders."""

import glob
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from fmboost_jax.errors import InputError
from fmboost_jax.interop import autoencoder_configs as configs
from fmboost_jax.interop.folders import is_folder_of_ours, load_model
from fmboost_jax.interop.hub import local_folder
from fmboost_jax.interop.names import build, export
from fmboost_jax.interop.tables import COMPVIS_KL, DIFFUSERS_KL, DIFFUSERS_TINY, OLD_DIFFUSERS_KL, TAESD
from fmboost_jax.interop.weights import read_state_dict, under
from fmboost_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from fmboost_jax.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from fmboost_jax.models.first_stage import FirstStage, Identity, LatentSpec
from fmboost_jax.registry import check_name, choose

KINDS = ("identity", "kl", "tiny")
KL_TABLES = {"compvis": COMPVIS_KL, "diffusers": DIFFUSERS_KL, "old_diffusers": OLD_DIFFUSERS_KL}
TINY_TABLES = {"taesd": TAESD, "diffusers": DIFFUSERS_TINY}
# Where CompVis' first stage stands in larger checkpoints: Stable Diffusion's, and the reference's training checkpoints.
_FIRST_STAGE_PREFIXES = ("first_stage_model.", "first_stage.")
# SD 1.x/2.x, what a file of 4 latent channels is taken for where no config says otherwise.
_SD_SCALING_FACTOR = 0.18215


def load_autoencoder_kl(
    state_dict: Mapping[str, Any], config: AutoencoderKLConfig | Mapping[str, Any], dtype: str = "float32"
) -> AutoencoderKL:
    """A KL autoencoder from CompVis, diffusers or old diffusers names; the names themselves tell which.

    Args:
        state_dict: numpy arrays or PyTorch tensors of any float type.
        config: ours, CompVis' `ddconfig` or diffusers' `config.json`, the last two as dictionaries.
        dtype: what convolutions and matmuls compute in, unless `config` is ours and says so itself.

    Raises:
        InputError: a config beyond this architecture, or tensors that are missing, surplus or misshapen.
    """
    if not isinstance(config, AutoencoderKLConfig):
        config = configs.kl_config(config, quant_convs="quant_conv.weight" in state_dict, dtype=dtype)
    if not any(name.startswith(("encoder.down_blocks.", "decoder.up_blocks.")) for name in state_dict):
        names = "compvis"
    elif "decoder.mid_block.attentions.0.query.weight" in state_dict:
        names = "old_diffusers"
    else:
        names = "diffusers"
    model = build(AutoencoderKL, config, KL_TABLES[names], state_dict)
    model.weight_names = names
    return model


def load_autoencoder_tiny(
    state_dict: Mapping[str, Any],
    config: AutoencoderTinyConfig | Mapping[str, Any] | None = None,
    dtype: str = "float32",
) -> AutoencoderTiny:
    """An autoencoder of the TAESD family, from diffusers' names or the original layer numbers.

    Args:
        state_dict: `encoder.layers.<n>…` as diffusers, or `encoder.<n>…` and `decoder.<n>…` as the original files
            with the file's side in front.
        config: ours, or diffusers' `config.json` as a dictionary; None: all that the tensors tell is all there is.
        dtype: what convolutions compute in, unless `config` is ours and says so itself.

    Raises:
        InputError: a config beyond this architecture, or tensors that are missing, surplus or misshapen.
    """
    names = "diffusers" if any(name.startswith("encoder.layers.") for name in state_dict) else "taesd"
    if not isinstance(config, AutoencoderTinyConfig):
        config = configs.tiny_config(config or {}, state_dict, dtype=dtype)
    model = build(AutoencoderTiny, config, TINY_TABLES[names], state_dict)
    model.weight_names = names
    return model


def load_first_stage(kind: str, path: str | os.PathLike = "", dtype: str = "float32") -> FirstStage:
    """A first stage by kind and, but for identity, the folder, file or hub id of its weights.

    Args:
        kind: "identity": pixels as latents. "kl": a diffusers folder (or a pipeline's, with `vae/` inside), a hub id
            `owner/name[/subfolder]`, a CompVis state dict file (`config.json` beside it where it is not SD 1.x/2.x) or
            a folder that `fmboost_jax.convert` wrote. "tiny": the same folders, a safetensors file, or a folder or
            prefix of the original `<prefix>_encoder.pth` and `<prefix>_decoder.pth`.
        path: see above.
        dtype: "float32" or "bfloat16", what its convolutions and matmuls compute in.

    Raises:
        InputError: unknown kind, a missing path, weights that are missing, unreadable or do not fit.
    """
    if kind == "identity":
        return FirstStage(LatentSpec(kind, "", channels=3, downsampling=1), Identity())
    check_name("first stage kind", kind, KINDS)
    if not path:
        raise InputError(f"first stage {kind!r} needs the folder or hub id of its weights: set first_stage.path")
    path = os.fspath(path)
    load = {"kl": _load_kl, "tiny": _load_tiny}[kind]
    folder = _with_config(local_folder(path))
    model = load_model(folder, dtype=dtype) if is_folder_of_ours(folder) else load(folder, dtype)
    expected = {"kl": AutoencoderKL, "tiny": AutoencoderTiny}[kind]
    if not isinstance(model, expected):
        raise InputError(f"first stage {path}: expected kind {kind!r}, found {type(model).__name__}")
    return FirstStage(LatentSpec.from_config(kind, path, model.config), model)


def _with_config(folder: str) -> str:
    """The folder itself, or the autoencoder's part of a pipeline's."""
    inner = os.path.join(folder, "vae")
    alone = os.path.isfile(os.path.join(folder, "config.json"))
    return inner if not alone and os.path.isfile(os.path.join(inner, "config.json")) else folder


def _load_kl(path: str, dtype: str) -> AutoencoderKL:
    if os.path.isdir(path):
        config = _read_config(path)
        return load_autoencoder_kl(read_state_dict(_weights_file(path)), config, dtype)
    tensors = read_state_dict(path)
    for prefix in _FIRST_STAGE_PREFIXES:
        tensors = under(prefix, tensors) or tensors
    # A file of CompVis' own training also holds its loss network.
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("loss.")}
    folder = os.path.dirname(path)
    if os.path.isfile(os.path.join(folder, "config.json")):
        return load_autoencoder_kl(tensors, _read_config(folder), dtype)
    config = configs.compvis_arguments(tensors)
    if config["z_channels"] != 4:
        raise InputError(
            f"autoencoder {path}: {config['z_channels']} latent channels whose scale the file does not tell; put a "
            'config.json beside it: {"scaling_factor": …, "shift_factor": …} and the ddconfig'
        )
    return load_autoencoder_kl(tensors, {**config, "scaling_factor": _SD_SCALING_FACTOR}, dtype)


def _load_tiny(path: str, dtype: str) -> AutoencoderTiny:
    if os.path.isfile(path):
        return load_autoencoder_tiny(read_state_dict(path), None, dtype)
    if os.path.isfile(os.path.join(path, "config.json")):
        config = _read_config(path)
        return load_autoencoder_tiny(read_state_dict(_weights_file(path)), config, dtype)
    encoder = _original_encoder(path)
    files = {"encoder": encoder, "decoder": encoder.replace("_encoder.", "_decoder.")}
    tensors = {
        f"{side}.{name}": tensor for side, file in files.items() for name, tensor in read_state_dict(file).items()
    }
    return load_autoencoder_tiny(tensors, None, dtype)


def _original_encoder(path: str) -> str:
    """The encoder's file in a folder of TAESD's, or with a prefix of them."""
    pattern = os.path.join(glob.escape(path), "*") if os.path.isdir(path) else glob.escape(path)
    found = sorted(glob.glob(f"{pattern}_encoder.pth") + glob.glob(f"{pattern}_encoder.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        prefixes = ", ".join(name[: name.rindex("_encoder.")] for name in found)
        raise InputError(f"autoencoder {path}: several of them; name one by its prefix: {prefixes}")
    raise InputError(f"autoencoder {path}: expected config.json with safetensors, or *_encoder.pth and *_decoder.pth")


def _weights_file(folder: str) -> str:
    names = ("diffusion_pytorch_model.safetensors", "*.safetensors", "diffusion_pytorch_model.bin", "*.bin")
    for name in names:
        found = sorted(glob.glob(os.path.join(glob.escape(folder), name)))
        if found:
            return found[0]
    raise InputError(f"autoencoder {folder}: no *.safetensors or *.bin beside its config.json")


def _read_config(folder: str) -> dict[str, Any]:
    path = os.path.join(folder, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"autoencoder config {path}: cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"autoencoder config {path}: expected a JSON object, found {type(config).__name__}")
    return config


def autoencoder_state_dict(model: AutoencoderKL | AutoencoderTiny, names: str) -> dict[str, np.ndarray]:
    """The autoencoder's parameters under the names of one of its formats.

    Raises:
        InputError: a format that there is not for this kind.
    """
    tables = KL_TABLES if isinstance(model, AutoencoderKL) else TINY_TABLES
    return export(model, choose("weight names", names, tables))
