"""The image files of a folder and of those below it."""

import os
import stat
from collections.abc import Iterable, Iterator

from fmboost_jax.errors import printable
from fmboost_jax.images.photos import photo_suffixes

Identity = tuple[int, int]


def image_files(
    folder: str | os.PathLike, problems: list[str], leave_out: Iterable[Identity | None] = ()
) -> Iterator[tuple[str, str]]:
    """List the files whose suffix is that of an image format, by name in each folder; hidden ones are skipped.

    Symbolic links are followed, and every folder is visited once.

    Args:
        folder: where to look.
        problems: receives a line for each folder that cannot be read, and for each pipe, socket, device or dead link.
        leave_out: identities of folders below that are not visited.

    Yields:
        Names relative to the folder, with slashes, and paths.
    """
    folder, suffixes = os.fspath(folder), photo_suffixes()
    seen = {identity(folder), *leave_out}

    def closed(error: OSError) -> None:
        problems.append(f"{printable(str(error.filename))}: {error.strerror}")

    for parent, folders, files in os.walk(folder, onerror=closed, followlinks=True):
        kept = []
        for name in sorted(folders):
            below = identity(os.path.join(parent, name))
            if not name.startswith(".") and below not in seen:
                seen.add(below)
                kept.append(name)
        folders[:] = kept
        for name in sorted(files):
            path = os.path.join(parent, name)
            if name.startswith(".") or os.path.splitext(name)[1].lower() not in suffixes:
                continue
            if problem := not_a_file(path):
                problems.append(f"{printable(path)}: {problem}")
            else:
                yield os.path.relpath(path, folder).replace(os.sep, "/"), path


def identity(path: str | os.PathLike) -> Identity | None:
    """Device and inode: the same for all names of one file or folder; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def not_a_file(path: str) -> str | None:
    """Why a path cannot be read as a file; opening a pipe would block."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return error.strerror or "cannot be read"
    return None if stat.S_ISREG(mode) else "a pipe, socket or device, not a file"
