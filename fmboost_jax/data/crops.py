"""Square crops of photographs, for latent pairs and for the training of autoencoders."""

import dataclasses

import grain
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fmboost_jax.configuration import require, require_at_least
from fmboost_jax.data.dataset import Recipe
from fmboost_jax.data.sources import FolderPhotos
from fmboost_jax.errors import InputError
from fmboost_jax.images.photos import UnusablePhoto, centre_square, load_photo, random_square
from fmboost_jax.images.value_range import to_float


@dataclasses.dataclass(frozen=True)
class CropsConfig:
    """Section `data` of an autoencoder's config: random square crops of photographs.

    Attributes:
        dir: folder of photographs; all are held in memory, decoded.
        crop: side of the crops in pixels.
        crop_scale: largest side of a crop before it is resized, in units of `crop`.
        num_threads: threads that crop.
        prefetch: batches made ahead.
    """

    dir: str | None = None
    crop: int = 96
    crop_scale: float = 2.0
    num_threads: int = 2
    prefetch: int = 8

    def __post_init__(self):
        require_at_least("data.", self, crop=1, num_threads=0, prefetch=0)
        require("data.", self, "crop_scale", "1 (native resolution) or more", self.crop_scale >= 1)


def crops(photo: Image.Image, name: str, recipe: Recipe) -> UInt8[np.ndarray, "n high_res high_res 3"]:
    """The high-res images of a photograph.

    With `recipe.crops` = 0, one: the largest centred square, resized to `high_res` (Lanczos). Else as many random
    squares, which keep the photograph's own pixels while `crop_scale` is 1. A larger `crop_scale` mixes in squares of
    up to so many times `high_res`, resized: photographs at their native resolution are often soft, and a network that
    saw nothing else learns to make soft pictures.

    Args:
        photo: RGB.
        name: of the photograph; with `recipe.seed` it determines the random squares, so that they do not change when
            other photographs come or go.
        recipe: gives high_res, crops, crop_scale and seed.

    Raises:
        UnusablePhoto: the photograph is smaller than `high_res`; it is not enlarged.
    """
    size = recipe.high_res
    if min(photo.size) < size:
        raise UnusablePhoto(f"{photo.width}×{photo.height} pixels, smaller than the crop of {size}×{size}")
    if recipe.crops == 0:
        squares = [centre_square(*photo.size)]
    else:
        squares = [
            random_square(*photo.size, size, recipe.crop_scale, f"{recipe.seed}/{crop}/{name}")
            for crop in range(recipe.crops)
        ]
    # With the sides equal, resizing is an exact copy.
    pictures = [photo.resize((size, size), Image.Resampling.LANCZOS, square.box) for square in squares]
    return np.stack([np.asarray(picture) for picture in pictures])


def read_photographs(folder: str | None, smallest: int) -> list[Image.Image]:
    """All photographs of a folder, decoded, but for those whose shorter side is below `smallest` pixels.

    Raises:
        InputError: no folder told, none there, or no photograph of that size in it.
    """
    if not folder:
        raise InputError("data.dir is empty: set it to a folder of photographs")
    photos, usable = FolderPhotos(folder), []
    for number in range(len(photos.names)):
        try:
            with photos.open(number) as file:
                photograph = load_photo(file).rgb
        except (UnusablePhoto, OSError) as error:
            print(f"left out {photos.names[number]}: {error}")
            continue
        if min(photograph.size) >= smallest:
            usable.append(photograph)
    if not usable:
        raise InputError(f"{folder}: none of {len(photos.names)} photographs has {smallest}×{smallest} pixels")
    return usable


def centres(folder: str | None, size: int) -> Float[np.ndarray, "n size size 3"]:
    """The centred squares of a folder's photographs, shrunk to `size`, in [−1, 1]."""
    photographs = read_photographs(folder, size)
    squares = [
        photograph.resize((size, size), Image.Resampling.LANCZOS, centre_square(*photograph.size).box)
        for photograph in photographs
    ]
    return to_float(np.stack([np.asarray(square) for square in squares]))


def crop_batches(photographs: list[Image.Image], data: CropsConfig, *, seed: int, batch_size: int) -> grain.IterDataset:
    """An endless stream of batches: `image` (b, crop, crop, 3) uint8 and `record` (b,), the photographs' numbers.

    Every epoch takes each photograph once, in a new order, at a random square, half of them mirrored.
    """
    size, scale = data.crop, data.crop_scale

    def crop(number: int, rng: np.random.Generator) -> dict[str, np.ndarray | np.uint32]:
        photograph = photographs[number]
        square = random_square(*photograph.size, size, scale, str(rng.integers(2**63)))
        pixels = np.asarray(photograph.resize((size, size), Image.Resampling.LANCZOS, square.box))
        return {"image": pixels[:, ::-1] if rng.integers(2) else pixels, "record": np.uint32(number)}

    stream = grain.MapDataset.range(len(photographs)).seed(seed).shuffle().repeat().random_map(crop)
    return stream.batch(batch_size).to_iter_dataset(
        grain.ReadOptions(num_threads=data.num_threads, prefetch_buffer_size=data.prefetch)
    )


def first_crops(
    photographs: list[Image.Image], data: CropsConfig, *, seed: int, batch_size: int, batches: int
) -> UInt8[np.ndarray, "n h w 3"]:
    """The crops of the stream's first batches."""
    iterator = iter(crop_batches(photographs, data, seed=seed, batch_size=batch_size))
    images = np.concatenate([next(iterator)["image"] for _ in range(batches)])
    iterator.close()
    return images
