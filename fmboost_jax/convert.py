"""Convert weights between this project and others.

    from-reference    a training checkpoint of the PyTorch reference → a run for sampling and training
    to-reference      a run → a state dict under the reference's names
    from-autoencoder  a diffusers folder, hub id, CompVis or TAESD file → a folder of this package
    to-autoencoder    an autoencoder of any of these → a state dict under the names of another format

No code in a file is executed, and no existing output is overwritten. Each command has a help page, such as
python -m fmboost_jax.convert from-reference --help. Each is a function of this module, too.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from safetensors.numpy import save

from fmboost_jax.configuration import add_import_option, read_config, to_mapping
from fmboost_jax.errors import InputError, run
from fmboost_jax.files import refuse_addresses, refuse_existing, write_atomically
from fmboost_jax.interop import load_first_stage, load_unet, save_model, state_dict
from fmboost_jax.interop.autoencoder_kinds import AUTOENCODERS
from fmboost_jax.interop.unet import ReferenceCheckpoint, read_unet_config
from fmboost_jax.interop.weights import read_state_dict
from fmboost_jax.models.autoencoder_kl import AutoencoderKLConfig
from fmboost_jax.models.parameters import abstract, count, merge, split
from fmboost_jax.models.unet import UNet, UNetConfig
from fmboost_jax.registry import import_extensions
from fmboost_jax.training.checkpoints import load_weights
from fmboost_jax.training.config import TrainingConfig, read_saved

FROM_REFERENCE = """Convert a training checkpoint of the PyTorch reference to RUN/checkpoints/STEP.

    python -m fmboost_jax.convert from-reference last.ckpt RUN --config cfm1024.py \\
        --config.first_stage.path=stabilityai/sd-vae-ft-mse

fmboost_jax.sample and Booster.load read RUN. To continue training, start a new run with --config.train.init_from=RUN.
The checkpoint gives the network's architecture; --config and its overrides give the rest (image sizes, source, first
stage). RUN holds both the online weights and their average, which sampling uses; --weights puts one in both places.
"""
TO_REFERENCE = """Convert the network of a run to a state dict under the reference's names.

    python -m fmboost_jax.convert to-reference RUN upsampler.safetensors

In PyTorch: network.load_state_dict(safetensors.torch.load_file("upsampler.safetensors")). The reference computes the
same function only for networks with unet.attention_layout="interleaved".
"""
FROM_AUTOENCODER = """Convert an autoencoder to a folder of this package (config.json and an Orbax checkpoint).

    python -m fmboost_jax.convert from-autoencoder kl stabilityai/sd-vae-ft-mse sd-vae
    python -m fmboost_jax.convert from-autoencoder kl model.ckpt sdxl-vae --scaling-factor=0.13025
    python -m fmboost_jax.convert from-autoencoder tiny folder/taesd taesd

Then --config.first_stage.kind=kl --config.first_stage.path=sd-vae. SOURCE is a diffusers folder (also of a pipeline), a
hub id, a CompVis state dict, or the folder or prefix of TAESD's *_encoder.pth and *_decoder.pth.
"""
TO_AUTOENCODER = """Convert an autoencoder to a state dict under the names of another format, bit for bit in float32.

    python -m fmboost_jax.convert to-autoencoder kl sd-vae vae.safetensors --names=compvis
