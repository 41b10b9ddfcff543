"""The images of an evaluation: chosen by the protocol, cut to its size, known by name and checksum."""

import hashlib
import pathlib

import numpy as np
from jaxtyping import UInt8

from fmboost_jax.data.sources import Photos
from fmboost_jax.data.threads import in_order
from fmboost_jax.errors import InputError, some
from fmboost_jax.evaluation.degradations import FILTERS
from fmboost_jax.evaluation.protocol import Protocol
from fmboost_jax.files import read_json
from fmboost_jax.images.photos import UnusablePhoto, centre_square, load_photo, photo_size


class ImageSet:
    """A protocol's choice of the images of a source.

    Args:
        source: where they come from.
        protocol: says how many, and what is cut of them.

    Attributes:
        names: of the chosen images, sorted, without the ending of a file's name.
    """

    def __init__(self, source: Photos, protocol: Protocol):
        self._source, self._protocol = source, protocol
        numbers = {_stem(name): number for number, name in enumerate(source.names)}
        if len(numbers) < len(source.names):
            twice = next(name for number, name in enumerate(source.names) if numbers[_stem(name)] != number)
            raise InputError(f"image {twice}: there is another of that name with another ending; rename one")
        names = sorted(numbers)
        if 0 < protocol.count < len(names):
            drawn = sorted(names, key=lambda name: hashlib.sha256(f"{protocol.seed}/{name}".encode()).digest())
            names = sorted(drawn[: protocol.count])
        self.names = names
        self._numbers = numbers

    def load(self, name: str) -> UInt8[np.ndarray, "h w 3"]:
        """An image, upright and sRGB, cut to the protocol's size.

        Raises:
            UnusablePhoto: it cannot be read, or is smaller than that size.
        """
        try:
            with self._source.open(self._numbers[name]) as file:
                photo = load_photo(file).rgb
        except OSError as error:
            raise UnusablePhoto(error.strerror or type(error).__name__) from error
        size = self._protocol.high_res
        if not size:
            return np.asarray(photo)
        if min(photo.size) < size and not self._protocol.enlarge:
            raise UnusablePhoto(f"{photo.width}×{photo.height} pixels, smaller than high_res {size}")
        box = centre_square(*photo.size).box
        return np.asarray(photo.resize((size, size), FILTERS[self._protocol.high_res_filter], box))

    def size(self, name: str) -> tuple[int, int] | None:
        """Width and height of an upright image, from its file's head; None where it cannot be read."""
        try:
            with self._source.open(self._numbers[name]) as file:
                return photo_size(file)
        except OSError:
            return None

    def checksum(self) -> str:
        """SHA-256 of the chosen images' names and bytes."""

        def digest(name: str) -> str:
            try:
                with self._source.open(self._numbers[name]) as file:
                    return hashlib.sha256(file.read()).hexdigest()
            except OSError:
                return "unreadable"

        digests = in_order(digest, self.names, self._protocol.num_threads)
        lines = (f"{name} {content}\n" for name, content in zip(self.names, digests, strict=True))
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def check_pairs(images: ImageSet, reference: ImageSet, protocol: Protocol) -> None:
    """Refuse two collections whose images are no pairs.

    Raises:
        InputError: names on one side alone, or, where the protocol cuts nothing, pairs of different sizes.
    """
    alone = sorted(set(images.names) - set(reference.names)), sorted(set(reference.names) - set(images.names))
    if any(alone):
        sides = zip(("the images", "the reference"), alone, strict=True)
        named = "; ".join(f"{len(names)} in {side} alone: {some(names)}" for side, names in sides if names)
        raise InputError(
            f"{', '.join(protocol.paired)} need pairs of the same name: {len(images.names)} images, "
            f"{len(reference.names)} in the reference; {named}"
        )
    if protocol.high_res:
        return
    unequal = []
    for name in images.names:
        size, expected = images.size(name), reference.size(name)
        if size is not None and expected is not None and size != expected:
            unequal.append(f"{name} {size[0]}×{size[1]} against {expected[0]}×{expected[1]}")
    if unequal:
        raise InputError(
            f"{len(unequal)} pairs of different sizes: {some(unequal)}; set high_res to cut all to one size"
        )


def read_captions(path: str, names: list[str]) -> dict[str, str]:
    """The first caption of each image.

    Args:
        path: JSON of {name: caption or list of captions}, or COCO's own `captions_*.json`.
        names: images that need one.

    Raises:
        InputError: a file that cannot be read, or images without a caption.
    """
    if not pathlib.Path(path).is_file():
        raise InputError(f"captions {path}: no such file; expected JSON of {{name: caption}} or COCO's captions_*.json")
    content = read_json(pathlib.Path(path))
    if isinstance(content.get("annotations"), list):
        try:
            files = {image["id"]: image["file_name"] for image in content["images"]}
            ordered = sorted(content["annotations"], key=lambda annotation: annotation["id"])
            pairs = [(files[annotation["image_id"]], annotation["caption"]) for annotation in reversed(ordered)]
        except (KeyError, TypeError) as error:
            raise InputError(f"captions {path}: expected COCO's fields, {error} is missing") from error
        content = dict(pairs)
    firsts = {_stem(name): value[0] if isinstance(value, list) and value else value for name, value in content.items()}
    captions = {name: value.strip() for name, value in firsts.items() if isinstance(value, str)}
    missing = [name for name in names if name not in captions]
    if missing:
        raise InputError(f"captions {path}: {len(missing)} of {len(names)} images have none: {some(missing)}")
    return {name: captions[name] for name in names}


def _stem(name: str) -> str:
    return str(pathlib.PurePosixPath(name).with_suffix("")) if pathlib.PurePosixPath(name).suffix else name
