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
import dataclasses
import functools
import hashlib
import io
import os
import pathlib
import re
import sys
import zipfile
from collections.abc import Iterator

import jax
import numpy as np
from tqdm import tqdm

from fmboost_jax.assets import DEFAULT_BOOSTER
from fmboost_jax.booster import Booster
from fmboost_jax.colour import FIXES, fix_colour
from fmboost_jax.comparison import compare, details
from fmboost_jax.data.images import UnusablePhoto, load_photo
from fmboost_jax.data.sources import FolderPhotos
from fmboost_jax.errors import InputError, run
from fmboost_jax.flow.solvers import METHODS
from fmboost_jax.pictures import grid, read_settings, write_png
from fmboost_jax.timing import CompileClock, seconds_an_image
from fmboost_jax.transparency import load_alpha, with_alpha


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
        "noise_step": boosters[0].source.noise_step if arguments.noise_step is None else arguments.noise_step,
        "start": boosters[0].source.start,
    }
    if arguments.benchmark:
        _benchmark(boosters[0], arguments)
        return
    os.makedirs(arguments.out, exist_ok=True)
    with CompileClock() as clock:
        if arguments.prompt:
            _boost_prompts(boosters, arguments, settings)
        elif arguments.input.endswith(".npz"):
            _write_latents(boosters, _read_latents(arguments.input), arguments, [settings])
        else:
            _boost_photographs(boosters, arguments, settings)
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
    add("--method", default="euler", choices=METHODS, help="ODE method (default euler)")
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


def _read_latents(path: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as file:
            names = list(file)
            if len(names) != 1:
                raise InputError(f"{path} must hold one array of latents, found {', '.join(names) or 'none'}")
            return file[names[0]]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"latents {path} cannot be read as .npz: {error}") from error


def _write_latents(boosters: list[Booster], latents, arguments: argparse.Namespace, settings: list[dict]) -> None:
    """Boost and decode latents; image i has the i-th settings, or the last."""
    options = {"steps": arguments.steps, "method": arguments.method, "noise_step": arguments.noise_step}
    bar = tqdm(total=len(latents), unit="image")
    for first in range(0, len(latents), arguments.batch_size):
        part = latents[first : first + arguments.batch_size]
        seed = arguments.seed + first
        stages = boosters[0].cascade(part, boosters[1:], intermediates=True, seed=seed, **options)
        for number, stage in enumerate(stages, 1):
            if number < len(stages) and not arguments.intermediates:
                continue
            suffix = f"_stage{number}" if number < len(stages) else ""
            for index, image in enumerate(boosters[0].decode(stage), first):
                told = {**settings[min(index, len(settings) - 1)], "seed": arguments.seed + index}
                write_png(os.path.join(arguments.out, f"{index:05d}{suffix}.png"), image, told)
        bar.update(len(part))
    bar.close()


def _boost_prompts(boosters: list[Booster], arguments: argparse.Namespace, settings: dict) -> None:
    from fmboost_jax.interop.diffusers_pipelines import check_pipeline, load_pipeline, prompt_latents

    pipe = load_pipeline(arguments.base)
    check_pipeline(pipe, boosters[0])
    guidance = {} if arguments.guidance is None else {"guidance_scale": arguments.guidance}
    prompts, latents = arguments.prompt, []
    for first in range(0, len(prompts), arguments.batch_size):
        part = prompts[first : first + arguments.batch_size]
        made = prompt_latents(pipe, part, steps=arguments.base_steps, seed=arguments.seed + first, **guidance)
        latents.append(np.asarray(made))
    told = {"base": os.path.basename(os.path.normpath(arguments.base)), "base_steps": arguments.base_steps, **guidance}
    texts = [{**settings, **told, "prompt": prompt} for prompt in prompts]
    _write_latents(boosters, np.concatenate(latents), arguments, texts)


@dataclasses.dataclass(frozen=True)
class _Photograph:
    """One that was read, and where its picture is to lie: `target` with a suffix and .png."""

    name: str
    target: str
    pixels: np.ndarray
    alpha: np.ndarray | None
    settings: dict


