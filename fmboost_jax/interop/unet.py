"""The velocity network's weights, from the PyTorch reference's state dicts and training checkpoints."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from fmboost_jax.errors import InputError
from fmboost_jax.interop.names import build
from fmboost_jax.interop.tables import REFERENCE_UNET
from fmboost_jax.interop.torch_file import read_torch_file
from fmboost_jax.interop.weights import under
from fmboost_jax.models.unet import UNet, UNetConfig

ONLINE_PREFIX = "model.net."
EMA_PREFIX = "ema_model.ema_model.net."
# Where a training checkpoint of the reference keeps the network's constructor arguments.
_ARGUMENTS = ("hyper_parameters", "fm_cfg", "params", "net_cfg", "params")


def unet_config(arguments: Mapping[str, Any]) -> UNetConfig:
    """Our config for the reference's constructor arguments, with the attention layout that its weights need.

    Raises:
        InputError: arguments that the network does not have; all of them in one message.
    """
    known = {field.name for field in dataclasses.fields(UNetConfig)}
    unknown = sorted(arguments.keys() - known)
    if unknown:
        raise InputError(
            f"network config: unknown arguments {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
    return UNetConfig(**{"attention_layout": "interleaved", **fields})


def load_unet(state_dict: Mapping[str, Any], config: UNetConfig | Mapping[str, Any]) -> UNet:
    """A network with weights under the reference's names.

    Args:
        state_dict: numpy arrays or PyTorch tensors, layouts of PyTorch (OIHW).
        config: ours, or the reference's constructor arguments. Weights that were trained with the reference need
            `attention_layout="interleaved"`, which the latter implies.

    Raises:
        InputError: tensors that are missing, surplus or misshapen: all of them in one message.
    """
    if not isinstance(config, UNetConfig):
        config = unet_config(config)
    return build(UNet, config, REFERENCE_UNET, state_dict)


def load_lightning(path: str, ema: bool = True, config: UNetConfig | Mapping[str, Any] | None = None) -> UNet:
    """The network of a training checkpoint of the reference; nothing in the file is run.

    Args:
        path: of the checkpoint (`.ckpt`, gzipped or not).
        ema: the exponential moving average; False for the weights that were being trained.
        config: needed only where the checkpoint does not hold the network's arguments.

    Raises:
        InputError: a file that cannot be read, that lacks the weights or the config, or whose weights do not fit.
    """
    checkpoint = read_torch_file(path)
    tensors = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(tensors, dict):
        raise InputError(f"checkpoint {path}: expected a training checkpoint with a state_dict, found none")
    prefix = EMA_PREFIX if ema else ONLINE_PREFIX
    network = under(prefix, tensors)
    if not network:
        other = "without EMA" if ema and under(ONLINE_PREFIX, tensors) else "with the reference's training code"
        raise InputError(f"checkpoint {path}: no tensors under {prefix}; was it saved {other}?")
    return load_unet(network, config or _arguments(path, checkpoint))


def _arguments(path: str, checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Any = checkpoint
    for key in _ARGUMENTS:
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise InputError(
            f"checkpoint {path}: the network's arguments are not in it ({'.'.join(_ARGUMENTS)}); give its config"
        )
    return found


def read_unet_config(path: str) -> UNetConfig:
    """The config in a JSON file of the reference's constructor arguments.

    Raises:
        InputError: no such file, no JSON object, unknown arguments.
    """
    try:
        with open(path, encoding="utf-8") as file:
            arguments = json.load(file)
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"network config {path}: cannot be read ({error})") from error
    if not isinstance(arguments, dict):
        raise InputError(f"network config {path}: expected a JSON object, found {type(arguments).__name__}")
    return unet_config(arguments)
