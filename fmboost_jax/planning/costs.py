"""Costs of a compiled program: its operations with their runs, categories, cycles and FLOPs."""

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
    """An instruction and its number of runs.

    Attributes:
        instruction: the instruction in the program.
        runs: number of runs; the body of a loop of unknown length counts as one run.
        category: see `by_category`.
        flops: FLOPs of one run, see `flops_of`.
        unknown_length: whether it is a loop of unknown length.
    """

    instruction: Instruction
    runs: int
    category: str
    flops: int
    unknown_length: bool = False

    @property
    def cycles(self) -> int:
        """Cycles of all runs."""
        return self.instruction.cycles * self.runs


def operations(program: Program) -> list[Operation]:
    """Return all operations that run, in the order of the schedule.

    A loop's body counts with the loop's trips, a conditional with its most expensive branch.

    Instructions inside a fusion are not listed: the fusion has their cycles.
    """
    flops = {
        name: {instruction.name: flops_of(instruction, inside) for instruction in inside.values()}
        for name, inside in ((name, program.by_name(name)) for name in program.computations)
        if any(map(_multiplies, inside.values()))
    }

    def walk(computation: str, runs: int) -> Iterator[Operation]:
        computation_flops = flops.get(computation, {})
        for instruction in program.computations[computation]:
            fused = [flops[name] for name in instruction.calls if name in flops and instruction.opcode == "fusion"]
            unknown_length = False
            trips = 1
            if instruction.opcode == "while":
                trips = program.trips(instruction, computation)
                unknown_length, trips = trips is None, 1 if trips is None else trips
            yield Operation(
                instruction,
                runs,
                "convolution fusion" if fused else _category(instruction),
                computation_flops.get(instruction.name, 0) + sum(sum(inside.values()) for inside in fused),
                unknown_length,
            )
            if instruction.opcode == "conditional":
                yield from max((list(walk(name, runs)) for name in instruction.calls), key=total_cycles)
            elif instruction.opcode in ("while", "call") and not instruction.cycles:
                yield from walk(instruction.calls[0], runs * trips)

    return list(walk(program.entry, 1))


def total_cycles(found: list[Operation]) -> int:
    """Sum the cycles of all runs."""
    return sum(operation.cycles for operation in found)


def total_flops(found: list[Operation]) -> int:
    """Sum the FLOPs of all runs."""
    return sum(operation.flops * operation.runs for operation in found)


def by_category(found: list[Operation]) -> dict[str, int]:
    """Sum the cycles of each category, the largest first.

    The category of operations with a convolution or matrix product is `convolution fusion`. Of other fusions it is the
    name, which lists the parts; of other operations the opcode.
    """
    sums: collections.Counter[str] = collections.Counter()
    for operation in found:
        sums[operation.category] += operation.cycles
    return {name: cycles for name, cycles in sums.most_common() if cycles}


def most_expensive(found: list[Operation], count: int) -> list[Operation]:
    """Return the `count` operations of most cycles."""
    return sorted(found, key=lambda operation: -operation.cycles)[:count]


def flops_of(instruction: Instruction, inside: dict[str, Instruction]) -> int:
    """FLOPs of a convolution or matrix product, 0 for other instructions; a multiply-add is two.

    Products with padding or with the zeros of a dilated input do not count, as in XLA's own analysis.

    Args:
        instruction: the instruction to count.
        inside: the instructions of its computation by name.
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
    """Count the pairs of an output and a kernel tap that use a value of the input, along one axis."""
    # The input's values are at 0, spread, 2·spread, …
    places = np.arange(outputs)[:, None] * stride + np.arange(extent) * dilation - before
    return int(((places >= 0) & (places <= (size - 1) * spread) & (places % spread == 0)).sum())


def _multiplies(instruction: Instruction) -> bool:
    return instruction.opcode in ("convolution", "dot")


def _category(instruction: Instruction) -> str:
    if instruction.opcode != "fusion":
        return instruction.opcode
    return re.sub(r"(\.(clone|remat)?\d*)+$", "", instruction.name).replace("_", " ")