def _boost_photographs(boosters: list[Booster], arguments: argparse.Namespace, settings: dict) -> None:
    photographs = _photographs(arguments.input)
    options = {"steps": arguments.steps, "method": arguments.method, "noise_step": arguments.noise_step}
    enlarge = functools.partial(_stages, boosters, arguments.colour_fix, seed=arguments.seed, **options)
    settings = {**settings, "colour_fix": arguments.colour_fix}
    skipped, scores, done = [], [], 0
    bar = tqdm(total=len(photographs), unit="photo")

    def boost(batch: list[_Photograph]) -> None:
        if arguments.compare:
            for photograph in batch:
                scores.append(_write_comparison(photograph, enlarge, settings["factor"]))
                bar.write(f"{photograph.name}: {_score(scores[-1])}")
        else:
            _write_stages(batch, enlarge(np.stack([photograph.pixels for photograph in batch])), arguments)
        bar.update(len(batch))

    waiting = _OfOneSize(arguments.batch_size)
    for name, path in photographs.items():
        try:
            content = pathlib.Path(path).read_bytes()
            told = {**settings, "input": hashlib.sha256(content).hexdigest()}
            target = os.path.join(arguments.out, pathlib.PurePath(name).with_suffix("").as_posix())
            if arguments.resume and read_settings(f"{target}.png") == told:
                done += 1
                bar.update()
                continue
            pixels = np.asarray(load_photo(io.BytesIO(content)))
            alpha = load_alpha(io.BytesIO(content))
        except (OSError, UnusablePhoto) as error:
            skipped.append(f"{name}: {error}")
            bar.update()
            continue
        for batch in waiting.add(_Photograph(name, target, pixels, alpha, told)):
            boost(batch)
    for batch in waiting.rest():
        boost(batch)
    bar.close()
    if scores:
        print(f"mean of {len(scores)}: {_score(np.mean(scores, axis=0))}")
    if done:
        print(f"{done} of {len(photographs)} were there already")
    if skipped:
        print(f"{len(skipped)} of {len(photographs)} skipped:\n  " + "\n  ".join(skipped), file=sys.stderr)
        if len(skipped) == len(photographs):
            raise InputError(f"none of the photographs in {arguments.input} could be read")


class _OfOneSize:
    """Photographs that wait for others of their size, so that a batch is one array; few wait at any time."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._waiting: dict[tuple[int, ...], list[_Photograph]] = {}

    def add(self, photograph: _Photograph) -> Iterator[list[_Photograph]]:
        """The batch that is full now; or the largest of those that wait where too many do."""
        self._waiting.setdefault(photograph.pixels.shape, []).append(photograph)
        largest = max(self._waiting, key=lambda shape: len(self._waiting[shape]))
        held = sum(map(len, self._waiting.values()))
        if len(self._waiting[largest]) == self._batch_size or held >= 4 * self._batch_size:
            yield self._waiting.pop(largest)

    def rest(self) -> Iterator[list[_Photograph]]:
        """Those that still wait, by size."""
        yield from self._waiting.values()


def _write_comparison(photograph: _Photograph, enlarge, factor: int):
    pictures, values = compare(lambda low: enlarge(low)[-1], factor, photograph.pixels)
    write_png(f"{photograph.target}.png", pictures["boosted"], photograph.settings)
    rows = [list(pictures.values()), details(list(pictures.values()))]
    write_png(f"{photograph.target}_comparison.png", grid(rows, list(pictures)), photograph.settings)
    return values


def _write_stages(batch: list[_Photograph], stages: list[np.ndarray], arguments: argparse.Namespace) -> None:
    for index, photograph in enumerate(batch):
        if arguments.intermediates:
            for number, images in enumerate(stages[:-1], 1):
                write_png(f"{photograph.target}_stage{number}.png", images[index], photograph.settings)
        image, alpha = stages[-1][index], photograph.alpha
        image = image if alpha is None else with_alpha(image, alpha)
        write_png(f"{photograph.target}.png", image, photograph.settings)


def _stages(
    boosters: list[Booster], colour_fix: str | None, photographs: np.ndarray, *, seed: int, **options
) -> list[np.ndarray]:
    """What each booster makes of the images of the one before it; each photograph with the same seed, alone or not."""
    images = []
    for booster in boosters:
        before = images[-1] if images else photographs
        images.append(booster.upscale(before, seed=[seed] * len(before), **options))
        if colour_fix:
            images[-1] = fix_colour(images[-1], before, colour_fix)
    return images


def _score(values) -> str:
    bilinear, boosted, ssim_bilinear, ssim_boosted = values
    return (
        f"PSNR bilinear {bilinear:.2f} dB, boosted {boosted:.2f} dB; "
        f"SSIM bilinear {ssim_bilinear:.4f}, boosted {ssim_boosted:.4f}"
    )


def _photographs(path: str) -> dict[str, str]:
    """Names and paths of what `--input` names."""
    if os.path.isdir(path):
        return {name: os.path.join(path, name) for name in FolderPhotos(path).names}
    if not os.path.isfile(path):
        raise InputError(f"--input {path}: no such file or folder; expected a photograph, a folder of them, or an .npz")
    return {os.path.basename(path): path}


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
