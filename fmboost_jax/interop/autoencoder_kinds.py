"""The table of autoencoders: config, network, weight names and files of other projects.

A new kind needs a module with a config and a model (`AutoencoderConfig` and `Autoencoder` of
`fmboost_jax.models.first_stage`), and an entry in `AUTOENCODERS`. Kinds without a loader are read from folders that
`fmboost_jax.interop.save_model` writes.
"""

import dataclasses
import glob
import os
from collections.abc import Callable, Mapping
from typing import Any

from fmboost_jax.errors import InputError
from fmboost_jax.files import read_json
from fmboost_jax.interop import autoencoder_configs as configs
from fmboost_jax.interop.names import Table, build
from fmboost_jax.interop.tables import COMPVIS_KL, DIFFUSERS_KL, DIFFUSERS_TINY, OLD_DIFFUSERS_KL, TAESD
from fmboost_jax.interop.weights import choose_weights, part_of, read_state_dict
from fmboost_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from fmboost_jax.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from fmboost_jax.models.first_stage import Identity, IdentityConfig

KL_TABLES = {"compvis": COMPVIS_KL, "diffusers": DIFFUSERS_KL, "old_diffusers": OLD_DIFFUSERS_KL}
TINY_TABLES = {"taesd": TAESD, "diffusers": DIFFUSERS_TINY}
_CONFIG = "config.json"
# SD 1.x/2.x: the default for a file of 4 latent channels without a config.
_SD_SCALING_FACTOR = 0.18215
# A checkpoint of all of SDXL has its text encoders under this name, and another scale.
_SDXL_TEXT_ENCODERS, _SDXL_SCALING_FACTOR = "conditioner.embedders.", 0.13025


def load_autoencoder_kl(
    state_dict: Mapping[str, Any], config: AutoencoderKLConfig | Mapping[str, Any], dtype: str = "float32"
) -> AutoencoderKL:
    """Load a KL autoencoder with CompVis, diffusers or old diffusers names.

    Args:
        state_dict: numpy arrays or PyTorch tensors of any float type.
        config: an `AutoencoderKLConfig`, or CompVis' `ddconfig` or diffusers' `config.json` as a dictionary.
        dtype: dtype of convolutions and matrix products; ignored if `config` is an `AutoencoderKLConfig`. Default:
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
        state_dict: tensors with diffusers' names, `encoder.layers.<n>…`, or with the names of the original files after
            the file's side, `encoder.<n>…` and `decoder.<n>…`.
        config: an `AutoencoderTinyConfig`, or diffusers' `config.json` as a dictionary. Default: inferred from the
            tensors' shapes, with latent scale 1.
        dtype: dtype of convolutions; ignored if `config` is an `AutoencoderTinyConfig`. Default: "float32".

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
    file, config = _files(path)
    everything = read_state_dict(file)
    tensors = part_of(everything, "encoder.conv_in.weight", file)
    # A file of CompVis' own training also holds its loss network.
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("loss.")}
    if config is not None:
        return load_autoencoder_kl(tensors, config, dtype)
    config = configs.inferred_arguments(tensors)
    channels = config.get("z_channels", config.get("latent_channels"))
    if channels != 4:
        raise InputError(
            f"autoencoder {path}: {channels} latent channels and no scale in the file; put a "
            'config.json beside it: {"scaling_factor": …, "shift_factor": …} and the ddconfig'
        )
    sdxl = any(name.startswith(_SDXL_TEXT_ENCODERS) for name in everything)
    scale = _SDXL_SCALING_FACTOR if sdxl else _SD_SCALING_FACTOR
    return load_autoencoder_kl(tensors, {**config, "scaling_factor": scale}, dtype)


def _load_tiny(path: str, dtype: str) -> AutoencoderTiny:
    if os.path.isfile(path) or os.path.isfile(os.path.join(path, _CONFIG)):
        file, config = _files(path)
        tensors = read_state_dict(file)
        for anchor in ("encoder.layers.0.weight", "encoder.0.weight"):
            tensors = part_of(tensors, anchor, file)
        return load_autoencoder_tiny(tensors, config if os.path.isdir(path) else None, dtype)
    encoder = _original_encoder(path)
    files = {"encoder": encoder, "decoder": encoder.replace("_encoder.", "_decoder.")}
    tensors = {
        f"{side}.{name}": tensor for side, file in files.items() for name, tensor in read_state_dict(file).items()
    }
    return load_autoencoder_tiny(tensors, None, dtype)


def _files(path: str) -> tuple[str, dict[str, Any] | None]:
    """The file of weights of a path, which may be its folder, and the `config.json` beside it."""
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    config = os.path.join(folder, _CONFIG)
    found = read_json(config) if os.path.isfile(config) else None
    if not os.path.isdir(path):
        return path, found
    if found is None and not any(name.endswith((".safetensors", ".bin")) for name in os.listdir(path)):
        raise InputError(f"autoencoder {path}: expected {_CONFIG} beside a file of weights, found neither")
    return os.path.join(path, choose_weights(os.listdir(path), f"autoencoder {path}")[0]), found


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
