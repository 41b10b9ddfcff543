"""Compilation for an absent slice, with a cache of the results: the program's text and its memory."""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import os
import re
import time

import jax
from jax.sharding import Mesh

from fmboost_jax.files import user_cache, write_atomically

_MEMORY = ("argument", "output", "alias", "temp", "generated_code")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_WANTED = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available|Used ([\d.]+)([KMGT]?)i?B? of")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Result of a compilation.

    Attributes:
        text: its HLO; "" where it did not fit.
        memory: bytes a chip of `argument`, `output`, `alias`, `temp` and `generated_code`; empty where it did not fit.
        wanted: bytes a chip that the program needs where it did not fit, else 0.
        seconds: compilation time, of an earlier plan where `cached`.
        cached: whether the result was read from the cache.
    """

    text: str
    memory: dict[str, int]
    wanted: int
    seconds: float
    cached: bool = False


def compile_for(lowered: jax.stages.Lowered, topology: str, mesh: Mesh, folder: str | None) -> Compiled:
    """Compile a lowered program, or read the result from the cache.

    Args:
        lowered: the program, lowered for the mesh's devices.
        topology: the slice's name.
        mesh: mesh of its devices.
        folder: the cache; None for no cache. The source lines of a cached program are those of its compilation.
    """
    path = os.path.join(folder, f"{_key(lowered, topology, mesh)}.json.gz") if folder else None
    if path and os.path.exists(path):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return Compiled(**json.load(file), cached=True)
    started = time.perf_counter()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        wanted = wanted_memory(str(error))
        if wanted is None:
            raise
        compiled = Compiled("", {}, wanted, time.perf_counter() - started)
    else:
        stats = program.memory_analysis()
        memory = {name: getattr(stats, f"{name}_size_in_bytes") for name in _MEMORY}
        compiled = Compiled(program.as_text() or "", memory, 0, time.perf_counter() - started)
    if path:
        _save(compiled, path)
    return compiled


def wanted_memory(message: str) -> int | None:
    """Parse the bytes that a program needs from the compiler's message; None for another error."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = _WANTED.search(message)
    if found is None:
        return None
    number, unit = (group for group in found.groups() if group is not None)
    return int(float(number) * _UNITS[unit])


def cache_folder(compilation_cache: str) -> str | None:
    """Return the folder of the cache, inside `compilation_cache` (a folder, "auto" or ""); None for ""."""
    where = user_cache() if compilation_cache == "auto" else compilation_cache
    return os.path.join(where, "plans") if where else None


def _key(lowered: jax.stages.Lowered, topology: str, mesh: Mesh) -> str:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jaxlib", "libtpu")]
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    devices = [str(device.id) for device in mesh.devices.flat]
    return hashlib.sha256("\n".join([lowered.as_text(), topology, *devices, *versions, *flags]).encode()).hexdigest()


def _save(compiled: Compiled, path: str) -> None:
    fields = dataclasses.asdict(compiled)
    del fields["cached"]
    write_atomically(path, gzip.compress(json.dumps(fields).encode(), compresslevel=3))
