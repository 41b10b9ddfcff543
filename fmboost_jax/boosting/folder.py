"""Boosting photographs, latents and prompts into a folder of PNG files."""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt
from tqdm import tqdm

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.diffusers import BaseModel, TorchBase, base_name, check_pipeline, load_pipeline
from fmboost_jax.boosting.inputs import SEEDS, check_seeds
from fmboost_jax.boosting.outputs import Input, check_outputs, find_inputs, output_folder
from fmboost_jax.errors import NAMED_AT_MOST, InputError, one_line, printable, some
from fmboost_jax.flow.sde import StochasticSolver
from fmboost_jax.images.grid import grid
from fmboost_jax.images.photos import Photo, UnusablePhoto, load_photo, with_alpha
from fmboost_jax.images.png import read_settings, write_png
from fmboost_jax.metrics.comparison import compare, details

COMPARISON = "_comparison"


@dataclasses.dataclass(frozen=True)
class Report:
    """Results of a folder run.

    Attributes:
        written: images that were boosted.
        present: images that an earlier run with the same settings and input had written (`resume`).
        problems: a line for each input that was not boosted.
        scores: PSNR of bilinear and boosted, then their SSIM, the mean over all images (`comparison`).
    """

    written: int
    present: int
    problems: list[str]
    scores: Float[np.ndarray, "4"] | None = None


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """A decoded photograph and the settings written into its result."""

    source: Input
    photo: Photo
    settings: dict


def boost_folder(
    boosters: Booster | Sequence[Booster],
    inputs: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    batch_size: int = 1,
    seed: int = 0,
    colour_fix: str | None = "consistency",
    comparison: bool = False,
    intermediates: bool = False,
    trajectory: bool = False,
    resume: bool = False,
    tile: int = 256,
    keep_metadata: bool = False,
    keep_place: bool = False,
    max_pixels: int | None = None,
    **options: Any,
) -> Report:
    """Boost photographs into PNG files of the same names, with the settings in its text chunk `fmboost`.

    Only files that this function wrote with the same settings are overwritten. Unreadable inputs are reported and
    skipped.

    Args:
        boosters: one, or the stages of a cascade.
        inputs: files and folders, see `find_inputs`.
        out: folder of the results; made if needed.
        batch_size: photographs of one size at once.
        seed: seed of every photograph's noise.
        colour_fix: see `Booster.upscale`.
        comparison: shrink each photograph by the factor, boost that, and write `NAME_comparison.png`: low-res,
            bilinear, boosted and original side by side.
        intermediates: also write `NAME_stage1.png` … of a cascade.
        trajectory: also write `NAME_t0.png` …, the images at the points of the time grid; of one booster.
        resume: skip photographs whose result with these settings exists.
        tile: side of the tiles of large photographs, 0 for the whole photograph; see `Booster.upscale`.
        keep_metadata: keep the photograph's EXIF without its GPS position, its ICC profile, and 16 bits a channel where
            it has them; see `load_photo`.
        keep_place: keep the GPS position, too.
        max_pixels: of a photograph; see `load_photo`.
        options: of `Booster.upscale`, such as steps and method.

    Raises:
        InputError: no photograph can be read, an output that would overwrite another file, or a file that cannot be
            written; as for `Booster.upscale`.
    """
    boosters = [boosters] if isinstance(boosters, Booster) else list(boosters)
    paths = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)
    settings = {**run_settings(boosters, seed=seed, **options), "colour_fix": colour_fix}
    settings["tile"] = tile
    if comparison:
        settings["comparison"] = True
    if keep_metadata:
        settings["keep_metadata"] = "with place" if keep_place else "without place"
    if (keep_place and not keep_metadata) or (keep_metadata and comparison):
        raise InputError("keep_place needs keep_metadata, which a comparison does not support")
    extras = [COMPARISON] if comparison else []
    extras += [f"_stage{number}" for number in range(1, len(boosters))] if intermediates else []
    if trajectory:
        points = _trajectory_points(boosters, comparison, options)
        extras += [f"_t{point}" for point in range(points)]
    out = output_folder(out)
    photographs, problems = find_inputs(paths, out, extras)
    if not photographs:
        reasons = f": {'; '.join(problems[:3])}" if problems else ""
        raise InputError(f"no photographs in {', '.join(printable(os.fspath(path)) for path in paths)}{reasons}")
    outputs = [f"{photograph.target}{extra}.png" for photograph in photographs for extra in ("", *extras)]
    check_outputs(outputs, [photograph.path for photograph in photographs], settings)

    def enlarge(images: UInt[np.ndarray, "b h w 3"]) -> list[UInt[np.ndarray, "b _ _ 3"]]:
        return _stages(boosters, colour_fix, images, seed=seed, tile=tile, **options)

    reading = {"keep_metadata": keep_metadata, "keep_place": keep_place, "max_pixels": max_pixels}
    scores, present = [], 0
    with tqdm(total=len(photographs), unit="photo") as bar:

        def finish(batch: list[_Loaded]) -> None:
            if comparison:
                for loaded in batch:
                    try:
                        scores.append(_write_comparison(loaded, enlarge, settings["factor"]))
                    except UnusablePhoto as error:
                        problems.append(f"{loaded.source.label}: {error}")
                        continue
                    bar.write(f"{loaded.source.label}: {score_line(scores[-1])}")
            else:
                images = np.stack([loaded.photo.pixels for loaded in batch])
                if trajectory:
                    seeds = [seed] * len(batch)
                    stages = boosters[0].upscale(
                        images, seed=seeds, colour_fix=colour_fix, return_trajectory=True, **options
                    )
                else:
                    stages = enlarge(images)
                _write_stages(batch, stages, extras)
            bar.update(len(batch))

        waiting = _SizeBatches(batch_size)
        for photograph in photographs:
            try:
                content = pathlib.Path(photograph.path).read_bytes()
                described = {**settings, "input": hashlib.sha256(content).hexdigest()}
                if resume and all(
                    _as_json(described) == read_settings(f"{photograph.target}{extra}.png") for extra in ("", *extras)
                ):
                    present += 1
                    bar.update()
                    continue
                photo = load_photo(io.BytesIO(content), **reading)
                loaded = _Loaded(photograph, photo, described)
            except (OSError, UnusablePhoto) as error:
                problems.append(f"{photograph.label}: {_reason(error)}")
                bar.update()
                continue
            for batch in waiting.add(loaded):
                finish(batch)
        for batch in waiting.rest():
            finish(batch)
    written = len(photographs) - present - len(problems)
    return Report(max(written, 0), present, problems, np.mean(scores, axis=0) if scores else None)


