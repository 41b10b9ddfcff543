"""PyTorch's files (`.pth`, `.ckpt`, `.bin`) read without PyTorch, and without running anything they hold.

Since version 1.6 such a file is a zip archive: `data.pkl` pickles the structure, `data/<key>` holds each storage's raw
bytes. Before, it was a row of pickles (a magic number, a version, facts about the machine, the structure, the names of
the storages) with the raw bytes behind. A pickle may call any function that it names. This reader knows the handful
that tensors and dictionaries need; a name beyond those may stand in the file, but whoever calls it is refused.
"""

import collections
import gzip
import io
import pickle
import zipfile
import zlib
from collections.abc import Callable
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
# Of the row of pickles: pickled in protocol 2 as a long of ten bytes.
_ROW_NUMBER = 0x1950A86A20F9469CFC6C
_ROW_MAGIC = b"\x80\x02\x8a\x0a" + _ROW_NUMBER.to_bytes(10, "little")
_GZIP_MAGIC = b"\x1f\x8b"


def read_torch_file(path: str) -> Any:
    """What a PyTorch file holds, tensors as numpy arrays; the file may be gzipped.

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
            start = content.read(len(_ROW_MAGIC))
            content.seek(0)
            if start == _ROW_MAGIC:
                return _Row(path, content).load()
            if not start.startswith(_ZIP_MAGIC):
                raise InputError(
                    f"weights {path}: expected a file that torch.save wrote, found something else; "
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
        return _unpickle(io.BytesIO(self._archive.read(f"{self._root}data.pkl")), self._path, self._storage)

    def _storage(self, identity: tuple) -> np.ndarray:
        storage_type, key, count = _storage_facts(identity)
        if key not in self._storages:
            values = np.frombuffer(self._archive.read(f"{self._root}data/{key}"), storage_type.dtype)
            if values.size != count:
                raise ValueError(f"storage {key} has {values.size} values, expected {count}")
            self._storages[key] = values
        return self._storages[key]


class _Row:
    """One open file of before version 1.6; its storages are filled after the tensors that look at them were made."""

    def __init__(self, path: str, file: io.BufferedIOBase):
        self._path = path
        self._file = file
        self._left = file.seek(0, io.SEEK_END)
        file.seek(0)
        self._storages: dict[str, np.ndarray] = {}

    def load(self) -> Any:
        _, version, machine, content, keys = (_unpickle(self._file, self._path, self._storage) for _ in range(5))
        if version != 1001 or not isinstance(machine, dict) or not machine.get("little_endian"):
            raise InputError(f"weights {self._path}: unknown version or big-endian tensors; save the file again")
        if not isinstance(keys, list) or set(map(str, keys)) != set(self._storages):
            raise InputError(f"weights {self._path}: the file is damaged (its storages are not those it lists)")
        for key in keys:
            storage = self._storages[key]
            count = int.from_bytes(self._file.read(8), "little")
            if count != storage.size or self._file.readinto(storage.view(np.uint8).data) != storage.nbytes:
                raise InputError(f"weights {self._path}: the file is damaged or cut short at storage {key}")
        return content

    def _storage(self, identity: tuple) -> np.ndarray:
        *facts, view = identity
        if view is not None:
            raise ValueError("a storage that is a view of another")
        storage_type, key, count = _storage_facts(tuple(facts))
        if key not in self._storages:
            self._left -= count * storage_type.dtype.itemsize
            if count < 0 or self._left < 0:
                raise ValueError(f"storage {key} of {count} values is larger than the file")
            self._storages[key] = np.zeros(count, storage_type.dtype)
        return self._storages[key]


def _unpickle(file: io.BufferedIOBase, path: str, storage: Callable[[tuple], np.ndarray]) -> Any:
    """The next pickle of a file."""
    unpickler = _Unpickler(file, path)
    unpickler.persistent_load = storage
    try:
        return unpickler.load()
    except InputError:
        raise
    except (pickle.UnpicklingError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"weights {path}: not a checkpoint of plain tensors ({error})") from error


def _storage_facts(identity: tuple) -> tuple["_StorageType", str, int]:
    kind, storage_type, key, _, count = identity
    if kind != "storage" or not isinstance(storage_type, _StorageType):
        raise ValueError(f"unknown kind of storage {kind!r}")
    return storage_type, key, count


class _Unpickler(pickle.Unpickler):
    """Knows tensors, dictionaries and sizes; every other name becomes a stranger that cannot be called."""

    def __init__(self, file: io.BufferedIOBase, path: str):
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
