"""Images to evaluate: those of a folder, enlarged low-res photographs, or boosted images of prompts."""

from collections.abc import Callable
from typing import Any, NamedTuple, runtime_checkable
from typing import Protocol as Interface

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.diffusers import BaseModel
from fmboost_jax.errors import InputError
from fmboost_jax.evaluation.degradations import FILTERS, degrade
from fmboost_jax.evaluation.image_set import ImageSet
from fmboost_jax.evaluation.protocol import Protocol
from fmboost_jax.images.colour import NO_FIX
from fmboost_jax.images.photos import UnusablePhoto
from fmboost_jax.parallel.batching import map_batches
from fmboost_jax.runtime.timing import CompileClock

Pixels = UInt8[np.ndarray, "_ _ 3"]


class Batch(NamedTuple):
    """A batch of images to evaluate.

    Attributes:
        images: images to evaluate.
        originals: their originals, or None.
        seconds: time to generate the images, without compilation; 0 for images of a folder.
    """

    images: list[Pixels]
    originals: list[Pixels] | None
    seconds: float


@runtime_checkable
class ImageSource(Interface):
    """A source of images to evaluate.

    Attributes:
        names: names of the images.
    """

    names: list[str]

    def load(self, name: str) -> Any:
        """Prepare an image, in a thread ahead of `batch`.

        Raises:
            UnusablePhoto: the image cannot be used and is skipped.
        """
        ...

    def batch(self, names: list[str], loaded: list[Any]) -> Batch:
        """Return the batch of prepared images."""
        ...


class Folder:
    """Images of a folder, with their originals.

    Args:
        images: images to evaluate.
        originals: their originals; None if no metric needs them.
    """

    def __init__(self, images: ImageSet, originals: ImageSet | None = None):
        self.names = images.names
        self._images, self._originals = images, originals

    def load(self, name: str) -> tuple[Pixels, Pixels | None]:
        """Load an image and its original."""
        return self._images.load(name), self._originals.load(name) if self._originals else None

    def batch(self, names: list[str], loaded: list[tuple[Pixels, Pixels | None]]) -> Batch:
        """Return the loaded images."""
        originals = [original for _, original in loaded if original is not None]
        return Batch([image for image, _ in loaded], originals if self._originals else None, 0.0)


class SmallPhotographs:
    """Enlarged low-res photographs, with their originals.

    Args:
        originals: photographs at the protocol's high_res.
        protocol: protocol with the degradation.
        enlarge: function from (low-res images, seeds) to images of size high_res.
        small: low-res images with the same names. Default: the degraded originals.
    """

    def __init__(self, originals: ImageSet, protocol: Protocol, enlarge: Callable, small: ImageSet | None = None):
        self.names = originals.names
        self._originals, self._protocol, self._enlarge, self._small = originals, protocol, enlarge, small
        self._number = {name: number for number, name in enumerate(self.names)}

    def load(self, name: str) -> tuple[Pixels, Pixels]:
        """Load a low-res image and its original."""
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

    def batch(self, names: list[str], loaded: list[tuple[Pixels, Pixels]]) -> Batch:
        """Enlarge the low-res images, in batches of constant size for one compiled program."""
        small = np.stack([small for small, _ in loaded])
        seeds = np.array([self._protocol.seed + self._number[name] for name in names])
        with CompileClock() as clock:
            images = np.asarray(map_batches(self._enlarge, [small, seeds], self._protocol.batch_size))
        return Batch(list(images), [original for _, original in loaded], clock.elapsed - clock.compiling)


class Prompts:
    """Images of captions: a base model's latents, boosted.

    Args:
        captions: captions by name.
        protocol: protocol with the settings of base model and flow.
        boosters: one booster, or a cascade.
        base: base model; the first booster takes its latents.
    """

    def __init__(self, captions: dict[str, str], protocol: Protocol, boosters: list[Booster], base: BaseModel):
        self.names = list(captions)
        self._captions, self._protocol, self._boosters, self._base = captions, protocol, boosters, base
        self._number = {name: number for number, name in enumerate(self.names)}

    def load(self, name: str) -> str:
        """Return the caption."""
        return self._captions[name]

    def batch(self, names: list[str], loaded: list[str]) -> Batch:
        """Run base model, flow and decoder; the time is that of all three."""
        protocol, first = self._protocol, self._boosters[0]
        seed = protocol.seed + self._number[names[0]]
        side = protocol.low_res or None
        options: dict[str, Any] = {"guidance": protocol.guidance, "height": side, "width": side}
        seeds = np.array([seed + index for index in range(len(names))])

        def boost(latents: np.ndarray, seeds: np.ndarray) -> np.ndarray:
            options = {"steps": protocol.steps, "method": protocol.method, "seed": seeds.tolist()}
            return first.decode(first.cascade(latents, self._boosters[1:], **options))

        with CompileClock() as clock:
            latents = np.asarray(self._base.latents(loaded, steps=protocol.base_steps, seed=seed, **options))
            images = map_batches(boost, [latents, seeds], protocol.batch_size)
        return Batch(list(images), None, clock.elapsed - clock.compiling)


def boosters_enlarge(boosters: list[Booster], protocol: Protocol) -> Callable:
    """Return a function from (low-res images, seeds) to boosted images.

    Raises:
        InputError: the boosters' factor is not high_res / low_res.
    """
    factor = int(np.prod([booster.factor for booster in boosters]))
    if protocol.low_res * factor != protocol.high_res or not protocol.high_res:
        raise InputError(
            f"the booster enlarges ×{factor}: low_res {protocol.low_res} gives {protocol.low_res * factor}, the "
            f"protocol has high_res {protocol.high_res}; set low_res and high_res"
        )

    fix = None if protocol.colour_fix == NO_FIX else protocol.colour_fix

    def enlarge(images, seeds):
        for booster in boosters:
            options = {"steps": protocol.steps, "method": protocol.method, "seed": seeds.tolist()}
            images = booster.upscale(images, tile=0, colour_fix=fix, **options)
        return images

    return enlarge


def filter_enlarges(name: str, protocol: Protocol) -> Callable:
    """Return a function from (low-res images, seeds) to images enlarged by a filter of Pillow, as a baseline."""
    if not 0 < protocol.low_res <= protocol.high_res:
        raise InputError(f"low_res {protocol.low_res} must be between 1 and high_res {protocol.high_res}; set both")
    size = (protocol.high_res, protocol.high_res)
    return lambda images, seeds: np.stack(
        [np.asarray(Image.fromarray(image).resize(size, FILTERS[name])) for image in images]
    )


def load_quietly(source: ImageSource, name: str) -> tuple[str, Any]:
    """Return (name, prepared image), with an UnusablePhoto exception as a value."""
    try:
        return name, source.load(name)
    except UnusablePhoto as reason:
        return name, reason