def boost_latents_into(
    boosters: Booster | Sequence[Booster],
    latents: Float[np.ndarray, "b h w c"],
    out: str | os.PathLike,
    *,
    batch_size: int = 1,
    seed: int = 0,
    consistency: float | None = None,
    intermediates: bool = False,
    trajectory: bool = False,
    described: Sequence[dict] = ({},),
    **options: Any,
) -> Report:
    """Boost and decode latents into `00000.png`, `00001.png`, …

    Args:
        boosters: one, or the stages of a cascade.
        latents: scaled low-res latents.
        out: folder of the results; made if needed.
        batch_size: latents at once.
        seed: image i draws its noise from seed + i.
        consistency: see `Booster.decode_boosted`; the points of a trajectory are decoded alone.
        intermediates: also write `00000_stage1.png` … of a cascade.
        trajectory: also write `00000_t0.png` …, the images at the points of the time grid; of one booster.
        described: further settings to write into the files; image i has the i-th ones, or the last.
        options: of `Booster.boost`, such as steps and method.

    Raises:
        InputError: an output that would overwrite another file, or a file that cannot be written; as for
            `Booster.boost`.
    """
    boosters = [boosters] if isinstance(boosters, Booster) else list(boosters)
    out = output_folder(out)
    share = boosters[0].consistency if consistency is None else consistency
    settings = run_settings(boosters, seed=seed, **options)
    if share and not trajectory:
        settings["consistency"] = share
    digest = hashlib.sha256(np.ascontiguousarray(latents).tobytes()).hexdigest()
    each = [
        {**settings, **described[min(index, len(described) - 1)], "seed": (seed + index) % SEEDS, "input": digest}
        for index in range(len(latents))
    ]
    extras = [f"_stage{number}" for number in range(1, len(boosters))] if intermediates else []
    if trajectory:
        extras = [f"_t{point}" for point in range(_trajectory_points(boosters, False, options))]
    for index, one in enumerate(each):
        check_outputs([os.path.join(out, f"{index:05d}{extra}.png") for extra in ("", *extras)], [], one)
    with tqdm(total=len(latents), unit="image") as bar:
        for first in range(0, len(latents), batch_size):
            part = latents[first : first + batch_size]
            seeds = [(seed + first + index) % SEEDS for index in range(len(part))]
            if trajectory:
                stages = list(boosters[0].boost(part, seed=seeds, return_trajectory=True, **options))
            else:
                stages = boosters[0].cascade(part, boosters[1:], intermediates=True, seed=seeds, **options)
            for extra, stage in zip((*extras, ""), stages if extras else stages[-1:], strict=True):
                for index, image in enumerate(
                    boosters[0].decode_boosted(stage, part, settings.get("consistency", 0.0)), first
                ):
                    _write(os.path.join(out, f"{index:05d}{extra}.png"), image, each[index])
            bar.update(len(part))
    return Report(len(latents), 0, [])


