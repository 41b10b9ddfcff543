"""Sources of photographs: a folder of files, or a TFDS dataset."""

import hashlib
import io
import os
import pathlib
import re
import sys
from typing import Any, Protocol, runtime_checkable

from fmboost_jax.errors import InputError, one_line, printable
from fmboost_jax.files import local_path
from fmboost_jax.images.listing import image_files


@runtime_checkable
class Photos(Protocol):
    """Numbered photographs whose names are the same in every run. Several threads may read at the same time.

    Attributes:
        names: name of each photograph.
        fingerprint: hash that changes with the photographs.
    """

    names: list[str]
    fingerprint: str

    def open(self, number: int) -> io.BufferedIOBase:
        """Return the encoded image, as a file.

        Raises:
            OSError: it cannot be read.
        """
        ...


class FolderPhotos:
    """The image files (`photo_suffixes`) in a folder and its subfolders, without hidden ones, sorted by name.

    Folders that cannot be read, and pipes, are named on stderr.
    """

    def __init__(self, folder: str | os.PathLike):
        """List the files.

        Raises:
            InputError: the folder does not exist, or has no image files.
        """
        folder = pathlib.Path(local_path(folder, "photo folder"))
        if not folder.is_dir():
            raise InputError(f"photo folder {folder} does not exist")
        problems: list[str] = []
        paths = {printable(name): pathlib.Path(path) for name, path in image_files(folder, problems)}
        for problem in problems:
            print(f"left out {problem}", file=sys.stderr)
        if not paths:
            raise InputError(f"photo folder {folder} holds no photographs; expected image files such as .jpg or .png")
        self.names = sorted(paths)
        self._paths = [paths[name] for name in self.names]
        self.fingerprint = _digest(
            f"{name}/{path.stat().st_size}" for name, path in zip(self.names, self._paths, strict=True)
        )

    def open(self, number: int) -> io.BufferedIOBase:
        """Open the file."""
        return self._paths[number].open("rb")


class TFDSPhotos:
    """The images of one split of a TFDS dataset, read through `tfds.data_source`, which needs no TensorFlow.

    The dataset must be stored as ArrayRecord. TFDS downloads and prepares a missing dataset in this format. Images are
    read undecoded, so they are decoded in the same way as files.
    """

    def __init__(self, name: str):
        """Open a split.

        Args:
            name: NAME:SPLIT or NAME:SPLIT:DATA_DIR, for example "coco/2017:validation" or "div2k:train[:10%]:/data".

        Raises:
            InputError: tensorflow-datasets is not installed, the dataset or split does not exist, or it has no images.
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
        # Builders raise exceptions of many types.
        except Exception as error:
            raise InputError(f"TFDS cannot read {name}: {one_line(error)}") from error
        title = f"{builder.info.full_name}/{match['split']}"
        self.names = [f"{title}/{number:08d}" for number in range(len(self._examples))]
        if not self.names:
            raise InputError(f"TFDS split {title} is empty")
        self.fingerprint = _digest([title, str(len(self.names))])

    def open(self, number: int) -> io.BufferedIOBase:
        """Open the stored image."""
        return io.BytesIO(self._examples[number][self._feature])


def _digest(parts) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
