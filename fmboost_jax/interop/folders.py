"""Models of ours on disk: `config.json` and, beside it, the parameters as an Orbax checkpoint.

What `python -m fmboost_jax.convert` writes and every loader here reads.
"""

import dataclasses
import json
import os
import shutil
import tempfile
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from fmboost_jax.errors import InputError
from fmboost_jax.models import parameters
from fmboost_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from fmboost_jax.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from fmboost_jax.models.unet import UNet, UNetConfig

_CONFIG = "config.json"
_PARAMETERS = "parameters"
_KINDS = {"UNet": (UNet, UNetConfig), "AutoencoderKL": (AutoencoderKL, AutoencoderKLConfig)}
_KINDS["AutoencoderTiny"] = (AutoencoderTiny, AutoencoderTinyConfig)


def save_model(folder: str, model: nnx.Module) -> None:
    """Write a model's folder; it appears whole or not at all.

    Args:
        folder: must not exist yet.
        model: a `UNet`, `AutoencoderKL` or `AutoencoderTiny`.

    Raises:
        InputError: the folder exists.
    """
    folder = os.path.abspath(folder)
    if os.path.exists(folder):
        raise InputError(f"output {folder} exists already; name another or remove it")
    parent = os.path.dirname(folder)
    os.makedirs(parent, exist_ok=True)
    partial = tempfile.mkdtemp(prefix=f".{os.path.basename(folder)}.", dir=parent)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(os.path.join(partial, _PARAMETERS), parameters.split(model)[1])
        description = {"model": type(model).__name__, "config": dataclasses.asdict(model.config)}
        if hasattr(model, "weight_names"):
            description["weight_names"] = model.weight_names
        with open(os.path.join(partial, _CONFIG), "w", encoding="utf-8") as file:
            json.dump(description, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o755)
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def is_folder_of_ours(folder: str) -> bool:
    """Whether `save_model` wrote this folder."""
    return os.path.isdir(os.path.join(folder, _PARAMETERS)) and os.path.isfile(os.path.join(folder, _CONFIG))


def load_model(folder: str, **changes: Any) -> nnx.Module:
    """The model of a folder that `save_model` wrote.

    Args:
        folder: of the model.
        changes: fields of its config to be replaced, such as `dtype="bfloat16"`; none that alter its parameters.

    Raises:
        InputError: another kind of folder, or one that is damaged.
    """
    if not is_folder_of_ours(folder):
        raise InputError(f"model {folder}: expected {_CONFIG} beside {_PARAMETERS}/, as fmboost_jax.convert writes")
    try:
        with open(os.path.join(folder, _CONFIG), encoding="utf-8") as file:
            description = json.load(file)
        kind, config = _KINDS[description["model"]]
        fields = {key: tuple(v) if isinstance(v, list) else v for key, v in description["config"].items()}
        config = config(**{**fields, **changes})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"model {folder}: its {_CONFIG} does not describe a model of ours ({error})") from error
    graph, shapes = parameters.split(parameters.abstract(kind, config))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            loaded = checkpointer.restore(os.path.abspath(os.path.join(folder, _PARAMETERS)), shapes)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"model {folder}: its parameters cannot be read ({reason}); write it again") from error
    model = parameters.merge(graph, loaded)
    if "weight_names" in description:
        model.weight_names = description["weight_names"]
    return model