"""

# Choices of `weights` that keep the online weights, and those that keep their average.
_ONLINE, _AVERAGE = ("both", "online"), ("both", "ema")


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "fmboost_jax.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str, function: Callable[..., str]) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            description=text,
            help=text.splitlines()[0],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(function=function)
        return added

    added = command("from-reference", FROM_REFERENCE, from_reference)
    added.add_argument("checkpoint", metavar="CHECKPOINT", help=".ckpt of the reference, or a bare state dict")
    added.add_argument("out", metavar="RUN", help="new folder")
    added.add_argument("--config", metavar="FILE[:VARIANT]", required=True, help="config of what CHECKPOINT lacks")
    add_import_option(added)
    added.add_argument("--weights", choices=("both", "ema", "online"), default="both", help="default: both")
    added.add_argument("--network", metavar="JSON", help="the network's arguments, where the checkpoint lacks them")

    added = command("to-reference", TO_REFERENCE, to_reference)
    added.add_argument("checkpoint", metavar="RUN", help="working directory of a run, or one step's folder")
    added.add_argument("out", metavar="OUT.safetensors", help="new file")
    added.add_argument("--step", type=int, help="step of the checkpoint (default: the latest)")
    added.add_argument("--online", action="store_true", help="the online weights instead of their average")

    added = command("from-autoencoder", FROM_AUTOENCODER, from_autoencoder)
    added.add_argument("kind", choices=[kind for kind, entry in AUTOENCODERS.items() if entry.has_weights])
    added.add_argument("source", metavar="SOURCE", help="folder, file or hub id")
    added.add_argument("out", metavar="OUT", help="new folder")
    added.add_argument("--scaling-factor", type=float, help="of the latents, where SOURCE has none or a wrong one")
    added.add_argument("--shift-factor", type=float, help="of the latents, where SOURCE has none or a wrong one")

    added = command("to-autoencoder", TO_AUTOENCODER, to_autoencoder)
    added.add_argument("kind", choices=[kind for kind, entry in AUTOENCODERS.items() if entry.has_weights])
    added.add_argument("source", metavar="SOURCE", help="folder, file or hub id")
    added.add_argument("out", metavar="OUT.safetensors", help="new file")
    names = "compvis, diffusers, old_diffusers (kl); taesd, diffusers (tiny)"
    added.add_argument("--names", default="diffusers", help=f"{names} (default: diffusers)")

    arguments, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    options = vars(arguments)
    refuse_addresses(options)
    function = options.pop("function")
    if function is from_reference:
        import_extensions(options.pop("extensions"))
        options["config"] = read_config(options["config"], rest, TrainingConfig)
    elif rest:
        raise InputError(f"unknown argument {rest[0]!r}; --help lists the arguments")
    print(function(**options))


def from_reference(
    checkpoint: str, out: str, *, config: TrainingConfig, weights: str = "both", network: str | None = None
) -> str:
    """Convert a training checkpoint of the reference to a run.

    Args:
        checkpoint: `.ckpt` of the reference, or a bare state dict in a safetensors file.
        out: new folder.
        config: all that the checkpoint lacks; its network is replaced by the checkpoint's.
        weights: "both" keeps online weights and average; "online" or "ema" puts one in both places. Default: "both".
        network: JSON file of the network's arguments, where the checkpoint lacks them.

    Returns:
        One line that describes the result.

    Raises:
        InputError: an output that exists, or a checkpoint that cannot be read or does not fit.
    """
    refuse_existing(out)
    arguments = read_unet_config(network) if network else None
    online, average, step = _reference_networks(checkpoint, weights, arguments)
    config = _with_network(config, average.config)
    state = {"step": jnp.int32(step), "parameters": split(online)[1], "ema": split(average)[1]}
    with ocp.CheckpointManager(os.path.join(os.path.abspath(out), "checkpoints")) as manager:
        content = {"state": ocp.args.StandardSave(state), "config": ocp.args.JsonSave(to_mapping(config))}
        manager.save(step, args=ocp.args.Composite(**content))
    return f"{out}: step {step:,}, {count(state['parameters']):,} parameters ({weights})"


def _reference_networks(path: str, weights: str, network: UNetConfig | None) -> tuple[UNet, UNet, int]:
    """The networks for the online parameters and for their average, and the step."""
    if path.endswith(".safetensors"):
        if network is None:
            raise InputError(
                f"weights {path}: a bare state dict has no network arguments; give their JSON file (network)"
            )
        # A bare state dict does not say who trained it; the arguments do, where they name another layout.
        unet = load_unet(read_state_dict(path), network, network.attention_layout)
        return unet, unet, 0
    checkpoint = ReferenceCheckpoint.read(path)
    online = checkpoint.unet(False, network) if weights in _ONLINE else checkpoint.unet(True, network)
    average = checkpoint.unet(True, network) if weights in _AVERAGE else online
    return online, average, checkpoint.step


def _with_network(config: TrainingConfig, unet: UNetConfig) -> TrainingConfig:
    """The config with the checkpoint's architecture; dtype and remat stay as the config has them."""
    present = config.architecture
    remat = present.remat if isinstance(present, UNetConfig) else unet.remat
    architecture = dataclasses.replace(unet, dtype=present.dtype, remat=remat)
    return dataclasses.replace(config, network="unet", architecture=architecture)


