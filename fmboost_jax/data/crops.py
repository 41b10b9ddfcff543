"""Square crops of photographs, for latent pairs and for training autoencoders."""

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
        dir: folder of photographs; all are decoded and kept in memory.
        crop: side of the crops in pixels.
        crop_scale: largest side of a crop before it is resized, in units of `crop`.
        num_threads: threads that crop images.
        prefetch: batches prepared in advance.
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
    """Return the high-res images of a photograph.

    With `recipe.crops` = 0 it is the largest centred square, resized to `high_res` (Lanczos). Otherwise it is that many
    random squares. With `crop_scale` = 1 they keep the photograph's pixels. With a larger `crop_scale`, the sides of
    the squares vary up to `crop_scale` · `high_res`, and the squares are resized. Photographs are often soft at their
    native resolution, and a network trained on nothing else produces soft images.

    Args:
        photo: RGB image.
        name: name of the photograph. The random squares depend on it and on `recipe.seed` only, so adding or removing
            other photographs does not change them.
        recipe: recipe with high_res, crops, crop_scale and seed.

    Raises:
        UnusablePhoto: the photograph is smaller than `high_res`.
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
    # Resizing to the same size is an exact copy.
    images = [photo.resize((size, size), Image.Resampling.LANCZOS, square.box) for square in squares]
    return np.stack([np.asarray(image) for image in images])


def read_photographs(folder: str | None, smallest: int) -> list[Image.Image]:
    """Decode the photographs of a folder whose shorter side has at least `smallest` pixels.

    Raises:
        InputError: no folder is given, it does not exist, or it has no photograph of that size.
    """
    if not folder:
        raise InputError("data.dir is empty: set it to a folder of photographs")
    photos, usable = FolderPhotos(folder), []
    for number in range(len(photos.names)):
        try:
            with photos.open(number) as file:
                photograph = load_photo(file).rgb
        except (UnusablePhoto, OSError) as error:
            print(f"skipped {photos.names[number]}: {error}")
            continue
        if min(photograph.size) >= smallest:
            usable.append(photograph)
    if not usable:
        raise InputError(f"{folder}: none of {len(photos.names)} photographs has {smallest}×{smallest} pixels")
    return usable


def centres(folder: str | None, size: int) -> Float[np.ndarray, "n size size 3"]:
    """Return the centred squares of a folder's photographs, resized to `size`, in [−1, 1]."""
    photographs = read_photographs(folder, size)
    squares = [
        photograph.resize((size, size), Image.Resampling.LANCZOS, centre_square(*photograph.size).box)
        for photograph in photographs
    ]
    return to_float(np.stack([np.asarray(square) for square in squares]))


def crop_batches(photographs: list[Image.Image], data: CropsConfig, *, seed: int, batch_size: int) -> grain.IterDataset:
    """Return an endless stream of batches: `image` (b, crop, crop, 3) uint8 and `record` (b,), the photograph's number.

    Every epoch has one random square of each photograph, in a new order. Half of the squares are mirrored.
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
    """Return the crops of the stream's first batches."""
    iterator = iter(crop_batches(photographs, data, seed=seed, batch_size=batch_size))
    images = np.concatenate([next(iterator)["image"] for _ in range(batches)])
    iterator.close()
    return images
