"""A reader of PyTorch's files (`.pth`, `.ckpt`, `.bin`) that needs no PyTorch and executes no code of the file.

Since version 1.6 such a file is a zip archive: `data.pkl` pickles the structure, `data/<key>` holds each storage's raw
bytes. Before, it was a sequence of pickles (a magic number, a version, facts about the machine, the structure, the
names of the storages), followed by the raw bytes. A pickle can call any global that it names. This reader allows those
that tensors and dictionaries need. Every other global is blocked: it may appear in the file, and calling it is an
error. Objects of known harmless classes become stand-ins (`fmboost_jax.interop.inert`).
"""

import collections
import gzip
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from fmboost_jax.errors import InputError, one_line
from fmboost_jax.interop.inert import inert_class

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
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
}
# dtypes that have no storage of their own: their tensors are views of bytes.
_DTYPES = {
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
}
_ZIP_MAGIC = b"PK\x03\x04"
# The magic number of the older format, pickled in protocol 2 as a long of ten bytes.
_LEGACY_NUMBER = 0x1950A86A20F9469CFC6C
_LEGACY_MAGIC = b"\x80\x02\x8a\x0a" + _LEGACY_NUMBER.to_bytes(10, "little")
_GZIP_MAGIC = b"\x1f\x8b"
# A gzipped file may grow to so many times its size, and by so many bytes more.
_LARGEST_RATIO, _SMALL = 100, 2**20


def read_torch_file(path: str) -> Any:
    """Read the object in a PyTorch file, tensors as numpy arrays; the file may be gzipped.

    Args:
        path: path of the file.

    Returns:
        The pickled object, usually a dictionary. Objects of the classes in `fmboost_jax.interop.inert.INERT` are
        stand-ins.

    Raises:
        InputError: a missing file, another format, a damaged archive, or a pickle that would run code.
    """
    try:
        with open(path, "rb") as file:
            content = _gunzipped(file, path) if file.peek(2).startswith(_GZIP_MAGIC) else file
            start = content.read(len(_LEGACY_MAGIC))
            content.seek(0)
            if start == _LEGACY_MAGIC:
                return _LegacyFile(path, content).load()
            if not start.startswith(_ZIP_MAGIC):
                raise InputError(
                    f"weights {path}: expected a file of torch.save, found another format; "
                    "load it with PyTorch and torch.save it again"
                )
            with zipfile.ZipFile(content) as archive:
                return _Archive(path, archive).load()
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"weights {path}: cannot be read ({error.strerror or error})") from error
    # A damaged archive raises BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError, KeyError, …
    except Exception as error:
        raise InputError(
            f"weights {path}: the file is damaged or truncated ({one_line(error)}); fetch it again"
        ) from error


def _gunzipped(file: io.BufferedReader, path: str) -> io.BytesIO:
    """The content of a gzipped file, which must not be out of proportion to the file."""
    limit = _LARGEST_RATIO * os.fstat(file.fileno()).st_size + _SMALL
    with gzip.open(file) as archive:
        content = archive.read(limit + 1)
    if len(content) > limit:
        raise InputError(
            f"weights {path}: gzipped by more than {_LARGEST_RATIO}, which weights never are; fetch it again"
        )
    return io.BytesIO(content)


class _Archive:
    """An open zip file with the pickle and the storages."""

    def __init__(self, path: str, archive: zipfile.ZipFile):
        self._path = path
        self._archive = archive
        names = archive.namelist()
        pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise InputError(f"weights {path}: expected one data.pkl in the archive, found {len(pickles)}")
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise InputError(
                f"weights {path}: a compressed archive, which torch.save never writes; torch.save it again"
            )
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
            content = self._archive.read(f"{self._root}data/{key}")
            values = np.frombuffer(content, storage_type.dtype)
            if values.size != count:
                raise ValueError(f"storage {key} has {values.size} values, expected {count}")
            self._storages[key] = values
        return self._storages[key]


