"""Carry weights between this project and others.

    from-reference    a training checkpoint of the PyTorch reference → a checkpoint that sampling and training take
    to-reference      a run of ours → a state dict under the reference's names
    from-autoencoder  a diffusers folder, hub id, CompVis or TAESD file → a folder of ours
    to-autoencoder    an autoencoder of any of these → a state dict under the names of another format

Files of others are read without running anything they hold. Nothing that exists is overwritten. Each command explains
itself: python -m fmboost_jax.convert from-reference --help
"""

import argparse
import dataclasses
import os
import sys

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from safetensors.numpy import save

from fmboost_jax.configuration import add_import_option, read_config, to_mapping
from fmboost_jax.errors import InputError, run
from fmboost_jax.files import refuse_existing, write_atomically
from fmboost_jax.interop import load_first_stage, load_unet, save_model, state_dict
from fmboost_jax.interop.unet import ReferenceCheckpoint, read_unet_config
from fmboost_jax.interop.weights import read_state_dict
from fmboost_jax.models.parameters import abstract, count, merge, split
from fmboost_jax.models.unet import UNet, UNetConfig
from fmboost_jax.registry import import_extensions
from fmboost_jax.training.checkpoints import load_weights
from fmboost_jax.training.config import TrainingConfig, read_saved

FROM_REFERENCE = """A training checkpoint of the PyTorch reference becomes RUN/checkpoints/STEP.

    python -m fmboost_jax.convert from-reference last.ckpt RUN --config configs/cfm1024.py \\
        --config.first_stage.path=stabilityai/sd-vae-ft-mse

fmboost_jax.sample and Booster.load take RUN as it is; to train on, start a new run with --config.train.init_from=RUN.
The network's shape comes from the checkpoint; what the checkpoint does not tell (image sizes, source, first stage)
comes from --config and its overrides. Both the online weights and their average are kept, and the average is what is
sampled; --weights picks one for both places.
"""
TO_REFERENCE = """The network of a run becomes a state dict under the reference's names.

    python -m fmboost_jax.convert to-reference RUN upsampler.safetensors

In PyTorch: network.load_state_dict(safetensors.torch.load_file("upsampler.safetensors")). Only networks with
unet.attention_layout="interleaved" compute the same thing there.
"""
FROM_AUTOENCODER = """An autoencoder becomes a folder of ours (config.json and an Orbax checkpoint).

    python -m fmboost_jax.convert from-autoencoder kl stabilityai/sd-vae-ft-mse sd-vae
    python -m fmboost_jax.convert from-autoencoder kl model.ckpt sdxl-vae --scaling-factor=0.13025
    python -m fmboost_jax.convert from-autoencoder tiny folder/taesd taesd

Then --config.first_stage.kind=kl --config.first_stage.path=sd-vae. SOURCE is a diffusers folder (a pipeline's, too), a
hub id, a CompVis state dict, or the folder or prefix of TAESD's *_encoder.pth and *_decoder.pth.
"""
TO_AUTOENCODER = """An autoencoder becomes a state dict under the names of another format, bit for bit in float32.

    python -m fmboost_jax.convert to-autoencoder kl sd-vae vae.safetensors --names=compvis
"""


# Whether it is the average, and the choices of --weights that want it.
_WEIGHTS = {False: ("both", "online"), True: ("both", "ema")}


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "fmboost_jax.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str, function) -> argparse.ArgumentParser:
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
    added.add_argument("out", metavar="RUN", help="folder to be made")
    added.add_argument("--config", metavar="FILE[:VARIANT]", required=True, help="what the checkpoint does not tell")
    add_import_option(added)
    added.add_argument("--weights", choices=("both", "ema", "online"), default="both", help="which to keep (both)")
    added.add_argument("--network", metavar="JSON", help="the network's arguments, where the checkpoint lacks them")

    added = command("to-reference", TO_REFERENCE, to_reference)
    added.add_argument("checkpoint", metavar="RUN", help="working directory of a run, or one step's folder")
    added.add_argument("out", metavar="OUT.safetensors", help="file to be made")
    added.add_argument("--step", type=int, help="which checkpoint (the latest)")
    added.add_argument("--online", action="store_true", help="the online weights instead of their average")

    added = command("from-autoencoder", FROM_AUTOENCODER, from_autoencoder)
    added.add_argument("kind", choices=("kl", "tiny"))
    added.add_argument("source", metavar="SOURCE", help="folder, file or hub id")
    added.add_argument("out", metavar="OUT", help="folder to be made")
    added.add_argument("--scaling-factor", type=float, help="of the latents, where SOURCE does not tell it or is wrong")
    added.add_argument("--shift-factor", type=float, help="of the latents, likewise")

    added = command("to-autoencoder", TO_AUTOENCODER, to_autoencoder)
    added.add_argument("kind", choices=("kl", "tiny"))
    added.add_argument("source", metavar="SOURCE", help="folder, file or hub id")
    added.add_argument("out", metavar="OUT.safetensors", help="file to be made")
    names = "compvis, diffusers, old_diffusers (kl); taesd, diffusers (tiny)"
    added.add_argument("--names", default="diffusers", help=f"{names}; diffusers unless told")

    arguments, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    if arguments.function is not from_reference and rest:
        raise InputError(f"unknown argument {rest[0]!r}; --help lists what there is")
    arguments.overrides = rest
    print(arguments.function(arguments))


