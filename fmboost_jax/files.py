"""Files that are written whole or not at all, and JSON that is read with checks."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
import typing
from collections.abc import Iterator

from fmboost_jax.errors import InputError


def read_json(path: pathlib.Path) -> dict:
    """A JSON file that holds an object; anything else raises InputError."""
    try:
        fields = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is damaged, expected JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path} is damaged: expected a JSON object, found {type(fields).__name__}")
    return fields


def from_json(cls: type, fields: object, path: pathlib.Path):
    """An instance of a dataclass out of JSON's fields; one that is missing or of another type raises InputError."""
    values = {}
    for field in dataclasses.fields(cls):
        value = fields.get(field.name) if isinstance(fields, dict) else None
        if field.type is float and type(value) is int:
            value = float(value)
        if not isinstance(value, typing.get_origin(field.type) or field.type) or isinstance(value, bool):
            raise InputError(
                f"{path}: expected {field.name} as {field.type.__name__}, found {value!r}; precompute again"
            )
        values[field.name] = value
    return cls(**values)


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Write a file so that at any moment either the old one or the whole new one is there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    publish(temporary, path)


def publish(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Give a file that is written and synced its name, and sync the folder, so that the name survives a power cut."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def new_folder(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A folder to fill under a temporary name; it gets its own when the block ends well, and is removed otherwise.

    Raises:
        InputError: the folder exists already.
    """
    folder = pathlib.Path(os.path.abspath(folder))
    if folder.exists():
        raise InputError(f"output {folder} exists already; name another or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield partial
        partial.chmod(0o755)
        publish(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
