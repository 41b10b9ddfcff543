"""Make a boost bundle of a training run: one folder to share, which `Booster.load` and `fmboost_jax.sample` take.

    python -m fmboost_jax.export --checkpoint RUN --out BUNDLE
    python -m fmboost_jax.export --checkpoint RUN --out BUNDLE --stablehlo --steps 4
    python -m fmboost_jax.export --checkpoint RUN --out BUNDLE --stablehlo --sizes 64x64 64x96

With --stablehlo the bundle also holds boost and decode as a program for CPU, CUDA and TPU, which runs with jax alone:
`BUNDLE/stablehlo/README.md` shows how. It takes any batch and size. --sizes adds programs for one size each, which need
less memory for large images. With --orbax the averaged weights are there as an Orbax checkpoint, too.
"""

import argparse
import re
from typing import cast

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.bundle import is_bundle, read_bundle, write_bundle
from fmboost_jax.boosting.run import read_run
from fmboost_jax.boosting.stablehlo import write_programs
from fmboost_jax.configuration import add_import_option
from fmboost_jax.errors import InputError, run
from fmboost_jax.files import atomic_folder
from fmboost_jax.flow.solvers import METHODS
from fmboost_jax.interop.folders import save_model
from fmboost_jax.models.networks import VelocityNetwork, abstract_network
from fmboost_jax.models.parameters import count, merge, split
from fmboost_jax.registry import import_extensions


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "fmboost_jax.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a run's workdir, or a bundle")
    parser.add_argument("--out", required=True, metavar="BUNDLE", help="folder to be made")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the latest)")
    parser.add_argument("--first-stage", metavar="PATH", help="the autoencoder's folder or hub id, where it has moved")
    parser.add_argument("--half", action="store_true", help="store the weights as float16: half the size")
    parser.add_argument("--orbax", action="store_true", help="also write the weights as an Orbax checkpoint")
    parser.add_argument("--stablehlo", action="store_true", help="also write boost and decode as programs")
    parser.add_argument(
        "--sizes",
        nargs="+",
        metavar="HxW",
        default=[],
        help="sizes of low-res latents that each get a program, beside the one for any size",
    )
    parser.add_argument(
        "--steps", type=int, help="integration steps of the programs (default: 4, or 1 for a network with two times)"
    )
    parser.add_argument(
        "--method", default="euler", help="their ODE method: " + ", ".join(METHODS) + " (default: euler)"
    )
    add_import_option(parser)
    arguments = parser.parse_args(argv)
    import_extensions(arguments.extensions)
    if is_bundle(arguments.checkpoint):
        raise InputError(f"--checkpoint {arguments.checkpoint} is a bundle already; give the training run")
    parameters, config, stage = read_run(arguments.checkpoint, step=arguments.step, first_stage=arguments.first_stage)
    sizes = [_size(text) for text in arguments.sizes]
    with atomic_folder(arguments.out) as folder:
        write_bundle(folder, parameters, config, "float16" if arguments.half else "float32")
        read_bundle(folder)
        network = merge(split(abstract_network(config.architecture))[0], parameters)
        if arguments.orbax:
            save_model(str(folder / "orbax"), network)
        if arguments.stablehlo:
            booster = Booster(
                cast(VelocityNetwork, network),
                stage,
                config.source,
                config.factor,
                objective=config.objective,
                steps=config.steps,
            )
            steps = config.steps if arguments.steps is None else arguments.steps
            write_programs(folder / "stablehlo", booster, sizes, steps=steps, method=arguments.method)
    print(f"{arguments.out}: step {config.step:,}, {count(parameters):,} parameters, ×{config.factor}")


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise InputError(f"--sizes {text}: expected HEIGHTxWIDTH of the low-res latents, as in 64x64")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    run(main)
