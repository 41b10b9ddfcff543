"""Where photographs come from: a folder of files, or a TFDS dataset."""

import hashlib
import io
import os
import pathlib
import re
from typing import Any, Protocol, runtime_checkable

from fmboost_jax.errors import InputError, one_line

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@runtime_checkable
class Photos(Protocol):
    """Numbered photographs with names that stay the same from run to run. Safe to read from several threads.

    Attributes:
        names: one a photograph.
        fingerprint: changes when the photographs do.
    """

    names: list[str]
    fingerprint: str

    def open(self, number: int) -> io.BufferedIOBase:
        """The encoded image; OSError if it cannot be read."""
        ...


class FolderPhotos:
    """The JPEG, PNG and WebP files in a folder and the folders below, sorted by name; hidden ones are left out."""

    def __init__(self, folder: str | os.PathLike):
        """List the files.

        Raises:
            InputError: no such folder, or none of these files in it.
        """
        folder = pathlib.Path(folder)
        if not folder.is_dir():
            raise InputError(f"photo folder {folder} does not exist")
        paths = {}
        for parent, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for path in (pathlib.Path(parent, name) for name in files if not name.startswith(".")):
                if path.suffix.lower() in SUFFIXES:
                    paths[_printable(path.relative_to(folder).as_posix())] = path
        if not paths:
            raise InputError(f"photo folder {folder} holds no photographs; expected {', '.join(SUFFIXES)} files")
        self.names = sorted(paths)
        self._paths = [paths[name] for name in self.names]
        sizes = [path.stat().st_size if path.exists() else 0 for path in self._paths]
        self.fingerprint = _digest(f"{name}/{size}" for name, size in zip(self.names, sizes, strict=True))

    def open(self, number: int) -> io.BufferedIOBase:
        """The file."""
        return self._paths[number].open("rb")


class TFDSPhotos:
    """The images of one split of a TFDS dataset, read through `tfds.data_source`, which needs no TensorFlow.

    The dataset must be stored as ArrayRecord; TFDS downloads and prepares it so where it is not there yet. Images are
    taken undecoded, so they are treated as files are.
    """

    def __init__(self, name: str):
        """Open a split.

        Args:
            name: NAME:SPLIT or NAME:SPLIT:DATA_DIR, for example "coco/2017:validation" or "div2k:train[:10%]:/data".

        Raises:
            InputError: tensorflow-datasets is not installed, no such dataset or split, or no single image in it.
        """
        match = re.fullmatch(r"(?P<name>[^:]+(:\d+\.[\d.*]+)?):(?P<split>(\[[^\]]*\]|[^:\[])+)(:(?P<folder>.+))?", name)
        if match is None:
            raise InputError(
                f"TFDS split {name!r}: expected NAME:SPLIT or NAME:SPLIT:DATA_DIR, as in coco/2017:validation"
            )
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise InputError("TFDS needs the package tensorflow-datasets: pip install 'fmboost_jax[tfds]'") from error
        try:
            builder: Any = tfds.builder(match["name"], data_dir=match["folder"], file_format="array_record")
            images = [key for key, feature in builder.info.features.items() if isinstance(feature, tfds.features.Image)]
            self._feature = "image" if "image" in images else "".join(images[:1])
            if not images:
                raise InputError(
                    f"TFDS dataset {match['name']} has no image; its features: {list(builder.info.features)}"
                )
            builder.download_and_prepare()
            undecoded = {self._feature: tfds.decode.SkipDecoding()}
            self._examples = builder.as_data_source(split=match["split"], decoders=undecoded)
        except InputError:
            raise
        # Each of its many builders raises what it likes.
        except Exception as error:
            raise InputError(f"TFDS cannot give {name}: {one_line(error)}") from error
        title = f"{builder.info.full_name}/{match['split']}"
        self.names = [f"{title}/{number:08d}" for number in range(len(self._examples))]
        if not self.names:
            raise InputError(f"TFDS split {title} is empty")
        self.fingerprint = _digest([title, str(len(self.names))])

    def open(self, number: int) -> io.BufferedIOBase:
        """The image as it is stored."""
        return io.BytesIO(self._examples[number][self._feature])


def _printable(name: str) -> str:
    """A file name with bytes that are no UTF-8 spelled out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _digest(parts) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
