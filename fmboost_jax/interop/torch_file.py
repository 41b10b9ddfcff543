"""PyTorch's zip files (`.pth`, `.ckpt`, `.bin`) read without PyTorch, and without running anything they hold.

Such a file is a zip archive: `data.pkl` pickles the structure, `data/<key>` holds each storage's raw bytes. A pickle
may call any function that it names. This reader knows the handful that tensors and dictionaries need; a name beyond
those may stand in the file, but whoever calls it is refused.
"""

import collections
import gzip
import io
import pickle
import zipfile
import zlib
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from fmboost_jax.errors import InputError

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_ZIP_MAGIC = b"PK\x03\x04"
_GZIP_MAGIC = b"\x1f\x8b"


def read_torch_file(path: str) -> Any:
    """What a PyTorch zip file holds, tensors as numpy arrays; the file may be gzipped.

    Args:
        path: of the file.

    Returns:
        The pickled object, usually a dictionary.

    Raises:
        InputError: no such file, another format, a damaged archive, or a pickle that wants to run code.
    """
    try:
        with open(path, "rb") as file:
            content = io.BytesIO(gzip.decompress(file.read())) if file.peek(2).startswith(_GZIP_MAGIC) else file
            if not content.read(4) == _ZIP_MAGIC:
                raise InputError(
                    f"weights {path}: expected PyTorch's zip format (since version 1.6), found something else; "
                    "load it with PyTorch and torch.save it again"
                )
            with zipfile.ZipFile(content) as archive:
                return _Archive(path, archive).load()
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error) as error:
        raise InputError(f"weights {path}: the file is damaged or cut short ({error}); fetch it again") from error
    except OSError as error:
        raise InputError(f"weights {path}: cannot be read ({error.strerror or error})") from error


class _Archive:
    """One open zip file: finds its pickle, hands storages to tensors."""

    def __init__(self, path: str, archive: zipfile.ZipFile):
        self._path = path
        self._archive = archive
        names = archive.namelist()
        pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise InputError(f"weights {path}: expected one data.pkl in the archive, found {len(pickles)}")
        self._root = pickles[0].removesuffix("data.pkl")
        order = f"{self._root}byteorder"
        if order in names and archive.read(order) != b"little":
            raise InputError(f"weights {path}: big-endian tensors; save the file again on a little-endian machine")
        self._storages: dict[str, np.ndarray] = {}

    def load(self) -> Any:
        unpickler = _Unpickler(io.BytesIO(self._archive.read(f"{self._root}data.pkl")), self._path)
        unpickler.persistent_load = self._storage
        try:
            return unpickler.load()
        except InputError:
            raise
        except (pickle.UnpicklingError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(f"weights {self._path}: not a checkpoint of plain tensors ({error})") from error

    def _storage(self, identity: tuple) -> np.ndarray:
        kind, storage_type, key, _, count = identity
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise ValueError(f"unknown kind of storage {kind!r}")
        if key not in self._storages:
            values = np.frombuffer(self._archive.read(f"{self._root}data/{key}"), storage_type.dtype)
            if values.size != count:
                raise ValueError(f"storage {key} has {values.size} values, expected {count}")
            self._storages[key] = values
        return self._storages[key]


class _Unpickler(pickle.Unpickler):
    """Knows tensors, dictionaries and sizes; every other name becomes a stranger that cannot be called."""

    def __init__(self, file: io.BytesIO, path: str):
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _StorageType(np.dtype(_STORAGES[name]))
        return _KNOWN.get((module, name)) or _stranger(self._path, f"{module}.{name}")


class _StorageType(NamedTuple):
    dtype: np.dtype


def _stranger(path: str, name: str) -> type:
    """What stands for a name that this reader does not know: harmless as a value, refused when called."""

    def refuse(*_: Any, **__: Any) -> None:
        raise InputError(
            f"weights {path}: the file wants to run {name}, expected plain tensors; if you trust it, load it with "
            'PyTorch and save its weights alone: torch.save({"state_dict": checkpoint["state_dict"]}, path)'
        )

    return type("Stranger", (), {"__new__": refuse})


def _rebuild_tensor(
    storage: np.ndarray, offset: int, size: tuple, stride: tuple, requires_grad: bool, hooks: Any, metadata: Any = None
) -> np.ndarray:
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    if all(size) and not (0 <= offset <= last < storage.size and min(stride, default=0) >= 0):
        raise ValueError(f"a tensor of shape {tuple(size)} reaches beyond its storage of {storage.size} values")
    if not all(size):
        return np.empty(size, storage.dtype)
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def _rebuild_parameter(data: np.ndarray, requires_grad: bool, hooks: Any) -> np.ndarray:
    return data


_KNOWN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}