def boost_prompts(
    boosters: Booster | Sequence[Booster],
    prompts: Sequence[str],
    out: str | os.PathLike,
    *,
    base: str | BaseModel,
    base_steps: int | None = None,
    base_guidance: float | None = None,
    batch_size: int = 1,
    seed: int = 0,
    **options: Any,
) -> Report:
    """Sample a diffusion model's latents of prompts and boost them into `00000.png`, `00001.png`, …

    Args:
        boosters: one, or the stages of a cascade.
        prompts: one an image.
        out: folder of the results; made if needed.
        base: folder or hub id of a diffusers pipeline, which then runs in PyTorch; or a loaded base model, such as a
            `Generator`.
        base_steps: the pipeline's steps; default: its own.
        base_guidance: the pipeline's guidance scale; default: its own.
        batch_size: prompts at once.
        seed: of the pipeline and of the boost; image i takes seed + i.
        options: see `boost_latents_into`.

    Raises:
        InputError: see `load_pipeline`, `check_pipeline` and `boost_latents_into`.
    """
    boosters = [boosters] if isinstance(boosters, Booster) else list(boosters)
    out = output_folder(out)
    if isinstance(base, str):
        pipe = load_pipeline(base)
        check_pipeline(pipe, boosters[0])
        base = TorchBase(pipe, base_name(base))
    latents = base.latents(prompts, steps=base_steps, guidance=base_guidance, seed=seed, batch_size=batch_size)
    guidance = {} if base_guidance is None else {"guidance_scale": base_guidance}
    described = {"base": base.name, "base_backend": base.backend, "base_steps": base_steps, **guidance}
    texts = [{**described, "prompt": prompt} for prompt in prompts]
    return boost_latents_into(
        boosters,
        np.asarray(latents),
        out,
        batch_size=batch_size,
        seed=seed,
        described=texts,
        **options,
    )


def run_settings(boosters: Sequence[Booster], *, seed: int, **options: Any) -> dict:
    """Describe the settings that determine the pixels of a run, for its files' metadata.

    Args:
        boosters: identified by the content of their weights.
        seed: of the run.
        options: of `Booster.boost`.
    """
    coupling = boosters[0].coupling_with(options.get("noise_step"), options.get("upsampling"))
    given = options.get("solver"), options.get("steps"), options.get("method")
    solver, *later = (dataclasses.asdict(booster.solver_with(*given)) for booster in boosters)
    settings = {
        "checkpoint": " → ".join(booster.name for booster in boosters),
        "weights": " → ".join(booster.fingerprint for booster in boosters),
        "factor": int(np.prod([booster.factor for booster in boosters])),
        "seed": check_seeds(seed, 1)[0],
        **solver,
        **dataclasses.asdict(coupling),
    }
    if any(stage != solver for stage in later):
        settings["steps"] = " → ".join(str(stage["steps"]) for stage in (solver, *later))
    for name in ("stochastic", "guidance"):
        if options.get(name) is not None:
            value = options[name]
            settings[name] = dataclasses.asdict(value) if isinstance(value, StochasticSolver) else value
    return _as_json(settings)


def score_line(scores: Sequence[float] | Float[np.ndarray, "4"]) -> str:
    """PSNR and SSIM in one line."""
    bilinear, boosted, ssim_bilinear, ssim_boosted = scores
    return (
        f"PSNR bilinear {bilinear:.2f} dB, boosted {boosted:.2f} dB; "
        f"SSIM bilinear {ssim_bilinear:.4f}, boosted {ssim_boosted:.4f}"
    )


