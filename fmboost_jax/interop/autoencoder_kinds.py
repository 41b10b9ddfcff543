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

import numpy as np

from fmboost_jax.errors import InputError
from fmboost_jax.files import read_json
from fmboost_jax.interop import autoencoder_configs as configs
from fmboost_jax.interop.latent_scales import scale_of
from fmboost_jax.interop.names import Table, as_array, build
from fmboost_jax.interop.tables import COMPVIS_KL, DIFFUSERS_KL, DIFFUSERS_TINY, OLD_DIFFUSERS_KL, TAESD
from fmboost_jax.interop.weights import choose_weights, part_of, read_state_dict, under
from fmboost_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from fmboost_jax.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from fmboost_jax.models.first_stage import Identity, IdentityConfig

KL_TABLES = {"compvis": COMPVIS_KL, "diffusers": DIFFUSERS_KL, "old_diffusers": OLD_DIFFUSERS_KL}
TINY_TABLES = {"taesd": TAESD, "diffusers": DIFFUSERS_TINY}
_CONFIG = "config.json"
# Settings that a config.json may have alone, beside a file whose tensors show the architecture.
_SETTINGS = {"scaling_factor", "shift_factor", "norm_num_groups"}
# FLUX.2's statistics are the running ones of a batch norm, with this epsilon where no config says otherwise.
_NORM = "bn."
_NORM_EPS = 1e-4


def load_autoencoder_kl(
    state_dict: Mapping[str, Any], config: AutoencoderKLConfig | Mapping[str, Any], dtype: str = "float32"
) -> AutoencoderKL:
    """Load a KL autoencoder with CompVis, diffusers or old diffusers names.

    The statistics of FLUX.2's latents are tensors, `bn.running_mean` and `bn.running_var`; they become settings.

    Args:
        state_dict: numpy arrays or PyTorch tensors of any float type.
        config: an `AutoencoderKLConfig`, or CompVis' `ddconfig` or diffusers' `config.json` as a dictionary.
        dtype: dtype of convolutions and matrix products; ignored if `config` is an `AutoencoderKLConfig`. Default:
            "float32".

    Raises:
        InputError: a config of another architecture, missing keys, unexpected keys or size mismatches.
    """
    state_dict, norm = _without_norm(state_dict)
    epsilon = _NORM_EPS
    if not isinstance(config, AutoencoderKLConfig):
        if config.get("_class_name") == "AutoencoderKLFlux2" and not norm:
            raise InputError(f"autoencoder weights: missing keys: {_NORM}running_mean, {_NORM}running_var")
        epsilon = configs.batch_norm_epsilon(config, _NORM_EPS)
        config = configs.kl_config(config, quant_convs="quant_conv.weight" in state_dict, dtype=dtype)
    if norm:
        config = dataclasses.replace(config, **_statistics(norm, epsilon))
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


def norm_tensors(config: AutoencoderKLConfig) -> dict[str, np.ndarray]:
    """Return the statistics of patches of 2×2 under FLUX.2's names, the inverse of reading them; else nothing."""
    if config.patch == 1:
        return {}
    variance = np.square(np.array(config.latents_std, np.float64)) - _NORM_EPS
    return {
        f"{_NORM}running_mean": np.array(config.latents_mean, np.float32),
        f"{_NORM}running_var": variance.astype(np.float32),
    }


def _without_norm(state_dict: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The tensors without FLUX.2's batch norm, and the norm's; Black Forest Labs' own names become CompVis'."""
    norm = under(_NORM, state_dict)
    if not {"running_mean", "running_var"} <= norm.keys():
        return state_dict, {}
    own = {"encoder.quant_conv.": "quant_conv.", "decoder.post_quant_conv.": "post_quant_conv."}
    rest = {name: tensor for name, tensor in state_dict.items() if not name.startswith(_NORM)}
    for theirs, name in own.items():
        rest = {name + key.removeprefix(theirs) if key.startswith(theirs) else key: t for key, t in rest.items()}
    return rest, norm


def _statistics(norm: Mapping[str, Any], epsilon: float) -> dict[str, tuple[float, ...]]:
    mean, variance = (as_array(norm[name]).astype(np.float64).ravel() for name in ("running_mean", "running_var"))
    if not (np.isfinite(mean).all() and np.isfinite(variance).all() and (variance + epsilon > 0).all()):
        raise InputError(f"autoencoder weights: {_NORM}running_mean or {_NORM}running_var has impossible values")
    return {"latents_mean": tuple(mean.tolist()), "latents_std": tuple(np.sqrt(variance + epsilon).tolist())}


def _load_kl(path: str, dtype: str) -> AutoencoderKL:
    file, config = _files(path)
    everything = read_state_dict(file)
    tensors = part_of(everything, "encoder.conv_in.weight", file)
    # A file of CompVis' own training also holds its loss network.
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("loss.")}
    if config is not None and not config.keys() <= _SETTINGS:
        return load_autoencoder_kl(tensors, config, dtype)
    config = {**configs.inferred_arguments(_without_norm(tensors)[0]), **(config or {})}
    if "scaling_factor" not in config:
        channels = config.get("z_channels", config.get("latent_channels"))
        config["scaling_factor"] = 1.0 if f"{_NORM}running_mean" in tensors else scale_of(file, everything, channels)
    return load_autoencoder_kl(tensors, config, dtype)


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
