"""Boost photographs, latents, or the latents that a diffusion model makes of a prompt.

    python -m fmboost_jax.sample --input photo.jpg
    python -m fmboost_jax.sample --booster BUNDLE --input a.png b.png PHOTOS --out boosted
    python -m fmboost_jax.sample --booster BUNDLE --input PHOTOS --steps 20 --method midpoint --resume --out boosted
    python -m fmboost_jax.sample --booster BUNDLE --input latents.npz --batch-size 8 --out boosted
    python -m fmboost_jax.sample --booster BUNDLE --input PHOTOS --compare --out boosted
    python -m fmboost_jax.sample --booster BUNDLE --prompt "a cat" --base FOLDER_OR_ID --base-steps 4 --out boosted
    python -m fmboost_jax.sample --booster BUNDLE --prompt "a cat" --base FOLDER_OR_ID --base-backend torch
    python -m fmboost_jax.sample --booster BUNDLE --prompt "a cat" --base FOLDER_OR_ID --lora F --scheduler LCMScheduler
    python -m fmboost_jax.sample --booster FIRST SECOND --input latents.npz --intermediates --out cascade
    python -m fmboost_jax.sample --booster BUNDLE --input PHOTOS --devices 8 --spatial 2 --batch-size 4 --out boosted
    python -m fmboost_jax.sample --booster BUNDLE --benchmark 10 --size 64x64

Each result is a PNG whose text chunk `fmboost` holds the settings that made it; the same seed gives the same bytes. Its
colours are 8-bit sRGB without EXIF; --keep-metadata keeps the photograph's. Only files that this command wrote with
these settings are overwritten. The alpha channel is resized, and the colours below it are boosted on white. The exit
code is 2 if any input was not boosted.
"""

import argparse
import re
from typing import Any

import jax
import numpy as np

from fmboost_jax.assets import DEFAULT_BOOSTER
from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.diffusers import BACKEND_HELP
from fmboost_jax.boosting.folder import boost_folder, boost_latents_into, boost_prompts, print_report
from fmboost_jax.boosting.latents_file import is_latents_file, read_latents
from fmboost_jax.configuration import add_import_option
from fmboost_jax.errors import InputError, run
from fmboost_jax.files import local_path, refuse_addresses
from fmboost_jax.flow.sde import LAST_STEPS, StochasticSolver
from fmboost_jax.flow.solvers import GRIDS, METHODS, Solver
from fmboost_jax.images.colour import FIXES, NO_FIX
from fmboost_jax.registry import import_extensions
from fmboost_jax.runtime.timing import CompileClock, seconds_an_image


