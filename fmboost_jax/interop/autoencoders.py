"""Loading of first stages from other projects' files, or from folders of this package."""

import os

import numpy as np
from flax import nnx

from fmboost_jax.errors import InputError
from fmboost_jax.files import read_json
from fmboost_jax.interop.autoencoder_kinds import AUTOENCODERS, norm_tensors
from fmboost_jax.interop.folders import is_folder_of_ours, load_model
from fmboost_jax.interop.hub import local_folder
from fmboost_jax.interop.names import export
from fmboost_jax.models.autoencoder_kl import AutoencoderKL
from fmboost_jax.models.first_stage import FirstStage, LatentSpec
from fmboost_jax.models.parameters import abstract
from fmboost_jax.registry import choose

# Kinds of diffusers' classes.
_CLASSES = {"AutoencoderKL": "kl", "AutoencoderKLFlux2": "kl", "AutoencoderTiny": "tiny"}


def load_first_stage(
    kind: str, path: str | os.PathLike = "", dtype: str = "float32", inversion_steps: int = 0
) -> FirstStage:
    """Load a first stage by its kind and the folder, file or hub id of its weights.

    Args:
        kind: an entry of `AUTOENCODERS`. "identity": pixels as latents, without weights. "kl": a diffusers folder (or a
            pipeline's, with `vae/` inside), a hub id `owner/name[/subfolder]`, a state dict file (with `config.json` in
            its folder where the file does not show the latents' scale) or a folder that `fmboost_jax.convert` wrote.
            "tiny": the same folders, a safetensors file, or a folder or prefix of the original `<prefix>_encoder.pth`
            and `<prefix>_decoder.pth`.
        path: see `kind`.
        dtype: dtype of convolutions and matrix products, "float32" or "bfloat16". Default: "float32".
        inversion_steps: see `fmboost_jax.models.first_stage.invert_decoder`. Default: 0.

    Raises:
        InputError: an unknown kind, a missing path, weights that are missing, unreadable or do not fit.
    """
    entry = choose("first stage kind", kind, AUTOENCODERS)
    if not entry.has_weights:
        config = entry.config(dtype=dtype)
        return FirstStage(
            LatentSpec.from_config(kind, "", config, inversion_steps), entry.model(config, rngs=nnx.Rngs(0))
        )
    if not path:
        raise InputError(f"first stage {kind!r} needs the folder or hub id of its weights: set first_stage.path")
    path = os.fspath(path)
    folder = _with_config(local_folder(path))
    if is_folder_of_ours(folder):
        model = load_model(folder, dtype=dtype)
    elif entry.load is not None:
        model = entry.load(folder, dtype)
    else:
        raise InputError(f"first stage {path}: kind {kind!r} is read from folders that save_model writes")
    if not isinstance(model, entry.model):
        raise InputError(f"first stage {path}: expected kind {kind!r}, found {type(model).__name__}")
    return FirstStage(LatentSpec.from_config(kind, path, model.config, inversion_steps), model)


def first_stage_kind(path: str | os.PathLike, default: str) -> str:
    """Return the kind of a diffusers folder's autoencoder; `default` for everything else.

    Args:
        path: as for `load_first_stage`.
        default: an entry of `AUTOENCODERS`.
    """
    config = os.path.join(_with_config(local_folder(os.fspath(path))), "config.json")
    name = read_json(config).get("_class_name") if os.path.isfile(config) else None
    return _CLASSES.get(name, default) if isinstance(name, str) else default


def abstract_first_stage(kind: str, **settings) -> FirstStage:
    """Return a first stage with shapes instead of weights.

    Args:
        kind: an entry of `AUTOENCODERS`.
        settings: fields of its config; the others have their defaults.
    """
    entry = choose("first stage kind", kind, AUTOENCODERS)
    config = entry.config(**settings)
    return FirstStage(LatentSpec.from_config(kind, "", config), abstract(entry.model, config))


def _with_config(folder: str) -> str:
    """Return the folder, or the autoencoder's folder inside a pipeline's."""
    inner = os.path.join(folder, "vae")
    alone = os.path.isfile(os.path.join(folder, "config.json"))
    return inner if not alone and os.path.isfile(os.path.join(inner, "config.json")) else folder


def autoencoder_state_dict(model: nnx.Module, names: str | None = None) -> dict[str, np.ndarray]:
    """Return the autoencoder's parameters under the names of one of its formats.

    Args:
        model: model of a kind in `AUTOENCODERS`.
        names: format of the names. Default: that from which the model was loaded.

    Raises:
        InputError: an unknown format, or a model without one.
    """
    kind = next((kind for kind in AUTOENCODERS.values() if type(model) is kind.model), None)
    if kind is None or not kind.tables:
        raise InputError(f"{type(model).__name__} has no weight names of another project")
    tensors = export(model, choose("weight names", names or getattr(model, "weight_names", ""), kind.tables))
    return tensors | (norm_tensors(model.config) if isinstance(model, AutoencoderKL) else {})
