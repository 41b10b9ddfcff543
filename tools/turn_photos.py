"""Turn or mirror photographs, each in one of seven ways, for more training data of the same photographs.

    python tools/turn_photos.py SPLIT/train TURNED
    python tools/turn_photos.py SPLIT/train TURNED2 --shift 3

The way depends on the hash of a photograph's name, and on --shift. A network that has seen a photograph often, upright,
learns from the turned copies what holds for others, too.
"""

import argparse
import hashlib
import pathlib

from PIL import Image
from tqdm import tqdm

from fmboost_jax.data.sources import FolderPhotos
from fmboost_jax.errors import InputError, run
from fmboost_jax.files import atomic_folder
from fmboost_jax.images.photos import UnusablePhoto, load_photo

WAYS = list(Image.Transpose)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser("turn_photos", description=__doc__.splitlines()[0])
    parser.add_argument("photographs", help="folder of photographs")
    parser.add_argument("out", type=pathlib.Path, help="folder of PNGs to write")
    parser.add_argument("--shift", type=int, default=0, help="take another way for every photograph (default: 0)")
    arguments = parser.parse_args()
    photos = FolderPhotos(arguments.photographs)
    with atomic_folder(arguments.out) as folder:
        for number, name in enumerate(tqdm(photos.names, unit="photo")):
            way = WAYS[(hashlib.sha256(name.encode()).digest()[0] + arguments.shift) % len(WAYS)]
            try:
                with photos.open(number) as file:
                    turned = load_photo(file).rgb.transpose(way)
            except UnusablePhoto as reason:
                raise InputError(f"{arguments.photographs}/{name}: {reason}; remove it") from reason
            turned.save(folder / f"{pathlib.PurePath(name).stem}.png", compress_level=1)


if __name__ == "__main__":
    run(main)
