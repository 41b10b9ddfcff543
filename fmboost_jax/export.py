"""Write a boost bundle of a training run: a folder to share, which `Booster.load` and `fmboost_jax.sample` read.

    python -m fmboost_jax.export --checkpoint RUN --out BUNDLE
    python -m fmboost_jax.export --checkpoint RUN --out BUNDLE --stablehlo --steps 4
    python -m fmboost_jax.export --checkpoint RUN --out BUNDLE --stablehlo --sizes 64x64 64x96

With --stablehlo the bundle also has boost and decode as one program for CPU, CUDA and TPU. The program needs only JAX
(see `BUNDLE/stablehlo/README.md`) and accepts any batch and size. --sizes adds programs for one size each, which need
less memory for large images. With --orbax the bundle also has the averaged weights as an Orbax checkpoint.
`export` is the same as a function.
"""

import argparse
import dataclasses
import os
import re
from collections.abc import Sequence
from typing import cast

import jax
from flax import nnx

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.bundle import BundleConfig, is_bundle, read_bundle, write_bundle
from fmboost_jax.boosting.run import read_run
from fmboost_jax.boosting.stablehlo import write_programs
from fmboost_jax.boosting.weights import read_weights
from fmboost_jax.configuration import add_import_option
from fmboost_jax.errors import InputError, run
from fmboost_jax.files import atomic_folder, refuse_addresses
from fmboost_jax.flow.solvers import METHODS
from fmboost_jax.interop.folders import save_model
from fmboost_jax.models.networks import VelocityNetwork, abstract_network
from fmboost_jax.models.parameters import Parameters, count, merge, split
from fmboost_jax.registry import check_name, import_extensions

DTYPES = ("float32", "float16")


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "fmboost_jax.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a run's workdir, or a bundle")
    parser.add_argument("--out", required=True, metavar="BUNDLE", help="new folder")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the latest)")
    parser.add_argument("--first-stage", metavar="PATH", help="the autoencoder's folder or hub id (default: the run's)")
    parser.add_argument(
        "--consistency",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="recommend this share, 0 to 1, of consistency of boosted latents with the small ones (default: 0)",
    )
    parser.add_argument(
        "--blend",
        metavar="BOOSTER",
        help="mean of the weights with those of another booster of the same network, a bundle, run or packaged name: "
        "between an accurate booster and one that was trained on from it for looks",
    )
    parser.add_argument(
        "--blend-share", type=float, default=0.5, metavar="SHARE", help="of that booster, 0 to 1 (default: 0.5)"
    )
    parser.add_argument("--half", action="store_true", help="store the weights as float16, in half the space")
    parser.add_argument("--orbax", action="store_true", help="also write the weights as an Orbax checkpoint")
    parser.add_argument("--stablehlo", action="store_true", help="also write boost and decode as programs")
    parser.add_argument(
        "--sizes",
        nargs="+",
        metavar="HxW",
        default=[],
        help="sizes of low-res latents; each gets its own program, in addition to the one for any size",
    )
    parser.add_argument(
        "--steps", type=int, help="integration steps of the programs (default: 4, or 1 for a network with two times)"
    )
    parser.add_argument(
        "--method", default="euler", help="ODE method of the programs: " + ", ".join(METHODS) + " (default: euler)"
    )
    add_import_option(parser)
    arguments = parser.parse_args(argv)
    refuse_addresses(vars(arguments))
    import_extensions(arguments.extensions)
    summary = export(
        arguments.checkpoint,
        arguments.out,
        step=arguments.step,
        first_stage=arguments.first_stage,
        consistency=arguments.consistency,
        blend=arguments.blend,
        blend_share=arguments.blend_share,
        dtype="float16" if arguments.half else "float32",
        orbax=arguments.orbax,
        stablehlo=arguments.stablehlo,
        sizes=[_size(text) for text in arguments.sizes],
        steps=arguments.steps,
        method=arguments.method,
    )
    print(summary)


def export(
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    *,
    step: int | None = None,
    first_stage: str | None = None,
    consistency: float = 0.0,
    blend: str | os.PathLike | None = None,
    blend_share: float = 0.5,
    dtype: str = "float32",
    orbax: bool = False,
    stablehlo: bool = False,
    sizes: Sequence[tuple[int, int]] = (),
    steps: int | None = None,
    method: str = "euler",
) -> str:
    """Write a bundle of a training run.

    Args:
        checkpoint: working directory of a run.
        out: new folder.
        step: step of the checkpoint. Default: the latest.
        first_stage: folder or hub id of the autoencoder. Default: the run's.
        consistency: recommended share of consistency of boosted latents, see `Booster.decode_boosted`. Default: 0.
        blend: bundle, run or packaged name of another booster of the same network and latents; the weights are the mean
            of both, see `blended`. Default: None.
        blend_share: weight of that booster in the mean, 0 to 1. Default: 0.5.
        dtype: dtype of the stored weights, "float32" or "float16". Default: "float32".
        orbax: also write the weights as an Orbax checkpoint.
        stablehlo: also write boost and decode as programs.
        sizes: (height, width) of low-res latents; a program for each of them is added to the one for any size.
        steps: integration steps of the programs. Default: the number recommended for the run's objective.
        method: ODE method of the programs. Default: "euler".

    Returns:
        One line that describes the result.

    Raises:
        InputError: an output that exists, a bundle instead of a run, no such checkpoint, an unknown dtype or method,
            a blend with another network or other latents.
    """
    check_name("dtype", dtype, DTYPES)
    if is_bundle(checkpoint):
        raise InputError(f"{checkpoint} is a bundle already; give the training run")
    parameters, config, stage = read_run(os.fspath(checkpoint), step=step, first_stage=first_stage)
    config = dataclasses.replace(config, consistency=consistency)
    if blend is not None:
        parameters = blended(parameters, config, os.fspath(blend), blend_share)
    with atomic_folder(out) as folder:
        write_bundle(folder, parameters, config, dtype)
        read_bundle(folder)
        network = merge(split(abstract_network(config.architecture))[0], parameters)
        if orbax:
            save_model(str(folder / "orbax"), network)
        if stablehlo:
            booster = Booster(
                cast(VelocityNetwork, network),
                stage,
                config.source,
                config.factor,
                objective=config.objective,
                steps=config.steps,
            )
            steps = config.steps if steps is None else steps
            write_programs(folder / "stablehlo", booster, sizes, steps=steps, method=method)
    return f"{out}: step {config.step:,}, {count(parameters):,} parameters, ×{config.factor}"


def blended(parameters: Parameters, config: BundleConfig, other: str, share: float) -> Parameters:
    """Return the mean of a network's weights and another booster's, where one was trained on from the other.

    Source: "network interpolation" of ESRGAN, Wang et al. 2018, arXiv 1809.00219, section 3.4.

    Args:
        parameters: of the network.
        config: its bundle's.
        other: bundle, run or packaged name of the other booster.
        share: weight of the other booster, 0 to 1.

    Raises:
        InputError: another network, other latents, or a share outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise InputError(f"blend share must be 0 to 1, found {share}")
    network, stage, theirs = read_weights(other, step=None, dtype=None, first_stage=None)
    if theirs.architecture != config.architecture:
        raise InputError(
            f"blend {other}: expected the run's network, {config.architecture}; found {theirs.architecture}"
        )
    config.latents.check(stage.spec, f"blend {other}")
    _, weights = split(cast(nnx.Module, network))
    return jax.tree.map(lambda ours, other: (1 - share) * ours + share * other, parameters, weights)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise InputError(f"--sizes {text}: expected HEIGHTxWIDTH of the low-res latents, as in 64x64")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    run(main)
