"""Boost photographs, latents or what a diffusion model makes of a prompt, with a training run or a bundle.

    python -m fmboost_jax.sample --input photo.jpg
    python -m fmboost_jax.sample --booster BUNDLE --input photo.jpg --out boosted
    python -m fmboost_jax.sample --booster BUNDLE --input PHOTOS --steps 20 --method midpoint --resume --out boosted
    python -m fmboost_jax.sample --booster BUNDLE --input latents.npz --batch-size 8 --out boosted
    python -m fmboost_jax.sample --booster BUNDLE --input PHOTOS --compare --out boosted
    python -m fmboost_jax.sample --booster BUNDLE --prompt "a cat" --base FOLDER_OR_ID --base-steps 4 --out boosted
    python -m fmboost_jax.sample --booster FIRST SECOND --input latents.npz --intermediates --out cascade
    python -m fmboost_jax.sample --booster BUNDLE --input PHOTOS --devices 8 --spatial 2 --batch-size 4 --out boosted
    python -m fmboost_jax.sample --booster BUNDLE --benchmark 10 --size 64x64

Each result is a PNG whose text chunk `fmboost` holds the settings that made it; the same seed gives the same bytes.
Transparency is kept: it is resized, and the colours below it are boosted on white.
"""

import argparse
import os
import re

import jax
import numpy as np

from fmboost_jax.assets import DEFAULT_BOOSTER
from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.folder import boost_photographs, boost_prompts, read_latents, write_latents
from fmboost_jax.errors import InputError, run
from fmboost_jax.flow.solvers import METHODS
from fmboost_jax.images.colour import FIXES
from fmboost_jax.runtime.timing import CompileClock, seconds_an_image


