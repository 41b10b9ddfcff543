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

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.bundle import is_bundle, read_bundle, write_bundle
from fmboost_jax.boosting.run import read_run
from fmboost_jax.boosting.stablehlo import write_programs
from fmboost_jax.configuration import add_import_option
from fmboost_jax.errors import InputError, run
from fmboost_jax.files import atomic_folder, refuse_addresses
from fmboost_jax.flow.solvers import METHODS
from fmboost_jax.interop.folders import save_model
from fmboost_jax.models.networks import VelocityNetwork, abstract_network
from fmboost_jax.models.parameters import count, merge, split
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
        dtype: dtype of the stored weights, "float32" or "float16". Default: "float32".
        orbax: also write the weights as an Orbax checkpoint.
        stablehlo: also write boost and decode as programs.
        sizes: (height, width) of low-res latents; a program for each of them is added to the one for any size.
        steps: integration steps of the programs. Default: the number recommended for the run's objective.
        method: ODE method of the programs. Default: "euler".

    Returns:
        One line that describes the result.

    Raises:
        InputError: an output that exists, a bundle instead of a run, no such checkpoint, an unknown dtype or method.
    """
    check_name("dtype", dtype, DTYPES)
    if is_bundle(checkpoint):
        raise InputError(f"{checkpoint} is a bundle already; give the training run")
    parameters, config, stage = read_run(os.fspath(checkpoint), step=step, first_stage=first_stage)
    config = dataclasses.replace(config, consistency=consistency)
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


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise InputError(f"--sizes {text}: expected HEIGHTxWIDTH of the low-res latents, as in 64x64")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    run(main)
