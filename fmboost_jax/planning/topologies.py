"""TPU slices by libtpu's names, and the peaks of their chips.

libtpu compiles for absent slices. It writes a lock file so that only one process uses a machine's chips. Plans use no
chip, so any number of plans may run in parallel, also beside a training run.
"""

import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from fmboost_jax.errors import InputError

# Without these, libtpu queries the TPU machine's metadata server, waits for it, and logs to stderr.
_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device of a slice.

    Attributes:
        name: name in a topology.
        clock: cycles a second, in the unit of `estimated_cycles`.
        peak: peak bfloat16 FLOP a second.
        memory: bytes of HBM available to a program.
        link: bytes a second of one link to a neighbour, in one direction.
        axes: number of a slice's axes, 2 or 3.
        closes: least length of an axis that closes to a ring.
    """

    name: str
    clock: float
    peak: float
    memory: int
    link: float
    axes: int
    closes: int


# Peaks and links: cloud.google.com/tpu/docs, the page of each. Clocks: those at which the compiler's cycles of a large
# matrix product come to at most the peak; memory: what the compiler says is available (docs/planning.md).
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 1.5e9, 197e12, int(15.75 * 2**30), 50e9, 2, 16),
        Chip("v5p", 1.75e9, 459e12, int(95.74 * 2**30), 100e9, 3, 4),
        Chip("v6e", 1.75e9, 918e12, int(31.25 * 2**30), 100e9, 2, 16),
    )
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice: its name, kind of chip, sides in chips and devices."""

    name: str
    chip: Chip
    sides: tuple[int, ...]
    devices: list[jax.Device]  # pyright: ignore[reportInvalidTypeForm]: a variable in its stubs


def tpu_slice(name: str) -> Slice:
    """Return the slice of a name such as `v5e:2x2`, `v5p:4x4x4` or `v6e:16x16`; needs no hardware.

    Raises:
        InputError: an unknown slice, or libtpu is not installed.
    """
    kind, _, sides = name.partition(":")
    shape = [int(side) for side in sides.split("x")] if re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", sides) else []
    if kind not in CHIPS or len(shape) != CHIPS[kind].axes:
        known = ", ".join(f"{chip.name}:{'x'.join('4' * chip.axes)}" for chip in CHIPS.values())
        raise InputError(
            f"topology {name!r} is unknown; expected a kind of chip and the slice's sides, such as {known}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("libtpu, which holds the TPU compiler, is not installed: pip install 'fmboost_jax[tpu]'")
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    options = {"chips_per_host_bounds": (*shape, 1, 1)[:3]} if math.prod(shape) < 4 else {}
    try:
        devices = topologies.get_topology_desc(name, platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"topology {name!r} cannot be compiled for: {' '.join(str(error).split())}") from error
    return Slice(name, CHIPS[kind], tuple(shape), sorted(devices, key=lambda device: device.id))