def main(argv: list[str] | None = None) -> None:
    """The command."""
    arguments = _parser().parse_args(argv)
    if arguments.steps < 1:
        raise InputError(f"--steps must be 1 or more, found {arguments.steps}")
    if arguments.batch_size < 1:
        raise InputError(f"--batch-size must be 1 or more, found {arguments.batch_size}")
    if arguments.prompt and not arguments.base:
        raise InputError("--prompt needs a base model: --base FOLDER_OR_ID of a diffusers pipeline")
    devices = _devices(arguments.devices, arguments.spatial)
    told = {"first_stage": arguments.first_stage, "devices": devices, "spatial": arguments.spatial}
    boosters = [Booster.load(path, **told) for path in arguments.checkpoint]
    names = " → ".join(os.path.basename(os.path.normpath(path)) for path in arguments.checkpoint)
    factor = int(np.prod([booster.factor for booster in boosters]))
    if arguments.factor not in (None, factor):
        raise InputError(f"--factor {arguments.factor}: checkpoint {names} was trained to enlarge ×{factor}")
    settings = {
        "checkpoint": names,
        "factor": factor,
        "steps": arguments.steps,
        "method": arguments.method,
        "seed": arguments.seed,
        "noise_step": boosters[0].coupling.noise_step if arguments.noise_step is None else arguments.noise_step,
        "start": boosters[0].coupling.start,
    }
    if arguments.benchmark:
        _benchmark(boosters[0], arguments)
        return
    os.makedirs(arguments.out, exist_ok=True)
    with CompileClock() as clock:
        if arguments.prompt:
            boost_prompts(boosters, arguments, settings)
        elif arguments.input.endswith(".npz"):
            write_latents(boosters, read_latents(arguments.input), arguments, [settings])
        else:
            boost_photographs(boosters, arguments, settings)
    print(f"pictures in {arguments.out}")
    if arguments.verbose:
        print(f"{clock.compiling:.1f} s compiling, {clock.elapsed - clock.compiling:.1f} s everything else")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fmboost_jax.sample", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--booster",
        "--checkpoint",
        dest="checkpoint",
        default=[DEFAULT_BOOSTER],
        nargs="+",
        metavar="DIR",
        help="a bundle's folder or hub id, a run's workdir, or one step of its checkpoints; several are a cascade "
        f"(default {DEFAULT_BOOSTER}, which comes with the package)",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--input",
        metavar="PATH",
        help="a photograph, a folder of them, or an .npz of scaled low-res latents (batch, height, width, channels)",
    )
    what.add_argument("--prompt", action="append", metavar="TEXT", help="for the base model; again for more images")
    what.add_argument("--benchmark", type=int, metavar="N", help="time N boosts and decodes of random latents")
    add("--out", default="boosted", metavar="DIR", help="where the PNG files are to lie (default boosted)")
    add("--base", metavar="FOLDER_OR_ID", help="a diffusers pipeline, for --prompt")
    add("--base-steps", type=int, metavar="N", help="of the base model; its own default unless told")
    add("--guidance", type=float, metavar="SCALE", help="guidance scale of the base model; its own default unless told")
    add("--first-stage", metavar="PATH", help="the autoencoder's folder or hub id, where it has moved")
    add("--factor", type=int, help="by how much to enlarge; what the checkpoint was trained for by default")
    add("--steps", type=int, default=4, help="integration steps; more cost more (default 4)")
    add("--method", default="euler", help="ODE method: " + ", ".join(METHODS) + " (default: euler)")
    add("--seed", type=int, default=0, help="of the noise augmentation and the base model (default 0)")
    add(
        "--noise-step",
        type=int,
        metavar="STEP",
        help="strength of the noise augmentation, of 1000; as trained if not told",
    )
    add(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="latents, prompts or photographs of one size at once (default 1)",
    )
    add("--devices", type=int, default=1, metavar="N", help="that share a batch (default 1); give --batch-size too")
    add("--spatial", type=int, default=1, metavar="N", help="of them share the height of one image (default 1)")
    add("--intermediates", action="store_true", help="write what every stage of a cascade made")
    add("--colour-fix", choices=tuple(FIXES), help="take the photograph's colours over into the result")
    add("--verbose", action="store_true", help="say how long was spent compiling")
    add("--size", default="64x64", metavar="HxW", help="of the low-res latents of --benchmark (default 64x64)")
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--resume", action="store_true", help="leave out photographs whose picture with these settings is there"
    )
    either.add_argument(
        "--compare",
        action="store_true",
        help="take the input as the original: shrink it by the factor, boost that, and set low-res | bilinear | "
        "boosted | original side by side, with PSNR and SSIM",
    )
    return parser


def _devices(count: int, spatial: int) -> list[jax.Device]:
    there = jax.devices()
    if not 1 <= count <= len(there):
        raise InputError(
            f"--devices {count}: there are {len(there)} ({there[0].device_kind}); expected 1 to {len(there)}"
        )
    if spatial < 1 or count % spatial:
        raise InputError(f"--spatial {spatial} does not divide --devices {count}")
    return there[:count]


def _benchmark(booster: Booster, arguments: argparse.Namespace) -> None:
    match = re.fullmatch(r"(\d+)x(\d+)", arguments.size)
    if match is None or arguments.benchmark < 1:
        raise InputError(f"--benchmark {arguments.benchmark} --size {arguments.size}: expected N ≥ 1 and HxW")
    shape = (arguments.batch_size, int(match[1]), int(match[2]), booster.first_stage.channels)
    latents = np.random.default_rng(arguments.seed).standard_normal(shape, np.float32)
    options = {"steps": arguments.steps, "method": arguments.method, "noise_step": arguments.noise_step}
    boosted = booster.boost(latents, **options)
    for name, act in (
        ("boost", lambda: booster.boost(latents, **options)),
        ("decode", lambda: booster.decode(boosted)),
    ):
        print(f"{name}: {seconds_an_image(act, arguments.benchmark, len(latents)):.4f} s/image")


if __name__ == "__main__":
    run(main)
