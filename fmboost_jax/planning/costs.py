"""What a compiled program costs: its operations as often as they run, by category, the dearest of them."""

import collections
import dataclasses
import re
from collections.abc import Iterator

from fmboost_jax.planning.hlo import Instruction, Program


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction with the number of times that it runs."""

    instruction: Instruction
    runs: int
    category: str

    @property
    def cycles(self) -> int:
        """In all its runs."""
        return self.instruction.cycles * self.runs


def operations(program: Program) -> list[Operation]:
    """All that runs, in the order of the schedule: a loop's body by its trips, the dearest branch of a conditional."""
    convolves = {
        name: any(i.opcode in ("convolution", "dot") for i in instructions)
        for name, instructions in program.computations.items()
    }

    def walk(computation: str, runs: int) -> Iterator[Operation]:
        for instruction in program.computations[computation]:
            yield Operation(instruction, runs, _category(instruction, convolves))
            if instruction.opcode == "while":
                yield from walk(instruction.calls[0], runs * instruction.trips)
            elif instruction.opcode == "conditional":
                branches = [list(walk(name, runs)) for name in instruction.calls]
                yield from max(branches, key=total_cycles)
            elif instruction.opcode == "call" and not instruction.cycles:
                yield from walk(instruction.calls[0], runs)

    return list(walk(program.entry, 1))


def total_cycles(found: list[Operation]) -> int:
    """Sum over operations."""
    return sum(operation.cycles for operation in found)


def by_category(found: list[Operation]) -> dict[str, int]:
    """Cycles of each category, the largest first."""
    sums: collections.Counter[str] = collections.Counter()
    for operation in found:
        sums[operation.category] += operation.cycles
    return {name: cycles for name, cycles in sums.most_common() if cycles}


def dearest(found: list[Operation], count: int) -> list[Operation]:
    """The operations of most cycles."""
    return sorted(found, key=lambda operation: -operation.cycles)[:count]


def _category(instruction: Instruction, convolves: dict[str, bool]) -> str:
    """`convolution fusion` for what holds a convolution or matrix product; else a fusion's name, which lists its parts,
    without its number; else the opcode."""
    if instruction.opcode in ("convolution", "dot") or any(convolves.get(name) for name in instruction.calls):
        return "convolution fusion" if instruction.opcode == "fusion" else instruction.opcode
    if instruction.opcode == "fusion":
        return re.sub(r"(\.(clone|remat)?\d*)+$", "", instruction.name).replace("_", " ")
    return instruction.opcode
