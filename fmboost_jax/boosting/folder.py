"""Boosting photographs, latents and prompts into a folder of PNG files."""

import argparse
import dataclasses
import functools
import hashlib
import io
import os
import pathlib
import sys
import zipfile
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.data.sources import FolderPhotos
from fmboost_jax.errors import InputError
from fmboost_jax.images.colour import fix_colour
from fmboost_jax.images.grid import grid
from fmboost_jax.images.photos import UnusablePhoto, load_photo, with_alpha
from fmboost_jax.images.png import read_settings, write_png
from fmboost_jax.metrics.comparison import compare, details


@dataclasses.dataclass(frozen=True)
class Photograph:
    """One that was read, and where its picture is to lie: `target` with a suffix and .png."""

    name: str
    target: str
    pixels: np.ndarray
    alpha: np.ndarray | None
    settings: dict


def boost_photographs(boosters: list[Booster], arguments: argparse.Namespace, settings: dict) -> None:
    photographs = _photographs(arguments.input)
    options = {"steps": arguments.steps, "method": arguments.method, "noise_step": arguments.noise_step}
    enlarge = functools.partial(_stages, boosters, arguments.colour_fix, seed=arguments.seed, **options)
    settings = {**settings, "colour_fix": arguments.colour_fix}
    skipped, scores, done = [], [], 0
    bar = tqdm(total=len(photographs), unit="photo")

    def boost(batch: list[Photograph]) -> None:
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
            photo = load_photo(io.BytesIO(content))
        except (OSError, UnusablePhoto) as error:
            skipped.append(f"{name}: {error}")
            bar.update()
            continue
        for batch in waiting.add(Photograph(name, target, photo.pixels, photo.alpha, told)):
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
        self._waiting: dict[tuple[int, ...], list[Photograph]] = {}

    def add(self, photograph: Photograph) -> Iterator[list[Photograph]]:
        """The batch that is full now; or the largest of those that wait where too many do."""
        self._waiting.setdefault(photograph.pixels.shape, []).append(photograph)
        largest = max(self._waiting, key=lambda shape: len(self._waiting[shape]))
        held = sum(map(len, self._waiting.values()))
        if len(self._waiting[largest]) == self._batch_size or held >= 4 * self._batch_size:
            yield self._waiting.pop(largest)

    def rest(self) -> Iterator[list[Photograph]]:
        """Those that still wait, by size."""
        yield from self._waiting.values()


def _write_comparison(photograph: Photograph, enlarge, factor: int):
    pictures, values = compare(lambda low: enlarge(low)[-1], factor, photograph.pixels)
    write_png(f"{photograph.target}.png", pictures["boosted"], photograph.settings)
    rows = [list(pictures.values()), details(list(pictures.values()))]
    write_png(f"{photograph.target}_comparison.png", grid(rows, list(pictures)), photograph.settings)
    return values


def _write_stages(batch: list[Photograph], stages: list[np.ndarray], arguments: argparse.Namespace) -> None:
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


def read_latents(path: str) -> np.ndarray:
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


def write_latents(boosters: list[Booster], latents, arguments: argparse.Namespace, settings: list[dict]) -> None:
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


def boost_prompts(boosters: list[Booster], arguments: argparse.Namespace, settings: dict) -> None:
    from fmboost_jax.boosting.diffusers import check_pipeline, load_pipeline, prompt_latents

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
    write_latents(boosters, np.concatenate(latents), arguments, texts)
