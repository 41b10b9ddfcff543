"""A reader of safetensors files: all dtypes that NumPy and `ml_dtypes` have, 8-bit floats included.

Format: 8 bytes, the length of the header (little-endian); the header, a JSON object from names to dtype, shape and byte
range; the tensors' bytes. Source: https://github.com/huggingface/safetensors#format
"""

import dataclasses
import json
import math
import os
from typing import Any

import ml_dtypes
import numpy as np

from fmboost_jax.configuration import from_mapping
from fmboost_jax.errors import InputError, one_line

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "C64": np.complex64,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_LENGTH_BYTES = 8
_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit


def read_safetensors(path: str | os.PathLike, what: str = "weights") -> dict[str, np.ndarray]:
    """Read the tensors of a safetensors file by name, as read-only views of the file.

    Args:
        path: of the file.
        what: kind of content, for messages. Default: "weights".

    Raises:
        InputError: a file that is missing, truncated or damaged, or a dtype that NumPy does not have.
    """
    name = f"{what} {os.fspath(path)}"
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size - _LENGTH_BYTES
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if not 2 <= length <= min(size, _LARGEST_HEADER):
                raise InputError(f"{name}: not a whole safetensors file (no header of its length); fetch it again")
            header = json.loads(file.read(length).decode("utf-8"))
        start, size = _LENGTH_BYTES + length, size - length
        content = np.memmap(path, np.uint8, "r", start, size) if size else np.zeros(0, np.uint8)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{name}: not a whole safetensors file (its header is damaged: {one_line(error)}); fetch it again"
        ) from error
    if not isinstance(header, dict):
        raise InputError(f"{name}: not a whole safetensors file (its header is no JSON object); fetch it again")
    header.pop("__metadata__", None)
    tensors = {key: _tensor(f"{name}: tensor {key}", entry, content) for key, entry in header.items()}
    used = sum(tensor.nbytes for tensor in tensors.values())
    if used != size:
        raise InputError(
            f"{name}: not a whole safetensors file (its tensors have {used} bytes, the file {size}); fetch it again"
        )
    return tensors


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """Read the header's `__metadata__` of a safetensors file; empty where it has none, or is another file."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(length).decode("utf-8")) if length <= _LARGEST_HEADER else {}
    except (OSError, ValueError, RecursionError):
        return {}
    found = header.get("__metadata__") if isinstance(header, dict) else None
    return found if isinstance(found, dict) else {}


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Header entry of a tensor: its type, its shape, its first byte and the byte after its last."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _tensor(name: str, mapping: Any, content: np.ndarray) -> np.ndarray:
    """The tensor of one entry of the header."""
    entry = from_mapping(_Entry, mapping, name, "the file is damaged, fetch it again")
    if entry.dtype not in _DTYPES:
        raise InputError(f"{name} has the dtype {entry.dtype[:20]}, expected one of {', '.join(_DTYPES)}")
    dtype, (start, end) = np.dtype(_DTYPES[entry.dtype]), entry.data_offsets
    whole = min((start, *entry.shape)) >= 0 and end <= content.size
    if not whole or end - start != math.prod(entry.shape) * dtype.itemsize:
        raise InputError(f"{name} does not fit its bytes; the file is damaged or truncated, fetch it again")
    try:
        return np.asarray(content[start:end]).view(dtype).reshape(entry.shape)
    except (ValueError, OverflowError) as error:  # more axes than NumPy has, or a length beyond 64 bits beside a 0
        raise InputError(f"{name}: no array has its shape ({one_line(error)}); the file is damaged") from error
