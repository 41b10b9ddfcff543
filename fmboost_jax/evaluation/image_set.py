"""The images of an evaluation: selected by the protocol, and cropped to its size."""

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
    """The images of a source that a protocol selects.

    Args:
        source: the images.
        protocol: protocol with the number of images and their size.

    Attributes:
        names: sorted names of the selected images, without suffix.
    """

    def __init__(self, source: Photos, protocol: Protocol):
        self._source, self._protocol = source, protocol
        numbers = {_stem(name): number for number, name in enumerate(source.names)}
        if len(numbers) < len(source.names):
            twice = next(name for number, name in enumerate(source.names) if numbers[_stem(name)] != number)
            raise InputError(f"image {twice}: another image has the same name with another suffix; rename one")
        names = sorted(numbers)
        if 0 < protocol.count < len(names):
            drawn = sorted(names, key=lambda name: hashlib.sha256(f"{protocol.seed}/{name}".encode()).digest())
            names = sorted(drawn[: protocol.count])
        self.names = names
        self._numbers = numbers

    def load(self, name: str) -> UInt8[np.ndarray, "h w 3"]:
        """Return an image, upright and in sRGB, cropped and resized to the protocol's size.

        Raises:
            UnusablePhoto: the image cannot be read, or is smaller than that size.
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
        """Return width and height of the upright image from its file's header; None if it cannot be read."""
        try:
            with self._source.open(self._numbers[name]) as file:
                return photo_size(file)
        except OSError:
            return None

    def checksum(self) -> str:
        """Return the SHA-256 of the selected images' names and bytes."""

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
    """Check that two sets of images form pairs.

    Raises:
        InputError: names that only one set has; or pairs of different sizes, if the protocol does not crop.
    """
    alone = sorted(set(images.names) - set(reference.names)), sorted(set(reference.names) - set(images.names))
    if any(alone):
        sides = zip(("the images", "the reference"), alone, strict=True)
        named = "; ".join(f"{len(names)} only in {side}: {some(names)}" for side, names in sides if names)
        raise InputError(
            f"{', '.join(protocol.paired)} need pairs with equal names: {len(images.names)} images, "
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
            f"{len(unequal)} pairs of different sizes: {some(unequal)}; set high_res to crop all to one size"
        )


def read_captions(path: str, names: list[str]) -> dict[str, str]:
    """Return the first caption of each image.

    Args:
        path: JSON of {name: caption or list of captions}, or COCO's `captions_*.json`.
        names: names of the images.

    Raises:
        InputError: the file cannot be read, or an image has no caption.
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