def print_report(report: Report) -> None:
    """Print a report.

    Raises:
        InputError: some inputs were not boosted; the message names them.
    """
    if report.scores is not None:
        print(f"mean of {report.written}: {score_line(report.scores)}")
    total = report.written + report.present + len(report.problems)
    if report.present:
        print(f"{report.present} of {total} were there already")
    if report.problems:
        if len(report.problems) > NAMED_AT_MOST:
            print("not boosted:\n  " + "\n  ".join(report.problems), file=sys.stderr)
        raise InputError(f"{len(report.problems)} of {total} inputs were not boosted: {some(report.problems)}")


class _SizeBatches:
    """Collects photographs of one size and depth into batches; bounds how many wait at any time."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._waiting: dict[tuple[tuple[int, int], bool], list[_Loaded]] = {}

    def add(self, loaded: _Loaded) -> Iterator[list[_Loaded]]:
        """Return a full batch; or the largest waiting one where too many photographs wait."""
        kind = loaded.photo.rgb.size, loaded.photo.deep is not None
        self._waiting.setdefault(kind, []).append(loaded)
        largest = max(self._waiting, key=lambda kind: len(self._waiting[kind]))
        held = sum(map(len, self._waiting.values()))
        if len(self._waiting[largest]) == self._batch_size or held >= 4 * self._batch_size:
            yield self._waiting.pop(largest)

    def rest(self) -> Iterator[list[_Loaded]]:
        """Return the remaining photographs, by size."""
        yield from self._waiting.values()


def _write_comparison(loaded: _Loaded, enlarge: Callable, factor: int) -> list[float]:
    if min(loaded.photo.rgb.size) < 4 * factor:
        raise UnusablePhoto(f"a side below {4 * factor} pixels is too small to compare at ×{factor}")
    images, values = compare(lambda low: enlarge(low)[-1], factor, loaded.photo.pixels)
    target = loaded.source.target
    _write(f"{target}.png", images["boosted"], loaded.settings)
    rows = [list(images.values()), details(list(images.values()))]
    _write(f"{target}{COMPARISON}.png", grid(rows, list(images)), loaded.settings)
    return values


def _trajectory_points(boosters: Sequence[Booster], comparison: bool, options: dict[str, Any]) -> int:
    """Points of the time grid before the last."""
    if len(boosters) > 1 or comparison or options.get("stochastic") is not None:
        raise InputError("a trajectory is that of one booster, without comparison, of the ODE")
    return boosters[0].solver_with(options.get("solver"), options.get("steps"), options.get("method")).steps


def _write_stages(batch: list[_Loaded], stages: list[np.ndarray], extras: Sequence[str]) -> None:
    """Write the last stage of each photograph, and the earlier ones under the extra suffixes."""
    for index, loaded in enumerate(batch):
        target, alpha = loaded.source.target, loaded.photo.alpha
        kept = {"profile": loaded.photo.profile, "exif": loaded.photo.exif}
        for extra, images in zip(extras, stages[:-1], strict=False):
            _write(f"{target}{extra}.png", images[index], loaded.settings, **kept)
        image = stages[-1][index]
        _write(f"{target}.png", image if alpha is None else with_alpha(image, alpha), loaded.settings, **kept)


def _write(path: str, image: UInt[np.ndarray, "h w c"], settings: dict, **kept: bytes | None) -> None:
    try:
        write_png(path, image, settings, **kept)
    except OSError as error:
        raise InputError(f"{printable(path)} cannot be written: {_reason(error)}") from error


def _stages(
    boosters: Sequence[Booster], colour_fix: str | None, images: np.ndarray, *, seed: int, **options: Any
) -> list[np.ndarray]:
    """The result of every stage of a cascade; each image with the same seed, in any batch."""
    results = []
    for booster in boosters:
        before = results[-1] if results else images
        # Shown for a photograph that takes more than a second.
        with tqdm(unit="tile", leave=False, delay=1) as bar:

            def report(done: int, total: int, bar=bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            seeds = [seed] * len(before)
            results.append(booster.upscale(before, seed=seeds, colour_fix=colour_fix, progress=report, **options))
    return results


def _as_json(settings: dict) -> dict:
    return json.loads(json.dumps(settings))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or one_line(error)
