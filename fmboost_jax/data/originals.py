"""The pixels of a dataset's photographs: its records hold latents, and the numbers of photograph and crop."""

import pathlib

import numpy as np
from jaxtyping import Integer, UInt8

from fmboost_jax.data.crops import crops
from fmboost_jax.data.dataset import DatasetInfo
from fmboost_jax.data.records import PairSource
from fmboost_jax.data.sources import FolderPhotos
from fmboost_jax.errors import InputError
from fmboost_jax.files import read_json
from fmboost_jax.images.photos import UnusablePhoto, load_photo


def original_images(
    info: DatasetInfo, records: Integer[np.ndarray, "n"], folder: str
) -> UInt8[np.ndarray, "n high_res high_res 3"]:
    """Return the high-res images that were encoded into these records.

    Args:
        info: the dataset.
        records: numbers of records in it.
        folder: the photographs that it was made of, under the same names.

    Raises:
        InputError: other photographs, or one that cannot be read.
    """
    photos, source, images = FolderPhotos(folder), PairSource(info), []
    plan = pathlib.Path(info.folder) / "plan.json"
    if read_json(plan).get("fingerprint") != photos.fingerprint:
        raise InputError(
            f"{folder}: the names or sizes of these photographs are not those that dataset {info.folder} was made of; "
            "name the folder that the dataset was made of"
        )
    for record in records:
        photo, crop = source.origin(int(record))
        try:
            with photos.open(photo) as file:
                images.append(crops(load_photo(file).rgb, photos.names[photo], info)[crop])
        except (UnusablePhoto, OSError) as error:
            raise InputError(f"{folder}/{photos.names[photo]}: cannot be read ({error})") from error
    return np.stack(images)