def to_reference(checkpoint: str, out: str, *, step: int | None = None, online: bool = False) -> str:
    """Convert the network of a run to a state dict under the reference's names.

    Args:
        checkpoint: working directory of a run, or one step's folder.
        out: new safetensors file.
        step: step of the checkpoint. Default: the latest.
        online: write the online weights instead of their average.

    Returns:
        One line that describes the result.

    Raises:
        InputError: an output that exists, no such checkpoint, or a network that the reference does not have.
    """
    parameters, config, step = load_weights(checkpoint, step=step, ema=not online)
    network = read_saved(TrainingConfig, config, f"config of {checkpoint}").architecture
    if not isinstance(network, UNetConfig):
        raise InputError(f"run {checkpoint}: the reference has only the UNet, found {type(network).__name__}")
    if network.attention_layout != "interleaved":
        raise InputError(
            f'run {checkpoint}: its unet.attention_layout is "{network.attention_layout}"; the reference computes only '
            '"interleaved" and gives other numbers with these weights. Train with '
            "--config.unet.attention_layout=interleaved to use a network there"
        )
    tensors = state_dict(merge(split(abstract(UNet, network))[0], parameters))
    _write_safetensors(out, tensors)
    return f"{out}: {len(tensors)} tensors of step {step:,} ({'online' if online else 'EMA'})"


def from_autoencoder(
    kind: str, source: str, out: str, *, scaling_factor: float | None = None, shift_factor: float | None = None
) -> str:
    """Convert an autoencoder to a folder of this package.

    Args:
        kind: entry of `fmboost_jax.interop.autoencoder_kinds.AUTOENCODERS`.
        source: folder, file or hub id.
        out: new folder.
        scaling_factor, shift_factor: of the latents, in place of the source's.

    Returns:
        One line that describes the result.

    Raises:
        InputError: an output that exists, or a source that cannot be read.
    """
    model: Any = load_first_stage(kind, source).model
    given = {"scaling_factor": scaling_factor, "shift_factor": shift_factor}
    model.config = dataclasses.replace(model.config, **{k: v for k, v in given.items() if v is not None})
    save_model(out, model)
    config = model.config
    return (
        f"{out}: {type(model).__name__}, {config.latent_channels} latent channels, {config.downsampling}× smaller, "
        f"scaled latent = (latent − {config.shift_factor}) · {config.scaling_factor}"
    )


def to_autoencoder(kind: str, source: str, out: str, *, names: str = "diffusers") -> str:
    """Convert an autoencoder to a state dict under the names of another format.

    Args:
        kind: entry of `fmboost_jax.interop.autoencoder_kinds.AUTOENCODERS`.
        source: folder, file or hub id.
        out: new safetensors file.
        names: format of the names, see `fmboost_jax.interop.state_dict`. Default: "diffusers".

    Returns:
        One line that describes the result.

    Raises:
        InputError: an output that exists, a source that cannot be read, or an unknown format.
    """
    model: Any = load_first_stage(kind, source).model
    groups = getattr(model.config, "norm_groups", None)
    if names == "compvis" and groups not in (None, AutoencoderKLConfig.norm_groups):
        raise InputError(
            f"autoencoder {source}: its norms have {groups} groups, and CompVis' code has "
            f"{AutoencoderKLConfig.norm_groups}, which gives other images with these weights; use names=diffusers"
        )
    tensors = state_dict(model, names)
    _write_safetensors(out, tensors)
    return f"{out}: {len(tensors)} tensors, {names} names"


def _write_safetensors(path: str, tensors: dict[str, np.ndarray]) -> None:
    refuse_existing(path)
    write_atomically(path, save(tensors))


if __name__ == "__main__":
    run(main)