def main(argv: list[str] | None = None) -> None:
    """The command."""
    arguments = _parser().parse_args(argv)
    refuse_addresses(vars(arguments))
    import_extensions(arguments.extensions)
    if arguments.batch_size < 1:
        raise InputError(f"--batch-size must be 1 or more, found {arguments.batch_size}")
    if arguments.prompt and not arguments.base:
        raise InputError("--prompt needs a base model: --base FOLDER_OR_ID of a diffusers pipeline")
    local_path(arguments.out, "--out")
    if arguments.max_megapixels is not None and not 0 < arguments.max_megapixels < 1e6:
        raise InputError(f"--max-megapixels must be more than 0, found {arguments.max_megapixels}")
    devices = _devices(arguments.devices, arguments.spatial)
    boosters = [
        Booster.load(path, first_stage=arguments.first_stage, devices=devices, spatial=arguments.spatial)
        for path in arguments.checkpoint
    ]
    options = _options(arguments, boosters[0].steps)
    factor = int(np.prod([booster.factor for booster in boosters]))
    if arguments.factor not in (None, factor):
        names = " → ".join(booster.name for booster in boosters)
        raise InputError(f"--factor {arguments.factor}: checkpoint {names} was trained to enlarge ×{factor}")
    if arguments.benchmark is not None:
        _benchmark(boosters[0], arguments.benchmark, arguments.size, arguments.batch_size, options)
        return
    common = {"batch_size": arguments.batch_size, "seed": arguments.seed, **options}
    stages = {"intermediates": arguments.intermediates, "trajectory": arguments.trajectory}
    colour_fix, consistency = (None, 0.0) if arguments.colour_fix == NO_FIX else (arguments.colour_fix, None)
    with CompileClock() as clock:
        if arguments.prompt:
            # Only this way of sampling needs the base models' code.
            from fmboost_jax.generation.base import load_base

            report = boost_prompts(
                boosters,
                arguments.prompt,
                arguments.out,
                base=load_base(
                    arguments.base,
                    boosters,
                    arguments.base_backend,
                    devices=devices,
                    lora=arguments.lora,
                    scheduler=arguments.scheduler,
                ),
                base_steps=arguments.base_steps,
                base_guidance=arguments.guidance,
                consistency=consistency,
                **common,
                **stages,
            )
        elif any(map(is_latents_file, arguments.input)):
            if len(arguments.input) > 1:
                raise InputError("--input takes one file of latents, or photographs and folders")
            latents = read_latents(arguments.input[0], boosters[0].first_stage.spec)
            report = boost_latents_into(boosters, latents, arguments.out, consistency=consistency, **common, **stages)
        else:
            report = boost_folder(
                boosters,
                arguments.input,
                arguments.out,
                colour_fix=colour_fix,
                comparison=arguments.compare,
                resume=arguments.resume,
                tile=arguments.tile,
                keep_metadata=arguments.keep_metadata or arguments.keep_gps,
                keep_place=arguments.keep_gps,
                max_pixels=None if arguments.max_megapixels is None else round(arguments.max_megapixels * 1e6),
                **common,
                **stages,
            )
    print_report(report)
    print(f"images in {arguments.out}")
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
        help="packaged weights (photo-x2, photo-x4, photo-x4-looks, flux2-x2), a bundle's folder or hub id, a run's "
        f"workdir, or one step of its checkpoints; several are a cascade (default: {DEFAULT_BOOSTER})",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--input",
        metavar="PATH",
        nargs="+",
        help="photographs and folders of them; or one file of low-res latents: .npz or .npy, scaled (batch, height, "
        "width, channels), or ComfyUI's .latent",
    )
    what.add_argument("--prompt", action="append", metavar="TEXT", help="for the base model; again for more images")
    what.add_argument("--benchmark", type=int, metavar="N", help="time N boosts and decodes of random latents")
    add("--out", default="boosted", metavar="DIR", help="folder of the PNG files (default: boosted)")
    add("--first-stage", metavar="PATH", help="folder or hub id of the autoencoder (default: the booster's)")
    add("--factor", type=int, help="factor to enlarge by; must be the booster's (default: the booster's)")
    add("--seed", type=int, default=0, help="of the noise and of the base model, 0 to 2^64 − 1 (default: 0)")
    add("--verbose", action="store_true", help="print how long compiling took")
    add("--size", default="64x64", metavar="HxW", help="low-res latents of --benchmark (default: 64x64)")
    add_import_option(parser)
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--resume", action="store_true", help="skip photographs whose result with these settings exists"
    )
    either.add_argument(
        "--compare",
        action="store_true",
        help="shrink the input by the factor, boost that, and write low-res | bilinear | boosted | original side by "
        "side, with PSNR and SSIM",
    )

    add = parser.add_argument_group("integration").add_argument
    add(
        "--steps",
        type=int,
        help="integration steps; time is proportional to them (default: the booster's, 4 or 1; stochastic: 50)",
    )
    add("--method", help=f"ODE method: {', '.join(METHODS)}, or one that --import adds (default: euler)")
    add("--grid", help=f"time grid: {', '.join(GRIDS)}, with settings as in 'shifted(shift=3.0)' (default: uniform)")
    add("--rtol", type=float, help="relative tolerance of an adaptive method (default: 1e-5)")
    add("--atol", type=float, help="absolute tolerance of an adaptive method (default: 1e-6)")
    add("--max-steps", type=int, metavar="N", help="largest number of steps of an adaptive method (default: 1000)")
    add("--noise-step", type=int, metavar="STEP", help="noise augmentation, 0 to 999 (default: as trained)")
    add("--flow-guidance", type=float, metavar="SCALE", help="guidance with a null context (default: none)")
    add("--trajectory", action="store_true", help="also write the images at all points of the time grid")

    add = parser.add_argument_group("stochastic sampling, of boosters whose flow starts from noise").add_argument
    add("--stochastic", choices=("euler", "heun"), metavar="METHOD", help="sample the SDE by euler or heun")
    add("--diffusion", help="form of the diffusion (default: sigma)")
    add("--diffusion-norm", type=float, metavar="NORM", help="scale of the diffusion (default: 1)")
    names = ", ".join(str(name) for name in LAST_STEPS)
    add("--last-step", metavar="NAME", help=f"{names} (default: Mean)")
    add("--last-step-size", type=float, metavar="SIZE", help="length of the last step (default: 0.04)")

    add = parser.add_argument_group("base model, for --prompt").add_argument
    add("--base", metavar="FOLDER_OR_ID", help="a diffusers pipeline")
    add(
        "--base-backend",
        choices=("auto", "jax", "torch"),
        default="auto",
        help=BACKEND_HELP,
    )
    add("--lora", metavar="FILE_OR_ID", nargs="+", default=[], help="LoRA files to merge into it")
    add(
        "--scheduler",
        default="",
        metavar="CLASS",
        help="diffusers scheduler that replaces the pipeline's, such as LCMScheduler for an LCM-LoRA",
    )
    add("--base-steps", type=int, metavar="N", help="steps of the base model (default: its own)")
    add("--guidance", type=float, metavar="SCALE", help="guidance scale of the base model (default: its own)")

    add = parser.add_argument_group("work and results").add_argument
    add(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="latents, prompts or photographs of one size at once (default: 1)",
    )
    add(
        "--tile",
        type=int,
        default=256,
        metavar="N",
        help="side of the tiles of large photographs, in their pixels; 0: the whole photograph (default: 256)",
    )
    add(
        "--keep-metadata",
        action="store_true",
        help="keep the photographs' EXIF (no GPS position), their colour profile, and 16 bits a "
        "channel (default: 8-bit sRGB without EXIF)",
    )
    add("--keep-gps", action="store_true", help="as --keep-metadata, with the GPS position")
    add(
        "--max-megapixels",
        type=float,
        metavar="N",
        help="read photographs of up to N megapixels, for files that you trust (default: 178)",
    )
    add("--devices", type=int, default=1, metavar="N", help="devices that share a batch (default: 1)")
    add("--spatial", type=int, default=1, metavar="N", help="of them share the height of one image (default: 1)")
    add("--intermediates", action="store_true", help="also write the results of every stage of a cascade")
    add(
        "--colour-fix",
        choices=(*FIXES, NO_FIX),
        default="consistency",
        help="consistency: the result of a photograph, shrunk, equals it; adain, wavelet: it has its colours; none. "
        "Latents and prompts: the booster's own share of consistency, or none (default: consistency)",
    )
    return parser


