"""Folders of models: `config.json` and the parameters as an Orbax checkpoint.

`python -m fmboost_jax.convert` writes them, and every loader of this package reads them.
"""

import dataclasses
import json
import os
from typing import Any

import jax

from fmboost_jax.configuration import from_mapping
from fmboost_jax.errors import InputError, one_line
from fmboost_jax.files import atomic_folder, read_json, utf8_path, write_atomically
from fmboost_jax.interop.autoencoder_kinds import AUTOENCODERS
from fmboost_jax.models import parameters
from fmboost_jax.models.networks import NETWORKS

_CONFIG = "config.json"
_PARAMETERS = "parameters"


def save_model(folder: str, model: Any) -> None:
    """Write a model's folder, atomically.

    Args:
        folder: new folder.
        model: a `UNet`, `AutoencoderKL` or `AutoencoderTiny`.

    Raises:
        InputError: the folder exists.
    """
    with atomic_folder(utf8_path(folder, "output")) as partial:
        import orbax.checkpoint as ocp  # slow to import, and most weights are safetensors

        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(partial / _PARAMETERS, parameters.split(model)[1])
        description = {"model": type(model).__name__, "config": dataclasses.asdict(model.config)}
        if hasattr(model, "weight_names"):
            description["weight_names"] = model.weight_names
        write_atomically(partial / _CONFIG, json.dumps(description, indent=2).encode())


def _models() -> dict[str, tuple[type, type]]:
    """Return model and config classes of every network and autoencoder, by the model's name."""
    kinds = (*NETWORKS.values(), *AUTOENCODERS.values())
    return {kind.model.__name__: (kind.model, kind.config) for kind in kinds}


def is_folder_of_ours(folder: str) -> bool:
    """Return whether `save_model` wrote this folder."""
    return os.path.isdir(os.path.join(folder, _PARAMETERS)) and os.path.isfile(os.path.join(folder, _CONFIG))


def load_model(folder: str, **changes: Any) -> Any:
    """Load the model of a folder that `save_model` wrote.

    Args:
        folder: folder of the model.
        changes: fields of its config to replace, such as `dtype="bfloat16"`; they must keep the parameters' shapes.

    Raises:
        InputError: another kind of folder, or one that is damaged.
    """
    if not is_folder_of_ours(folder):
        raise InputError(f"model {folder}: expected {_CONFIG} and {_PARAMETERS}/, as fmboost_jax.convert writes")
    try:
        description = read_json(os.path.join(folder, _CONFIG))
        kind, config = _models()[description["model"]]
        fields = {**description["config"], **changes}
    except (KeyError, TypeError) as error:
        raise InputError(
            f"model {folder}: its {_CONFIG} does not describe a model of this package ({error})"
        ) from error
    config = from_mapping(config, fields, f"model {folder}: {_CONFIG}")
    graph, shapes = parameters.split(parameters.abstract(kind, config))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
    import orbax.checkpoint as ocp

    try:
        with ocp.StandardCheckpointer() as checkpointer:
            loaded = checkpointer.restore(os.path.abspath(os.path.join(folder, _PARAMETERS)), shapes)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"model {folder}: its parameters cannot be read ({one_line(error)}); write it again"
        ) from error
    model = parameters.merge(graph, loaded)
    if "weight_names" in description:
        model.weight_names = description["weight_names"]
    return model
