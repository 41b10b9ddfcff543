"""The kinds of autoencoders: config, network, weight names and files of other projects.

A new kind is a file with a config and a model (`AutoencoderConfig` and `Autoencoder` of
`fmboost_jax.models.first_stage`), and a line in `AUTOENCODERS`. Without a loader it is read from the folders that
`fmboost_jax.interop.save_model` writes.
"""

import dataclasses
import glob
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from fmboost_jax.errors import InputError
from fmboost_jax.interop import autoencoder_configs as configs
from fmboost_jax.interop.names import Table, build
from fmboost_jax.interop.tables import COMPVIS_KL, DIFFUSERS_KL, DIFFUSERS_TINY, OLD_DIFFUSERS_KL, TAESD
from fmboost_jax.interop.weights import read_state_dict, under
from fmboost_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from fmboost_jax.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from fmboost_jax.models.first_stage import Identity, IdentityConfig

KL_TABLES = {"compvis": COMPVIS_KL, "diffusers": DIFFUSERS_KL, "old_diffusers": OLD_DIFFUSERS_KL}
TINY_TABLES = {"taesd": TAESD, "diffusers": DIFFUSERS_TINY}
# Prefixes of CompVis' first stage in larger checkpoints: Stable Diffusion's, and the reference's training checkpoints.
_FIRST_STAGE_PREFIXES = ("first_stage_model.", "first_stage.")
# SD 1.x/2.x: the default for a file of 4 latent channels without a config.
_SD_SCALING_FACTOR = 0.18215


def load_autoencoder_kl(
    state_dict: Mapping[str, Any], config: AutoencoderKLConfig | Mapping[str, Any], dtype: str = "float32"
) -> AutoencoderKL:
    """Load a KL autoencoder from CompVis, diffusers or old diffusers names, whichever the state dict has.

    Args:
        state_dict: numpy arrays or PyTorch tensors of any float type.
        config: ours, CompVis' `ddconfig` or diffusers' `config.json`, the last two as dictionaries.
        dtype: dtype of convolutions and matrix products; ignored where `config` is ours, which has its own. Default:
            "float32".

    Raises:
        InputError: a config of another architecture, missing keys, unexpected keys or size mismatches.
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
    """Load an autoencoder of the TAESD family from diffusers' names or the original layer numbers.

    Args:
        state_dict: `encoder.layers.<n>…` as in diffusers, or `encoder.<n>…` and `decoder.<n>…`: the names in the
            original files after the file's side.
        config: ours, or diffusers' `config.json` as a dictionary; None: the tensors' shapes decide, the
            latent scale is 1.
        dtype: dtype of convolutions; ignored where `config` is ours, which has its own. Default: "float32".

    Raises:
        InputError: a config of another architecture, missing keys, unexpected keys or size mismatches.
    """
    names = "diffusers" if any(name.startswith("encoder.layers.") for name in state_dict) else "taesd"
    if not isinstance(config, AutoencoderTinyConfig):
        config = configs.tiny_config(config or {}, state_dict, dtype=dtype)
    model = build(AutoencoderTiny, config, TINY_TABLES[names], state_dict)
    model.weight_names = names
    return model


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
            f"autoencoder {path}: {config['z_channels']} latent channels and no scale in the file; put a "
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
    """Return the encoder's file in a folder of TAESD files, or with their prefix."""
    pattern = os.path.join(glob.escape(path), "*") if os.path.isdir(path) else glob.escape(path)
    found = sorted(glob.glob(f"{pattern}_encoder.pth") + glob.glob(f"{pattern}_encoder.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        prefixes = ", ".join(name[: name.rindex("_encoder.")] for name in found)
        raise InputError(f"autoencoder {path}: several autoencoders; name one by its prefix: {prefixes}")
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


@dataclasses.dataclass(frozen=True)
class AutoencoderKind:
    """An entry of `AUTOENCODERS`.

    Attributes:
        config: class of its settings, an `AutoencoderConfig` with a field `dtype`.
        model: class of the network, an `Autoencoder`, constructed as `model(config, rngs=nnx.Rngs(0))`.
        tables: weight names of other projects by format. Default: none.
        load: (path, dtype) → model, from other projects' files. Default: None, only folders of this package.
        has_weights: whether there are weights to load. Default: True.
    """

    config: type
    model: type
    tables: Mapping[str, Table] = dataclasses.field(default_factory=dict)
    load: Callable[[str, str], Any] | None = None
    has_weights: bool = True


AUTOENCODERS: dict[str, AutoencoderKind] = {
    "identity": AutoencoderKind(IdentityConfig, Identity, has_weights=False),
    "kl": AutoencoderKind(AutoencoderKLConfig, AutoencoderKL, KL_TABLES, _load_kl),
    "tiny": AutoencoderKind(AutoencoderTinyConfig, AutoencoderTiny, TINY_TABLES, _load_tiny),
}
