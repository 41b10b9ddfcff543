"""Weights of the UNet from state dicts and training checkpoints of the PyTorch reference."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fmboost_jax.errors import InputError, one_line, shown
from fmboost_jax.files import read_json
from fmboost_jax.interop.names import build
from fmboost_jax.interop.omegaconf_values import find, plain_values
from fmboost_jax.interop.tables import REFERENCE_UNET
from fmboost_jax.interop.torch_file import read_torch_file
from fmboost_jax.interop.weights import part_of, section_of, under, without_wrappers
from fmboost_jax.models.unet import UNet, UNetConfig

# The layout of attention that the reference computes.
REFERENCE_LAYOUT = "interleaved"
ONLINE_PREFIX = "model.net."
EMA_PREFIX = "ema_model.ema_model.net."
# Keys of the network's constructor arguments in a training checkpoint of the reference.
_ARGUMENTS = ("hyper_parameters", "fm_cfg", "params", "net_cfg", "params")


def unet_config(arguments: Mapping[str, Any]) -> UNetConfig:
    """Return our config for the reference's constructor arguments, with the attention layout of its weights.

    Raises:
        InputError: unknown arguments; one message names all.
    """
    return UNetConfig.from_dict({"attention_layout": REFERENCE_LAYOUT, **arguments})


def load_unet(
    state_dict: Mapping[str, Any],
    config: UNetConfig | Mapping[str, Any],
    weights_layout: str = REFERENCE_LAYOUT,
) -> UNet:
    """Load a network from weights under the reference's names.

    The same weights give other velocities in another layout of attention, and no conversion between the layouts exists:
    which values meet depends on the number of positions.

    Args:
        state_dict: numpy arrays or PyTorch tensors, layouts of PyTorch (OIHW).
        config: ours, or the reference's constructor arguments, which imply `attention_layout="interleaved"`.
        weights_layout: the layout of attention that the weights were trained with; "heads" for those of a network that
            this package trained with "heads". Default: "interleaved", the reference's.

    Raises:
        InputError: a config with another layout of attention than the weights', missing keys, unexpected keys or size
            mismatches; one message names all keys.
    """
    if not isinstance(config, UNetConfig):
        config = unet_config(config)
    _check_layout(config, weights_layout, "network weights")
    return build(UNet, config, REFERENCE_UNET, part_of(state_dict, "input_blocks.0.0.weight", "of the network"))


def _check_layout(config: UNetConfig, trained: str, what: str) -> None:
    if config.attention_layout != trained:
        raise InputError(
            f'{what}: trained with attention_layout "{trained}", the config has "{config.attention_layout}", which '
            f'gives other velocities with these weights; set attention_layout="{trained}"'
        )


@dataclasses.dataclass(frozen=True)
class ReferenceCheckpoint:
    """A training checkpoint of the reference; reading it executes no code.

    Attributes:
        path: path of the file.
        tensors: its `state_dict`.
        step: optimizer steps of the training; 0 if the file lacks them.
        arguments: the network's constructor arguments; None if the file lacks them.
    """

    path: str
    tensors: Mapping[str, Any]
    step: int
    arguments: Mapping[str, Any] | None

    @classmethod
    def read(cls, path: str) -> "ReferenceCheckpoint":
        """Read a `.ckpt`, gzipped or not; its hyper-parameters may be OmegaConf's or plain dictionaries.

        Raises:
            InputError: a file that cannot be read, would run code, is no training checkpoint, or whose hyper-parameters
                are damaged.
        """
        content = read_torch_file(path)
        tensors = content.get("state_dict") if isinstance(content, dict) else None
        if not isinstance(tensors, dict):
            raise InputError(f"checkpoint {path}: expected a training checkpoint with a state_dict, found none")
        try:
            arguments = plain_values(find(content, *_ARGUMENTS))
        except (ValueError, RecursionError) as error:
            raise InputError(f"checkpoint {path}: its hyper-parameters cannot be read ({one_line(error)})") from error
        if not isinstance(arguments, dict | None):
            raise InputError(
                f"checkpoint {path}: expected network arguments by name in {'.'.join(_ARGUMENTS)}, "
                f"found {type(arguments).__name__}"
            )
        step = content.get("global_step", 0)
        if type(step) is not int or not 0 <= step < 2**31:
            raise InputError(f"checkpoint {path}: expected global_step as a whole number, found {shown(step)}")
        return cls(path, without_wrappers(section_of(content), path), step, arguments)

    def unet(self, ema: bool = True, config: UNetConfig | Mapping[str, Any] | None = None) -> UNet:
        """Return its network, see `load_lightning`."""
        prefix = EMA_PREFIX if ema else ONLINE_PREFIX
        network = under(prefix, self.tensors)
        if not network:
            other = "without EMA" if ema and under(ONLINE_PREFIX, self.tensors) else "by other training code"
            raise InputError(f"checkpoint {self.path}: no tensors under {prefix}; it may have been saved {other}")
        config = config or self.arguments
        if not config:
            raise InputError(
                f"checkpoint {self.path}: it has no network arguments ({'.'.join(_ARGUMENTS)}); give its config"
            )
        config = config if isinstance(config, UNetConfig) else unet_config(config)
        _check_layout(config, REFERENCE_LAYOUT, f"checkpoint {self.path}")
        return load_unet(network, config)


def load_lightning(path: str, ema: bool = True, config: UNetConfig | Mapping[str, Any] | None = None) -> UNet:
    """Load the network of a training checkpoint of the reference.

    Args:
        path: path of the checkpoint (`.ckpt`, gzipped or not).
        ema: load the exponential moving average; False: the online weights. Default: True.
        config: config of the network. Default: that of the checkpoint.

    Raises:
        InputError: a file that cannot be read, that lacks the weights or the config, whose weights do not fit, or a
            config with another attention layout than "interleaved".
    """
    return ReferenceCheckpoint.read(path).unet(ema, config)


def read_unet_config(path: str) -> UNetConfig:
    """Read the config from a JSON file of the reference's constructor arguments.

    Raises:
        InputError: a missing file, a file without a JSON object, or unknown arguments.
    """
    return unet_config(read_json(path))
