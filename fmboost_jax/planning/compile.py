"""Compiling for a slice that is not there, and keeping what came of it: the text of the program and its memory."""

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

from fmboost_jax.files import write_atomically

_MEMORY = ("argument", "output", "alias", "temp", "generated_code")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_WANTED = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available|Used ([\d.]+)([KMGT]?)i?B? of")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made of a program.

    Attributes:
        text: its HLO; "" where it did not fit.
        memory: bytes a chip of `argument`, `output`, `alias`, `temp` and `generated_code`; empty where it did not fit.
        wanted: bytes a chip that it wanted where it did not fit, else 0.
        seconds: that the compiler took, maybe in an earlier plan.
        kept: whether this was kept from an earlier plan.
    """

    text: str
    memory: dict[str, int]
    wanted: int
    seconds: float
    kept: bool = False


def compile_for(lowered: jax.stages.Lowered, topology: str, mesh: Mesh, folder: str | None) -> Compiled:
    """Compile a lowered program, or read what came of it before.

    Args:
        lowered: for the mesh's devices.
        topology: the slice's name.
        mesh: over its devices.
        folder: where results are kept; None for nowhere. A kept program's source lines are those of its time.
    """
    path = os.path.join(folder, f"{_key(lowered, topology, mesh)}.json.gz") if folder else None
    if path and os.path.exists(path):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return Compiled(**json.load(file), kept=True)
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
        _keep(compiled, path)
    return compiled


def wanted_memory(message: str) -> int | None:
    """Bytes that a program wanted, from the compiler's complaint; None where it complains of something else."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = _WANTED.search(message)
    if found is None:
        return None
    number, unit = (group for group in found.groups() if group is not None)
    return int(float(number) * _UNITS[unit])


def kept_folder(compilation_cache: str) -> str | None:
    """Where results are kept: beside the programs of `compilation_cache` (a folder, "auto" or "")."""
    where = compilation_cache
    if where == "auto":
        where = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "fmboost_jax")
    return os.path.join(where, "plans") if where else None


def _key(lowered: jax.stages.Lowered, topology: str, mesh: Mesh) -> str:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jaxlib", "libtpu")]
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    devices = [str(device.id) for device in mesh.devices.flat]
    return hashlib.sha256("\n".join([lowered.as_text(), topology, *devices, *versions, *flags]).encode()).hexdigest()


def _keep(compiled: Compiled, path: str) -> None:
    fields = dataclasses.asdict(compiled)
    del fields["kept"]
    write_atomically(path, gzip.compress(json.dumps(fields).encode(), compresslevel=3))
