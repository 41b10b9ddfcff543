"""What is evaluated: images of a folder, photographs made small and boosted, or boosted prompts."""

from collections.abc import Callable
from typing import Any, NamedTuple, runtime_checkable
from typing import Protocol as Interface

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.errors import InputError
from fmboost_jax.evaluation.degradations import FILTERS, degrade
from fmboost_jax.evaluation.image_set import ImageSet
from fmboost_jax.evaluation.protocol import Protocol
from fmboost_jax.images.photos import UnusablePhoto
from fmboost_jax.parallel.batching import map_batches
from fmboost_jax.runtime.timing import CompileClock

Picture = UInt8[np.ndarray, "_ _ 3"]


class Batch(NamedTuple):
    """Images to measure.

    Attributes:
        images: what is evaluated.
        originals: what to compare with, or None.
        seconds: spent making the images, without compiling; 0 where nothing was made.
    """

    images: list[Picture]
    originals: list[Picture] | None
    seconds: float


@runtime_checkable
class ImageSource(Interface):
    """Something to evaluate, image by image.

    Attributes:
        names: of the images.
    """

    names: list[str]

    def load(self, name: str) -> Any:
        """What can be done in a thread ahead of `batch`; UnusablePhoto where the image is to be skipped."""
        ...

    def batch(self, names: list[str], loaded: list[Any]) -> Batch:
        """The images of what was loaded."""
        ...


class Folder:
    """Images as they are, beside those of the same names.

    Args:
        images: what is evaluated.
        originals: their originals, or None where no metric compares with them.
    """

    def __init__(self, images: ImageSet, originals: ImageSet | None = None):
        self.names = images.names
        self._images, self._originals = images, originals

    def load(self, name: str) -> tuple[Picture, Picture | None]:
        """An image and its original."""
        return self._images.load(name), self._originals.load(name) if self._originals else None

    def batch(self, names: list[str], loaded: list[tuple[Picture, Picture | None]]) -> Batch:
        """As loaded."""
        originals = [original for _, original in loaded if original is not None]
        return Batch([image for image, _ in loaded], originals if self._originals else None, 0.0)


class SmallPhotographs:
    """Small photographs, enlarged, beside their originals.

    Args:
        originals: the photographs, cut to the protocol's high_res.
        protocol: says how they become small.
        enlarge: (small images, seeds) → images of high_res.
        small: small images of the same names; None: the originals, made small by the protocol.
    """

    def __init__(self, originals: ImageSet, protocol: Protocol, enlarge: Callable, small: ImageSet | None = None):
        self.names = originals.names
        self._originals, self._protocol, self._enlarge, self._small = originals, protocol, enlarge, small
        self._number = {name: number for number, name in enumerate(self.names)}

    def load(self, name: str) -> tuple[Picture, Picture]:
        """A small image and its original."""
        protocol = self._protocol
        original = self._originals.load(name)
        if self._small is not None:
            return self._small.load(name), original
        small = degrade(
            original,
            name,
            size=protocol.low_res,
            kind=protocol.degradation,
            resize=protocol.low_res_filter,
            seed=protocol.seed,
        )
        return small, original

    def batch(self, names: list[str], loaded: list[tuple[Picture, Picture]]) -> Batch:
        """The small images, enlarged; always as many at once, so that one program serves all."""
        small = np.stack([small for small, _ in loaded])
        seeds = np.array([self._protocol.seed + self._number[name] for name in names])
        with CompileClock() as clock:
            images = np.asarray(map_batches(self._enlarge, [small, seeds], self._protocol.batch_size))
        return Batch(list(images), [original for _, original in loaded], clock.elapsed - clock.compiling)


class Prompts:
    """What a base model makes of captions, boosted.

    Args:
        captions: by name.
        protocol: says by how many steps.
        boosters: one, or a cascade.
        pipe: a diffusers pipeline whose latents the first of them takes.
    """

    def __init__(self, captions: dict[str, str], protocol: Protocol, boosters: list[Booster], pipe: Any):
        self.names = list(captions)
        self._captions, self._protocol, self._boosters, self._pipe = captions, protocol, boosters, pipe
        self._number = {name: number for number, name in enumerate(self.names)}

    def load(self, name: str) -> str:
        """The caption."""
        return self._captions[name]

    def batch(self, names: list[str], loaded: list[str]) -> Batch:
        """Base model, flow and decoder; the time is that of the last two."""
        from fmboost_jax.boosting.diffusers import prompt_latents

        protocol, first = self._protocol, self._boosters[0]
        seed = protocol.seed + self._number[names[0]]
        options: dict[str, Any] = {"guidance_scale": protocol.guidance}
        if protocol.low_res:
            options |= {"height": protocol.low_res, "width": protocol.low_res}
        latents = np.asarray(prompt_latents(self._pipe, loaded, steps=protocol.base_steps, seed=seed, **options))
        seeds = np.array([seed + index for index in range(len(names))])

        def boost(latents: np.ndarray, seeds: np.ndarray) -> np.ndarray:
            options = {"steps": protocol.steps, "method": protocol.method, "seed": seeds.tolist()}
            return first.decode(first.cascade(latents, self._boosters[1:], **options))

        with CompileClock() as clock:
            images = map_batches(boost, [latents, seeds], protocol.batch_size)
        return Batch(list(images), None, clock.elapsed - clock.compiling)


def boosters_enlarge(boosters: list[Booster], protocol: Protocol) -> Callable:
    """(small images, seeds) → boosted images.

    Raises:
        InputError: boosters whose factor does not lead from low_res to high_res.
    """
    factor = int(np.prod([booster.factor for booster in boosters]))
    if protocol.low_res * factor != protocol.high_res or not protocol.high_res:
        raise InputError(
            f"the booster enlarges ×{factor}: low_res {protocol.low_res} gives {protocol.low_res * factor}, the "
            f"protocol has high_res {protocol.high_res}; set low_res and high_res"
        )

    def enlarge(images, seeds):
        for booster in boosters:
            options = {"steps": protocol.steps, "method": protocol.method, "seed": seeds.tolist()}
            images = booster.upscale(images, tile=0, **options)
        return images

    return enlarge


def filter_enlarges(name: str, protocol: Protocol) -> Callable:
    """(small images, seeds) → images enlarged by a filter of Pillow: what a booster has to beat."""
    if not 0 < protocol.low_res <= protocol.high_res:
        raise InputError(f"low_res {protocol.low_res} must lie between 1 and high_res {protocol.high_res}; set both")
    size = (protocol.high_res, protocol.high_res)
    return lambda images, seeds: np.stack(
        [np.asarray(Image.fromarray(image).resize(size, FILTERS[name])) for image in images]
    )


def load_quietly(source: ImageSource, name: str) -> tuple[str, Any]:
    """(name, what `load` gives), an UnusablePhoto as a value, for threads."""
    try:
        return name, source.load(name)
    except UnusablePhoto as reason:
        return name, reason
