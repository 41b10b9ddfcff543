"""What a compiled program costs: its operations as often as they run, by category, the dearest of them, their FLOPs."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

from fmboost_jax.planning.hlo import Instruction, Program, arrays, match_of

_WINDOW = re.compile(r"window=\{([^}]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_BATCH_GROUPS = re.compile(r"batch_group_count=(\d+)")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction with the number of times that it runs.

    Attributes:
        instruction: as it stands in the program.
        runs: how often it runs; the inside of a loop whose length is not known counts as one run.
        category: see `by_category`.
        flops: of one run: see `flops_of`.
        endless: a loop whose length is not known.
    """

    instruction: Instruction
    runs: int
    category: str
    flops: int
    endless: bool = False

    @property
    def cycles(self) -> int:
        """In all its runs."""
        return self.instruction.cycles * self.runs


def operations(program: Program) -> list[Operation]:
    """All that runs, in the order of the schedule: a loop's body by its trips, the dearest branch of a conditional.

    The inside of a fusion is not listed: its cycles are the fusion's.
    """
    flops = {
        name: {instruction.name: flops_of(instruction, inside) for instruction in inside.values()}
        for name, inside in ((name, program.by_name(name)) for name in program.computations)
        if any(map(_multiplies, inside.values()))
    }

    def walk(computation: str, runs: int) -> Iterator[Operation]:
        own = flops.get(computation, {})
        for instruction in program.computations[computation]:
            fused = [flops[name] for name in instruction.calls if name in flops and instruction.opcode == "fusion"]
            endless = False
            trips = 1
            if instruction.opcode == "while":
                trips = program.trips(instruction, computation)
                endless, trips = trips is None, 1 if trips is None else trips
            yield Operation(
                instruction,
                runs,
                "convolution fusion" if fused else _category(instruction),
                own.get(instruction.name, 0) + sum(sum(inside.values()) for inside in fused),
                endless,
            )
            if instruction.opcode == "conditional":
                yield from max((list(walk(name, runs)) for name in instruction.calls), key=total_cycles)
            elif instruction.opcode in ("while", "call") and not instruction.cycles:
                yield from walk(instruction.calls[0], runs * trips)

    return list(walk(program.entry, 1))


def total_cycles(found: list[Operation]) -> int:
    """Sum over operations."""
    return sum(operation.cycles for operation in found)


def total_flops(found: list[Operation]) -> int:
    """Sum over operations."""
    return sum(operation.flops * operation.runs for operation in found)


def by_category(found: list[Operation]) -> dict[str, int]:
    """Cycles of each category, the largest first.

    A category is `convolution fusion` for what holds a convolution or matrix product, else a fusion's name, which lists
    its parts, else the opcode.
    """
    sums: collections.Counter[str] = collections.Counter()
    for operation in found:
        sums[operation.category] += operation.cycles
    return {name: cycles for name, cycles in sums.most_common() if cycles}


def dearest(found: list[Operation], count: int) -> list[Operation]:
    """The operations of most cycles."""
    return sorted(found, key=lambda operation: -operation.cycles)[:count]


def flops_of(instruction: Instruction, inside: dict[str, Instruction]) -> int:
    """FLOPs of a convolution or matrix product, 0 for anything else: two for each product of numbers.

    What meets padding or the holes of a dilated input does not count, as in XLA's own analysis.

    Args:
        instruction: the one to count.
        inside: its computation's instructions by name.
    """
    if not _multiplies(instruction):
        return 0
    result, left, right = (
        arrays(shape)[0][1] for shape in (instruction.shape, *(inside[name].shape for name in instruction.operands[:2]))
    )
    if instruction.opcode == "dot":
        contracted = match_of(_CONTRACTED, instruction.attributes)[1]
        return 2 * math.prod(result) * math.prod(left[int(d)] for d in contracted.split(",") if d)
    of_input, of_kernel, of_result = match_of(_LABELS, instruction.attributes).groups()
    window = _WINDOW.search(instruction.attributes)
    options = dict(field.split("=") for field in window[1].split()) if window else {}

    def option(name: str, axis: int, default: int) -> int:
        return int(options[name].split("x")[axis].split("_")[0]) if name in options else default

    pairs = math.prod(
        _pairs(
            left[of_input.index(str(axis))],
            right[of_kernel.index(str(axis))],
            result[of_result.index(str(axis))],
            stride=option("stride", axis, 1),
            before=option("pad", axis, 0),
            spread=option("lhs_dilate", axis, 1),
            dilation=option("rhs_dilate", axis, 1),
        )
        for axis in range(len(of_result) - 2)
    )
    groups = _BATCH_GROUPS.search(instruction.attributes)
    batch = left[of_input.index("b")] // (int(groups[1]) if groups else 1)
    return 2 * batch * right[of_kernel.index("i")] * right[of_kernel.index("o")] * pairs


@functools.cache
def _pairs(size: int, extent: int, outputs: int, *, stride: int, before: int, spread: int, dilation: int) -> int:
    """Pairs of an output and a tap of the kernel that meet a number of the input, along one axis."""
    # The input's numbers stand at 0, spread, 2·spread, …
    places = np.arange(outputs)[:, None] * stride + np.arange(extent) * dilation - before
    return int(((places >= 0) & (places <= (size - 1) * spread) & (places % spread == 0)).sum())


def _multiplies(instruction: Instruction) -> bool:
    return instruction.opcode in ("convolution", "dot")


def _category(instruction: Instruction) -> str:
    if instruction.opcode != "fusion":
        return instruction.opcode
    return re.sub(r"(\.(clone|remat)?\d*)+$", "", instruction.name).replace("_", " ")
