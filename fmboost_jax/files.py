"""Atomic writing of files and folders, and checked reading of JSON."""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from fmboost_jax.errors import InputError, one_line


def read_json(path: str | os.PathLike) -> dict:
    """Read a JSON file that holds an object, in UTF-8, UTF-16 or UTF-32, with or without a byte-order mark.

    Raises:
        InputError: a file that cannot be read, or anything else in it.
    """
    try:
        with open(path, "rb") as file:
            fields = json.loads(file.read())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    # ValueError: no JSON, bytes that are no text, or a number of thousands of digits.
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged, expected JSON: {one_line(error)}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path} is damaged: expected a JSON object, found {type(fields).__name__}")
    return fields


def partial_path(path: pathlib.Path) -> pathlib.Path:
    """Return the hidden temporary name in the same folder under which this process writes a file."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file for writing under a temporary name; sync and rename it when the block ends without an error.

    At any time, `path` has its old content, or does not exist, or has its complete new content. Missing parent folders
    are created.
    """
    path = pathlib.Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_path(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Write a file, see `atomic_file`."""
    with atomic_file(path) as file:
        file.write(content)


def publish(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Rename a synced file or folder, and sync the parent folder, so that the new name survives a power failure."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def refuse_existing(path: str | os.PathLike) -> None:
    """Raise an error for an output that exists.

    Raises:
        InputError: it exists.
    """
    if os.path.lexists(path):
        raise InputError(f"output {path} exists already; choose another name or remove it")


@contextlib.contextmanager
def atomic_folder(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Create a folder under a temporary name; rename it when the block ends without an error, and remove it otherwise.

    Raises:
        InputError: the folder exists already.
    """
    folder = pathlib.Path(os.path.abspath(folder))
    refuse_existing(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        publish(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
