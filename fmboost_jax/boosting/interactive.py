"""One photograph or prompt with the settings of an interactive page: the result and the facts that reproduce it."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.diffusers import BaseModel
from fmboost_jax.errors import InputError
from fmboost_jax.images.photos import UnusablePhoto, load_photo, photo_size, with_alpha
from fmboost_jax.images.resize import resize_pixels

Report = Callable[[float, str], None]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of one boost.

    Attributes:
        passes: how often the booster is applied: 2 passes of ×2 enlarge ×4.
        steps: Euler steps of each pass, 1 or more.
        seed: of the noise, 0 or more.
        noise_step: diffusion step of the noise augmentation, 0 to 999; None: as trained.
        colour_fix: a key of `FIXES`; None: no correction. Default: "consistency", see `Booster.upscale`.
    """

    passes: int = 1
    steps: int = 4
    seed: int = 0
    noise_step: int | None = None
    colour_fix: str | None = "consistency"


@dataclasses.dataclass(frozen=True)
class Boosted:
    """A result.

    Attributes:
        before: the input, enlarged bicubically to the result's size.
        after: the result, with the input's alpha channel where it has one.
        settings: the facts that reproduce it, for the PNG's metadata.
    """

    before: UInt8[np.ndarray, "h w 3"]
    after: UInt8[np.ndarray, "h w c"]
    settings: dict[str, Any]


def boost_photograph(
    booster: Booster, name: str, path: str | os.PathLike, settings: Settings, *, max_side: int, report: Report
) -> Boosted:
    """Enlarge a photograph.

    Args:
        booster: the booster that enlarges it.
        name: the booster's name, for the metadata.
        path: the photograph's file.
        settings: settings of the boost.
        max_side: longest side allowed, in pixels.
        report: called with the finished fraction and the name of the next stage.

    Raises:
        InputError: not a photograph, one that is too large, or settings that the booster refuses.
    """
    size = photo_size(path)
    if size is not None and max(size) > max_side:
        raise InputError(
            f"{size[0]}×{size[1]} pixels: the longest side may have {max_side}; shrink the photograph first"
        )
    try:
        photo = load_photo(path)
    except UnusablePhoto as error:
        raise InputError(f"this file cannot be read as a photograph: {error}") from error
    small = large = photo.pixels
    for number in range(settings.passes):
        height, width = (side * booster.factor for side in large.shape[:2])
        report(0.1 + 0.8 * number / settings.passes, f"Boosting to {width}×{height}")
        options = {"steps": settings.steps, "seed": settings.seed, "noise_step": settings.noise_step}
        large = np.asarray(booster.upscale(large[None], colour_fix=settings.colour_fix, **options))[0]
    content = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    facts = {**_facts(booster, name, settings), "input": {"name": os.path.basename(path), "sha256": content}}
    after = large if photo.alpha is None else with_alpha(large, photo.alpha)
    return Boosted(resize_pixels(small, large.shape[:2]), after, facts)


def boost_prompt(
    booster: Booster, name: str, base: BaseModel, prompt: str, settings: Settings, *, report: Report
) -> Boosted:
    """Run a base model to its latents and boost them; `Settings.passes` is not used.

    With a colour fix, the result has the booster's own consistency, whatever the fix; see `Booster.decode_boosted`.

    Raises:
        InputError: an empty prompt, or settings that the base model or the booster refuses.
    """
    if not prompt.strip():
        raise InputError("type a prompt first")
    report(0.1, "Running the base model")
    latents = base.latents([prompt], seed=settings.seed)
    report(0.6, "Boosting its latents")
    options = {"steps": settings.steps, "seed": settings.seed, "noise_step": settings.noise_step}
    consistency = 0.0 if settings.colour_fix is None else booster.consistency
    large = booster.decode_boosted(booster.boost(latents, **options), latents, consistency)[0]
    small = booster.decode(latents)[0]
    described = {"prompt": prompt, "base": base.name, "base_backend": base.backend}
    facts = {**_facts(booster, name, dataclasses.replace(settings, passes=1, colour_fix=None)), **described}
    if consistency:
        facts["consistency"] = consistency
    return Boosted(resize_pixels(small, large.shape[:2]), large, facts)


def _facts(booster: Booster, name: str, settings: Settings) -> dict[str, Any]:
    coupling = booster.coupling
    facts = {
        "checkpoint": " → ".join([name] * settings.passes),
        "factor": booster.factor**settings.passes,
        "steps": settings.steps,
        "method": "euler",
        "seed": settings.seed,
        "noise_step": coupling.noise_step if settings.noise_step is None else settings.noise_step,
        "start": coupling.start,
    }
    return facts if settings.colour_fix is None else {**facts, "colour_fix": settings.colour_fix}
