"""Atomic writing of files and folders, and checked reading of JSON."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from fmboost_jax.errors import InputError, one_line, printable


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


def user_cache(project: str = "fmboost_jax") -> str:
    """Return a project's folder in the user's cache: in XDG_CACHE_HOME, or in `~/.cache` where that is not set."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), project)


# Such as gs://bucket/folder; pathlib makes gs:/bucket/folder of it.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
NAME_BYTES = 255  # of a file's name, on nearly every file system
_TEMPORARY_BYTES = 200  # of a name, leaving room for the suffix of a temporary name


def local_path(path: str | os.PathLike, what: str) -> str:
    """Return a path of this file system.

    Args:
        path: path of an argument or a config.
        what: the option's name, for the message.

    Raises:
        InputError: an empty path, one with a NUL character, or the address of an object store such as gs://.
    """
    path = os.fspath(path)
    if not path:
        raise InputError(f"{what} is empty; name a file or folder")
    if "\0" in path:
        raise InputError(f"{what} {printable(path)}: no file's name has a NUL character; choose another name")
    if _ADDRESS.match(path):
        raise InputError(
            f"{what} {printable(path)}: object stores and other addresses are not read or written here; use a local or "
            "a mounted folder"
        )
    return path


def utf8_path(path: str | os.PathLike, what: str) -> str:
    """Return a local path for Orbax, which requires UTF-8.

    Raises:
        InputError: another path; see also `local_path`.
    """
    path = local_path(path, what)
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{what} {printable(path)}: its name is not UTF-8, as checkpoints need; rename it") from error
    return path


def refuse_addresses(values: Mapping[str, Any], prefix: str = "") -> None:
    """Raise an error for a command line or config that names an object store.

    Args:
        values: texts, lists of texts, numbers, and mappings of these.
        prefix: before their names in the message.

    Raises:
        InputError: see `local_path`.
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            refuse_addresses(value, f"{prefix}{name}.")
        for text in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(text, str) and text:
                local_path(text, f"{prefix}{name}")


def partial_path(path: pathlib.Path) -> pathlib.Path:
    """Return the hidden temporary name in the same folder under which this process writes a file."""
    return path.with_name(f".{_shortened(path.name)}.{os.getpid()}.partial")


def _shortened(name: str) -> str:
    return os.fsencode(name)[:_TEMPORARY_BYTES].decode("utf-8", "ignore")


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file for writing under a temporary name; sync and rename it when the block ends without an error.

    At any time, `path` has its old content, or does not exist, or has its complete new content. Missing parent folders
    are created.
    """
    path = pathlib.Path(os.path.abspath(local_path(path, "output")))
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
    folder = pathlib.Path(os.path.abspath(local_path(folder, "output")))
    refuse_existing(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{_shortened(folder.name)}.", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        publish(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