class _LegacyFile:
    """An open file from before version 1.6. Its storages are filled after the tensors are built."""

    def __init__(self, path: str, file: io.BufferedIOBase):
        self._path = path
        self._file = file
        self._bytes_left = file.seek(0, io.SEEK_END)
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
                raise InputError(f"weights {self._path}: the file is damaged or truncated at storage {key}")
        return content

    def _storage(self, identity: tuple) -> np.ndarray:
        *facts, view = identity
        if view is not None:
            raise ValueError("a storage that is a view of another")
        storage_type, key, count = _storage_facts(tuple(facts))
        if key not in self._storages:
            self._bytes_left -= count * storage_type.dtype.itemsize
            if count < 0 or self._bytes_left < 0:
                raise ValueError(f"storage {key} of {count} values is larger than the file")
            self._storages[key] = np.zeros(count, storage_type.dtype)
        return self._storages[key]


def _unpickle(file: io.BufferedIOBase, path: str, storage: Callable[[tuple], np.ndarray]) -> Any:
    """Load the next pickle of a file."""
    unpickler = _Unpickler(file, path)
    unpickler.persistent_load = storage
    try:
        return unpickler.load()
    except InputError:
        raise
    # The operations of a damaged pickle may meet any values, and so raise anything.
    except Exception as error:
        raise InputError(
            f"weights {path}: damaged, or not a checkpoint of plain tensors ({one_line(error)})"
        ) from error


def _storage_facts(identity: tuple) -> tuple["_StorageType", str, int]:
    kind, storage_type, key, _, count = identity
    if kind != "storage" or not isinstance(storage_type, _StorageType):
        raise ValueError(f"unknown kind of storage {kind!r}")
    return storage_type, key, count


class _Unpickler(pickle.Unpickler):
    """An unpickler of tensors, dictionaries and sizes; every other global is blocked."""

    def __init__(self, file: io.BufferedIOBase, path: str):
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _StorageType(np.dtype(_STORAGES[name]))
        if module == "torch" and name in _DTYPES:
            return np.dtype(_DTYPES[name])
        if (module, name) == ("torch.storage", "UntypedStorage"):
            return _StorageType(np.dtype(np.uint8))
        allowed = _ALLOWED.get((module, name)) or inert_class(module, name)
        return allowed or _blocked_global(self._path, f"{module}.{name}")


class _StorageType(NamedTuple):
    dtype: np.dtype


def _blocked_global(path: str, name: str) -> type:
    """Return a class for a global that is not allowed; calling it raises an error."""

    def refuse(*_: Any, **__: Any) -> None:
        raise InputError(
            f"weights {path}: the file would run {name}, a blocked global; if you trust the file, load it with "
            'PyTorch and save only its weights: torch.save({"state_dict": checkpoint["state_dict"]}, path)'
        )

    return type("BlockedGlobal", (), {"__new__": refuse})


def _rebuild_tensor(
    storage: np.ndarray, offset: int, size: tuple, stride: tuple, requires_grad: bool, hooks: Any, metadata: Any = None
) -> np.ndarray:
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    if all(size) and not (0 <= offset <= last < storage.size and min(stride, default=0) >= 0):
        raise ValueError(f"a tensor of shape {tuple(size)} reaches beyond its storage of {storage.size} values")
    if not all(size):
        return np.empty(size, storage.dtype)
    width = storage.itemsize
    steps = [step * width for step in stride]
    tensor = np.ndarray(tuple(size), storage.dtype, storage.view(np.uint8).data, offset * width, steps)
    tensor.flags.writeable = False
    return tensor


def _rebuild_view(
    storage: np.ndarray,
    offset: int,
    size: tuple,
    stride: tuple,
    requires_grad: bool,
    hooks: Any,
    dtype: np.dtype,
    metadata: Any = None,
) -> np.ndarray:
    return _rebuild_tensor(storage.view(dtype), offset, size, stride, requires_grad, hooks)


def _rebuild_parameter(data: np.ndarray, requires_grad: bool, hooks: Any, state: Any = None) -> np.ndarray:
    return data


def _rebuild_subclass(function: Callable[..., Any], kind: Any, arguments: tuple, state: Any) -> Any:
    """A tensor of another class, or with attributes, is a tensor."""
    return function(*arguments) if function in _ALLOWED.values() else None


def _bytes_from_text(text: str, encoding: str) -> bytes:
    """Return bytes, which protocol 2 writes as a text of the same 256 characters."""
    if encoding != "latin1":
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED = {
    ("_codecs", "encode"): _bytes_from_text,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_view,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_subclass,
}
