"""Results of each batch on disk, so that an interrupted evaluation continues with the same results.

OUT/partial/settings.json    settings that determine the results
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
    """Results of one batch.

    Attributes:
        rows: metrics of each measured image.
        skipped: [name, reason] of each image that could not be used.
        seconds: time to generate the images.
        features: feature vectors by the name of the metric.
    """

    rows: list[dict]
    skipped: list[list[str]]
    seconds: float
    features: dict[str, np.ndarray]


class PartialResults:
    """The partial results of an evaluation.

    Args:
        out: folder of the evaluation.
        settings: settings that determine the results; values that JSON can represent.

    Raises:
        InputError: the folder has results of other settings.
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
        """Return whether a part exists."""
        return self._path(kind, number).exists()

    def write(self, kind: str, number: int, part: PartialResult) -> None:
        """Write a part atomically."""
        facts = json.dumps({"rows": part.rows, "skipped": part.skipped, "seconds": part.seconds})
        content = io.BytesIO()
        arrays: dict[str, Any] = {_FACTS: np.frombuffer(facts.encode(), np.uint8)} | part.features
        np.savez(content, **arrays)
        write_atomically(self._path(kind, number), content.getvalue())

    def read(self, kind: str, number: int) -> PartialResult:
        """Read a part.

        Raises:
            InputError: the file is damaged.
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


def refuse_other_settings(out: pathlib.Path, saved: dict, settings: dict) -> None:
    """Raise an error for a folder with results of other settings.

    Raises:
        InputError: the settings differ; the message has the differences.
    """
    differences = changes(saved, json.loads(json.dumps(settings)))
    if differences:
        raise InputError(
            f"{out} has an evaluation with other settings ({'; '.join(differences)}); choose another output folder"
        )
