"""Split photographs into `train/` and `held_out/`, by a rule that does not depend on the other photographs.

    tools/fetch_photos.sh PHOTOS
    python tools/split_photos.py PHOTOS SPLIT

A photograph is held out where the SHA-256 of its file's name, without folder and suffix, is a multiple of 8. Of CID22
and budgie-backgrounds, charts, drawings and patterns are left out; all of CLIC 2025 are photographs. The files are
linked, not copied.
"""

import hashlib
import pathlib
import re
import sys

from fmboost_jax.data.sources import FolderPhotos

ONE_IN = 8
# CID22's photographs are numbered; charts, drawings and posters have titles or longer numbers.
CID22_PHOTOGRAPH = re.compile(r"(pexels-photo-)?\d{4,8}(_\w+)?")
GRAPHICS = {"962312", "2387532", "abstract-spiral", "valley-midnight", "waves-midnight"}


def is_photograph(path: pathlib.PurePath) -> bool:
    """Whether a file of these collections is a photograph, by its name."""
    return path.stem not in GRAPHICS and ("cid22" not in path.parts or bool(CID22_PHOTOGRAPH.fullmatch(path.stem)))


def is_held_out(path: pathlib.PurePath) -> bool:
    """Whether a photograph is kept from training."""
    return int.from_bytes(hashlib.sha256(path.stem.encode()).digest(), "big") % ONE_IN == 0


def main() -> None:
    """The command."""
    folder, out = map(pathlib.Path, sys.argv[1:])
    counts = {"train": 0, "held_out": 0}
    for name in FolderPhotos(folder).names:
        path = pathlib.PurePath(name)
        if is_photograph(path):
            part = "held_out" if is_held_out(path) else "train"
            target = out / part / "-".join(path.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.symlink_to((folder / name).resolve())
            counts[part] += 1
    print(f"{counts['train']} photographs to train on and {counts['held_out']} held out in {out}")


if __name__ == "__main__":
    main()
