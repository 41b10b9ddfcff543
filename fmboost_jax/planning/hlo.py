"""A compiled program's text, read: computations of instructions, with the compiler's own estimate of each one's cycles.

The text is XLA's HLO (openxla.org/xla/operation_semantics), as `compiled.as_text()` gives it.
"""

import dataclasses
import re

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_OPERAND = re.compile(r"%([\w.\-]+)")
# A row of the tables in front: `7 "path"`, `3 {file_name_id=4 function_name_id=2 line=41 …}`.
_ROW = re.compile(r'(\d+) (?:"(.*)"|\{(.*)\})$')
# How many calls of this package to tell of one instruction.
CALLS = 4


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: unique in the program.
        shape: with its layout, as it stands there.
        opcode: such as `fusion`, `all-reduce-start`.
        operands: names of instructions that it reads.
        calls: names of computations.
        trips: how often a loop's body runs; 1 where it is not known.
        cycles: the compiler's estimate; 0 where it has none.
        op_name: the JAX operation that it comes of.
        source: `file:line` of the innermost calls in this package, the innermost first.
        attributes: the rest of the line.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    calls: tuple[str, ...]
    trips: int
    cycles: int
    op_name: str
    source: tuple[str, ...]
    attributes: str


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, each its instructions in the order in which they are scheduled."""

    entry: str
    computations: dict[str, list[Instruction]]


def parse(text: str) -> Program:
    """The program of `compiled.as_text()`."""
    tables: dict[str, dict[int, object]] = {}
    computations: dict[str, list[Instruction]] = {}
    entry, table, current = "", None, None
    sources = {}
    for line in text.splitlines():
        if current is not None:
            if line.startswith("}"):
                current = None
            elif match := _INSTRUCTION.match(line):
                current.append(_instruction(match, sources))
        elif match := _COMPUTATION.match(line):
            sources = sources or _sources(tables)
            current = computations[match[2]] = []
            entry = match[2] if match[1] else entry
        elif table is not None and (match := _ROW.match(line)):
            table[int(match[1])] = match[2] if match[3] is None else _fields(match[3])
        elif line.isidentifier():
            table = tables.setdefault(line, {})
    return Program(entry, computations)


def _fields(row: str) -> dict[str, int]:
    return {name: int(value) for name, value in (field.split("=") for field in row.split())}


def _sources(tables: dict[str, dict]) -> dict[int, tuple[str, ...]]:
    """For each stack frame `file:line` of its innermost calls in this package."""
    files, places, frames = (tables.get(name, {}) for name in ("FileNames", "FileLocations", "StackFrames"))
    found: dict[int, tuple[str, ...]] = {}
    for number, frame in frames.items():
        place = places[frame["file_location_id"]]
        path = files[place["file_name_id"]].replace("\\", "/")
        ours = "/fmboost_jax/" in path and "/site-packages/" not in path
        line = (f"{path.rpartition('/fmboost_jax/')[2]}:{place['line']}",) if ours else ()
        # Frames are counted from 1; a parent stands there as its number and one, and before its children.
        found[number] = (line + found.get(frame.get("parent_frame_id", 0) - 1, ()))[:CALLS]
    return found


def _instruction(match: re.Match, sources: dict[int, tuple[str, ...]]) -> Instruction:
    _, name, shape, opcode, rest = match.groups()
    depth, end = 1, len(rest)
    for position, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            end = position
            break
    operands, attributes = rest[:end], rest[end + 1 :]
    cycles, op_name, frame = _CYCLES.search(attributes), _OP_NAME.search(attributes), _FRAME.search(attributes)
    trips, branches = _TRIPS.search(attributes), _BRANCHES.search(attributes)
    return Instruction(
        name=name,
        shape=shape,
        opcode=opcode,
        operands=tuple(_OPERAND.findall(operands)),
        calls=(*_CALLED.findall(attributes), *(_OPERAND.findall(branches[1]) if branches else ())),
        trips=int(trips[1]) if trips else 1,
        cycles=int(cycles[1]) if cycles else 0,
        op_name=op_name[1].replace("\\'", "'") if op_name else "",
        source=sources.get(int(frame[1]), ()) if frame else (),
        attributes=attributes,
    )