def from_reference(arguments: argparse.Namespace) -> str:
    """See FROM_REFERENCE."""
    refuse_existing(arguments.out)
    import_extensions(arguments.extensions)
    config = read_config(arguments.config, arguments.overrides, TrainingConfig)
    network = read_unet_config(arguments.network) if arguments.network else None
    parameters, ema, step = _reference_networks(arguments.checkpoint, arguments.weights, network)
    config = _with_network(config, ema.config)
    state = {"step": jnp.int32(step), "parameters": split(parameters)[1], "ema": split(ema)[1]}
    with ocp.CheckpointManager(os.path.join(os.path.abspath(arguments.out), "checkpoints")) as manager:
        content = {"state": ocp.args.StandardSave(state), "config": ocp.args.JsonSave(to_mapping(config))}
        manager.save(step, args=ocp.args.Composite(**content))
    return f"{arguments.out}: step {step:,}, {count(state['parameters']):,} parameters ({arguments.weights})"


def _reference_networks(path: str, weights: str, network: UNetConfig | None) -> tuple[UNet, UNet, int]:
    """The networks that are to be kept as parameters and as their average, and the step."""
    if path.endswith(".safetensors"):
        if network is None:
            raise InputError(f"weights {path}: a bare state dict does not tell the network's arguments; give --network")
        unet = load_unet(read_state_dict(path), network)
        return unet, unet, 0
    checkpoint = ReferenceCheckpoint.read(path)
    online, ema = (checkpoint.unet(which, network) if weights in names else None for which, names in _WEIGHTS.items())
    return online or ema, ema or online, checkpoint.step


def _with_network(config: TrainingConfig, unet: UNetConfig) -> TrainingConfig:
    """The config with the checkpoint's architecture; how to compute it (dtype, remat) stays as the config has it."""
    present = config.architecture
    remat = present.remat if isinstance(present, UNetConfig) else unet.remat
    architecture = dataclasses.replace(unet, dtype=present.dtype, remat=remat)
    return dataclasses.replace(config, network="unet", architecture=architecture)


def to_reference(arguments: argparse.Namespace) -> str:
    """See TO_REFERENCE."""
    parameters, config, step = load_weights(arguments.checkpoint, step=arguments.step, ema=not arguments.online)
    network = read_saved(TrainingConfig, config, f"config of {arguments.checkpoint}").architecture
    if not isinstance(network, UNetConfig):
        raise InputError(
            f"run {arguments.checkpoint}: the reference has the UNet alone, found {type(network).__name__}"
        )
    if network.attention_layout != "interleaved":
        raise InputError(
            f'run {arguments.checkpoint}: its unet.attention_layout is "{network.attention_layout}"; the reference '
            'computes only "interleaved", with these weights it would give other numbers. Train with '
            "--config.unet.attention_layout=interleaved to use a network there"
        )
    tensors = state_dict(merge(split(abstract(UNet, network))[0], parameters))
    _write_safetensors(arguments.out, tensors)
    return f"{arguments.out}: {len(tensors)} tensors of step {step:,} ({'online' if arguments.online else 'EMA'})"


def from_autoencoder(arguments: argparse.Namespace) -> str:
    """See FROM_AUTOENCODER."""
    model = load_first_stage(arguments.kind, arguments.source).model
    told = {name: getattr(arguments, name) for name in ("scaling_factor", "shift_factor")}
    model.config = dataclasses.replace(model.config, **{k: v for k, v in told.items() if v is not None})
    save_model(arguments.out, model)
    config = model.config
    return (
        f"{arguments.out}: {type(model).__name__}, {config.latent_channels} latent channels, {config.downsampling}× "
        f"smaller, scaled latent = (latent − {config.shift_factor}) · {config.scaling_factor}"
    )


def to_autoencoder(arguments: argparse.Namespace) -> str:
    """See TO_AUTOENCODER."""
    tensors = state_dict(load_first_stage(arguments.kind, arguments.source).model, arguments.names)
    _write_safetensors(arguments.out, tensors)
    return f"{arguments.out}: {len(tensors)} tensors, {arguments.names} names"


def _write_safetensors(path: str, tensors: dict[str, np.ndarray]) -> None:
    refuse_existing(path)
    write_atomically(path, save(tensors))


if __name__ == "__main__":
    run(main)
