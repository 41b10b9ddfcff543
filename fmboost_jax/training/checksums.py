"""Checksums of a training state's arrays, equal however the arrays are divided among devices and processes.

Orbax stores arrays in OCDBT, which has checksums of its index and none of the arrays' own bytes.

An array is read as a matrix of words, with all axes but the last as rows. Its checksum is Σ word · (2·row + 1) ·
(2·column + 1) modulo 2^32. The factors are odd, so a change of one word always changes the sum. The parts of an array
that several devices hold add up to the whole.
"""

import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped, UInt

from fmboost_jax.errors import some

_BLOCK = 2**16  # words that are multiplied at once


class DamagedError(ValueError):
    """Arrays or a config that are not what was saved."""


def checksums(arrays: Any) -> dict[str, int]:
    """Return the checksum of each array of a tree by its path, such as `ema.conv_in.kernel`.

    Every process of a run must call it; all get the same.

    Args:
        arrays: tree of JAX's arrays, divided in any way, or of NumPy's.
    """
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    names = [path_name(path) for path, _ in leaves]
    parts = np.array([_local_part(leaf) for _, leaf in leaves], np.uint32)
    if jax.process_count() > 1:
        parts = np.asarray(multihost_utils.process_allgather(parts)).sum(axis=0, dtype=np.uint32)
    return {name: int(part) for name, part in zip(names, parts, strict=True)}


def path_name(path: tuple) -> str:
    """Return the name of a leaf's path in a tree, such as `ema.conv_in.kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def describe(arrays: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint keeps beside its state: checksums of arrays and config."""
    return {"arrays": checksums(arrays), "config": _config_checksum(config)}


def check_arrays(arrays: Any, kept: Mapping[str, Any]) -> None:
    """Compare restored arrays with what `describe` returned when they were saved.

    Raises:
        DamagedError: arrays with other checksums; all are named.
    """
    expected = kept["arrays"]
    wrong = [name for name, found in checksums(arrays).items() if expected.get(name) != found]
    if wrong:
        kind = "array" if len(wrong) == 1 else "arrays"
        raise DamagedError(f"{kind} {some(wrong)} changed after saving")


def check_config(config: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
    """Compare a restored config with what `describe` returned when it was saved.

    Raises:
        DamagedError: another config.
    """
    if kept["config"] != _config_checksum(config):
        raise DamagedError("the config changed after saving")


def _config_checksum(config: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(config, sort_keys=True).encode())


def _local_part(array: Any) -> int:
    """What this process's share of an array adds to its checksum; replicas count once."""
    if not isinstance(array, jax.Array):
        return _weighted_sum(np.asarray(array), np.shape(array), (slice(None),) * np.ndim(array))
    shards = [shard for shard in array.addressable_shards if shard.replica_id == 0]
    parts = (_weighted_sum(np.asarray(shard.data), array.shape, shard.index) for shard in shards)
    return sum(parts) % 2**32


def _weighted_sum(part: Shaped[np.ndarray, "..."], shape: tuple[int, ...], index: tuple[slice, ...]) -> int:
    """The sum over the part of an array of this shape that begins where `index` does."""
    if not part.ndim:
        part, shape, index = part.reshape(1), (1,), (slice(None),)
    words = _words(part)
    per_value = words.shape[-1] // max(part.shape[-1], 1)
    rows = np.zeros((1,) * (part.ndim - 1), np.uint32)
    for axis, place in enumerate(index[:-1]):
        stride = math.prod(shape[axis + 1 : -1]) % 2**32
        numbers = np.arange(part.shape[axis], dtype=np.uint32) + np.uint32(place.start or 0)
        rows = rows + np.expand_dims(numbers * np.uint32(stride), [a for a in range(part.ndim - 1) if a != axis])
    row_factors = 2 * rows.ravel() + np.uint32(1)
    first = (index[-1].start or 0) * per_value
    column_factors = 2 * np.arange(first, first + words.shape[-1], dtype=np.uint32) + np.uint32(1)
    matrix, sums = words.reshape(-1, words.shape[-1]), np.zeros(words.shape[-1], np.uint32)
    step = max(_BLOCK // max(words.shape[-1], 1), 1)
    for top in range(0, len(matrix), step):
        sums += np.einsum("rc,r->c", matrix[top : top + step], row_factors[top : top + step], dtype=np.uint32)
    return int(np.sum(sums * column_factors, dtype=np.uint32))


def _words(part: Shaped[np.ndarray, "..."]) -> UInt[np.ndarray, "..."]:
    """The bytes as numbers of 32 bits, or of as many as a value has where these are fewer."""
    kind = {0: np.uint32, 2: np.uint16}.get(part.itemsize % 4, np.uint8)
    return np.ascontiguousarray(part).view(kind)