def _options(arguments: argparse.Namespace, steps: int) -> dict[str, Any]:
    """Keyword arguments of `Booster.boost` and `Booster.upscale`; `steps` where a solver needs a default."""
    options: dict[str, Any] = {"noise_step": arguments.noise_step, "guidance": arguments.flow_guidance}
    ode = {name: getattr(arguments, name) for name in ("method", "steps", "grid", "rtol", "atol", "max_steps")}
    sde = {
        "diffusion": arguments.diffusion,
        "norm": arguments.diffusion_norm,
        "last_step": arguments.last_step,
        "last_step_size": arguments.last_step_size,
    }
    if arguments.stochastic is None:
        _refuse_given(sde, "--stochastic")
        if _given({name: value for name, value in ode.items() if name not in ("steps", "method")}):
            return {**options, "solver": Solver(**{"steps": steps, **_given(ode)})}
        # Each stage of a cascade has its own default.
        return {**options, "steps": arguments.steps, "method": arguments.method}
    sde.update(method=arguments.stochastic, steps=ode.pop("steps"))
    _refuse_given(ode, "an ODE, without --stochastic")
    solver = StochasticSolver(**{**_given(sde), **({"last_step": None} if sde["last_step"] == "None" else {})})
    return {**options, "stochastic": solver}


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _refuse_given(values: dict[str, Any], needed: str) -> None:
    if given := _given(values):
        flag = next(iter(given)).replace("_", "-")
        raise InputError(f"--{'diffusion-norm' if flag == 'norm' else flag} needs {needed}")


def _devices(count: int, spatial: int) -> list[Any]:
    there = jax.devices()
    if not 1 <= count <= len(there):
        raise InputError(
            f"--devices {count}: there are {len(there)} ({there[0].device_kind}); expected 1 to {len(there)}"
        )
    if spatial < 1 or count % spatial:
        raise InputError(f"--spatial {spatial} does not divide --devices {count}")
    return there[:count]


def _benchmark(booster: Booster, repeats: int, size: str, batch_size: int, options: dict[str, Any]) -> None:
    match = re.fullmatch(r"(\d+)x(\d+)", size)
    if match is None or repeats < 1:
        raise InputError(f"--benchmark {repeats} --size {size}: expected N ≥ 1 and HxW")
    shape = (batch_size, int(match[1]), int(match[2]), booster.first_stage.channels)
    latents = np.random.default_rng(0).standard_normal(shape, np.float32)
    boosted = booster.boost(latents, **options)
    for name, function in (
        ("boost", lambda: booster.boost(latents, **options)),
        ("decode", lambda: booster.decode(boosted)),
    ):
        print(f"{name}: {seconds_an_image(function, repeats, len(latents)):.4f} s/image")


if __name__ == "__main__":
    run(main)
