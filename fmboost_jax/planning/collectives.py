"""Communication between the chips of a compiled program: runs, bytes, and overlap with other work.

The compiler gives no estimate of a collective's time. The estimate here is the time that the bytes take on the links of
the group's chips: rings along every axis of the slice that the group spans, in both directions where the axis closes to
a ring, plus a latency for each hop (Chan et al. 2007, "Collective communication: theory, practice, and experience",
section 5).
"""

import dataclasses
import math
import re

import numpy as np

from fmboost_jax.planning.costs import Operation
from fmboost_jax.planning.hlo import Instruction, Program, arrays, match_of, size_in_bytes
from fmboost_jax.planning.topologies import Slice

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all", "collective-broadcast")
HOP_SECONDS = 1e-6

_KIND = re.compile(f"({'|'.join(KINDS)})(-start|-done)?$")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_PAIRS = re.compile(r"source_target_pairs=\{\{(\d+),(\d+)\}")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a group of chips.

    Attributes:
        kind: one of `KINDS`.
        runs: runs in one step.
        bytes: size of the whole array (gathered, reduced or sent), in one run, on each chip.
        chips: size of the group.
        seconds: time on the links of one run.
        exposed: seconds of one run that no other work hides.
        asynchronous: whether it has a start and an end, so that other work can run in between.
    """

    kind: str
    runs: int
    bytes: int
    chips: int
    seconds: float
    exposed: float
    asynchronous: bool

    @property
    def overlapped(self) -> bool:
        """Whether other work hides a part of it."""
        return self.asynchronous and self.exposed < self.seconds


def collectives(program: Program, found: list[Operation], tpus: Slice) -> list[Collective]:
    """Return every collective of a program, in the order of the schedule.

    Work between a collective's start and its done hides it; the links carry one collective at a time.
    """
    fused = {
        name: next((i for i in inside if _KIND.match(i.opcode)), None) for name, inside in program.computations.items()
    }
    results = []
    now, free = 0.0, 0.0
    started: dict[str, tuple[float, Collective]] = {}
    for operation in found:
        instruction = operation.instruction
        inner = next((fused[name] for name in instruction.calls if fused.get(name)), None)
        if instruction.opcode != "fusion":
            inner = instruction if _KIND.match(instruction.opcode) else None
        if inner is not None and not operation.cycles:
            key, phase = _phase(instruction, inner)
            if phase == "done":
                if key in started:
                    ends, collective = started.pop(key)
                    waits = max(0.0, ends - now)
                    now += waits
                    results.append(dataclasses.replace(collective, exposed=waits))
                continue
            collective = _measure(instruction, inner, operation.runs, phase == "start", tpus)
            free = max(now, free) + collective.seconds
            if phase == "start":
                started[key] = free, collective
            else:
                results.append(dataclasses.replace(collective, exposed=free - now))
                now = free
        now += instruction.cycles / tpus.chip.clock
    return results


def summary(found: list[Collective]) -> list[dict]:
    """Sum collectives of the same kind, group size and overlap to one row; the longest time first."""
    groups: dict[tuple, list[Collective]] = {}
    for collective in found:
        groups.setdefault((collective.kind, collective.chips, collective.overlapped), []).append(collective)
    rows = [
        {
            "kind": kind,
            "chips": chips,
            "overlapped": overlapped,
            "count": sum(c.runs for c in alike),
            "bytes": sum(c.runs * c.bytes for c in alike),
            "seconds": sum(c.runs * c.seconds for c in alike),
            "exposed_seconds": sum(c.runs * c.exposed for c in alike),
        }
        for (kind, chips, overlapped), alike in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["seconds"])


def _phase(instruction: Instruction, inner: Instruction) -> tuple[str, str]:
    """Return a key that a collective's start and done share, and the phase: start, done or whole."""
    suffix = match_of(_KIND, inner.opcode)[2]
    if suffix == "-start":
        return instruction.name, "start"
    if suffix == "-done":
        return instruction.operands[0], "done"
    # Asynchronous fusions of the compiler: start, parts inside other fusions, done; all have one channel.
    for phase in ("start", "done"):
        if instruction.name.startswith(f"async-collective-{phase}"):
            return match_of(_CHANNEL, inner.attributes)[1], phase
    return instruction.name, "whole"


def _measure(instruction: Instruction, inner: Instruction, runs: int, asynchronous: bool, tpus: Slice) -> Collective:
    kind, suffix = match_of(_KIND, inner.opcode).groups()
    found = arrays(inner.shape)
    payload = size_in_bytes(found)
    if suffix == "-start" and kind != "all-reduce":
        payload = max(size_in_bytes([array]) for array in found)  # the tuple also has the operand and flags
    group = _group(inner.attributes, len(tpus.devices))
    if kind == "all-reduce" and instruction.opcode == "fusion":
        kind = "reduce-scatter"
    elif kind == "reduce-scatter":
        payload *= len(group)
    return Collective(kind, runs, payload, len(group), link_seconds(kind, payload, group, tpus), 0.0, asynchronous)


def link_seconds(kind: str, payload: int, group: list[int], tpus: Slice) -> float:
    """Estimate the time of one collective on the links between chips.

    Args:
        kind: one of `KINDS`.
        payload: bytes of the whole array on each chip.
        group: indices of the members in `tpus.devices`.
        tpus: their slice.
    """
    count, chip = len(group), tpus.chip
    if count < 2:
        return 0.0
    places = np.array([tpus.devices[member].coords for member in group])
    extents = [int(extent) for extent in places.max(0) - places.min(0) + 1]
    # An axis that closes to a ring has links in two directions; on a line, the return path takes half of them.
    sides = (*tpus.sides, 1)[: len(extents)]
    links = [
        0 if extent == 1 else 2 if side == extent >= chip.closes else 1
        for extent, side in zip(extents, sides, strict=True)
    ]
    if kind == "collective-permute":
        return payload / chip.link + HOP_SECONDS * (sum(extents) - len(extents))
    share = (count - 1) / count * (2 if kind == "all-reduce" else 1)
    hops = sum(extent - 1 for extent in extents) * (2 if kind == "all-reduce" else 1)
    return share * payload / (chip.link * max(1, sum(links))) + HOP_SECONDS * hops


def _group(attributes: str, devices: int) -> list[int]:
    """Indices in the mesh of the first group's devices; all devices where the text has no groups."""
    if pair := _PAIRS.search(attributes):
        return [int(pair[1]), int(pair[2])]
    if listed := _LISTED.search(attributes):
        return _numbers(listed[1])
    if iota := _IOTA.search(attributes):
        return _iota(iota[2], iota[3]).reshape(_numbers(iota[1]))[0].tolist()
    if mesh := _MESH.search(attributes):
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        ids = _iota(mesh[2], mesh[3]) if mesh[2] else np.arange(math.prod(axes.values()))
        along = [list(axes).index(name) for name in re.findall(r"'(\w+)'", mesh[4])]
        ids = np.moveaxis(ids.reshape(list(axes.values())), along, range(len(along)))
        return ids.reshape(math.prod(ids.shape[: len(along)]), -1)[:, 0].tolist()
    return list(range(devices))


def _iota(sides: str, order: str | None) -> np.ndarray:
    shape = _numbers(sides)
    ids = np.arange(math.prod(shape)).reshape(shape)
    return (ids.transpose(_numbers(order)) if order else ids).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
