"""Results of each batch on disk, so that an evaluation that was interrupted goes on with the very same numbers.

OUT/partial/settings.json    what the numbers depend on
           images-00003.npz  rows, skipped images and feature vectors of one batch
           reference-00003.npz
"""

import io
import json
import pathlib
import shutil
import zipfile
from typing import Any, NamedTuple

import numpy as np

from fmboost_jax.configuration import changes
from fmboost_jax.errors import InputError
from fmboost_jax.files import read_json, write_atomically

_FACTS = "facts"


class PartialResult(NamedTuple):
    """What one batch gave.

    Attributes:
        rows: one a measured image.
        skipped: [name, reason] of those that could not be used.
        seconds: spent making the images.
        features: vectors by the name of their distance.
    """

    rows: list[dict]
    skipped: list[list[str]]
    seconds: float
    features: dict[str, np.ndarray]


class PartialResults:
    """The parts of one evaluation.

    Args:
        out: its folder.
        settings: what its numbers depend on; anything that JSON can hold.

    Raises:
        InputError: the folder holds results of other settings.
    """

    def __init__(self, out: pathlib.Path, settings: dict):
        self._folder = out / "partial"
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "settings.json"
        settings = json.loads(json.dumps(settings))
        if not path.exists():
            write_atomically(path, json.dumps(settings, indent=2).encode())
        refuse_other_settings(out, read_json(path), settings)

    def has(self, kind: str, number: int) -> bool:
        """Whether a part is there."""
        return self._path(kind, number).exists()

    def write(self, kind: str, number: int, part: PartialResult) -> None:
        """Write a part, whole or not at all."""
        facts = json.dumps({"rows": part.rows, "skipped": part.skipped, "seconds": part.seconds})
        content = io.BytesIO()
        arrays: dict[str, Any] = {_FACTS: np.frombuffer(facts.encode(), np.uint8)} | part.features
        np.savez(content, **arrays)
        write_atomically(self._path(kind, number), content.getvalue())

    def read(self, kind: str, number: int) -> PartialResult:
        """A part.

        Raises:
            InputError: its file is damaged.
        """
        path = self._path(kind, number)
        try:
            with np.load(path, allow_pickle=False) as file:
                facts = json.loads(file[_FACTS].tobytes())
                return PartialResult(**facts, features={name: file[name] for name in file.files if name != _FACTS})
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"partial result {path} is damaged ({error}); delete it and run again") from error

    def remove(self) -> None:
        """Delete all parts."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, kind: str, number: int) -> pathlib.Path:
        return self._folder / f"{kind}-{number:05d}.npz"


def refuse_other_settings(out: pathlib.Path, there: dict, settings: dict) -> None:
    """Refuse a folder of an evaluation with other settings.

    Raises:
        InputError: with the differences.
    """
    differences = changes(there, json.loads(json.dumps(settings)))
    if differences:
        raise InputError(
            f"{out} holds an evaluation of other settings ({'; '.join(differences)}); choose another output folder"
        )
