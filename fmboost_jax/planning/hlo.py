"""A parser of compiled programs: computations, their instructions, and the compiler's estimates of cycles.

The text is XLA's HLO (openxla.org/xla/operation_semantics), as `compiled.as_text()` returns it.
"""

import dataclasses
import math
import re
from collections.abc import Iterable

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_OPERAND = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b([a-z]+\d*)\w*\[([\d,]*)\]")
# A row of the tables before the computations: `7 "path"`, `3 {file_name_id=4 function_name_id=2 line=41 …}`.
_ROW = re.compile(r'(\d+) (?:"(.*)"|\{(.*)\})$')
_BITS = {"pred": 8, "c64": 64, "c128": 128, "token": 0}
# Calls of this package that an instruction's source lists at most.
CALLS = 4


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: unique in the program.
        shape: element type, dimensions and layout, as in the text.
        opcode: such as `fusion`, `all-reduce-start`.
        operands: names of instructions that it reads.
        literal: the text between its parentheses: a constant's value, a parameter's number.
        calls: names of the computations that it calls: a loop's body, a conditional's branches.
        cycles: the compiler's estimate; 0 where there is none.
        op_name: the JAX operation that it comes from.
        source: `file:line` of the innermost calls in this package, the innermost first.
        attributes: the rest of the line.
        is_root: whether it is the result of its computation.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    literal: str
    calls: tuple[str, ...]
    cycles: int
    op_name: str
    source: tuple[str, ...]
    attributes: str
    is_root: bool


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, each a list of instructions in the order of the schedule."""

    entry: str
    computations: dict[str, list[Instruction]]

    def trips(self, loop: Instruction, caller: str) -> int | None:
        """Return the trip count of a `while` instruction of computation `caller`; None where it is unknown.

        It is known for loops that count a variable up by one between constants.
        """
        if known := _TRIPS.search(loop.attributes):
            return int(known[1])
        condition = self.by_name(match_of(_CONDITION, loop.attributes)[1])
        test = next(instruction for instruction in condition.values() if instruction.is_root)
        if test.opcode != "compare" or "direction=LT" not in test.attributes:
            return None
        carried = self.by_name(caller).get(loop.operands[0])
        ends = []
        for name in test.operands:
            found = condition[name]
            if found.opcode == "get-tuple-element" and carried is not None:
                index = int(match_of(r"index=(\d+)", found.attributes)[1])
                ends.append(self._constant(caller, carried.operands[index]))
            else:
                ends.append(int(found.literal) if found.opcode == "constant" else None)
        return None if None in ends else max(0, ends[1] - ends[0])

    def by_name(self, computation: str) -> dict[str, Instruction]:
        """A computation's instructions by their names."""
        return {instruction.name: instruction for instruction in self.computations[computation]}

    def _constant(self, computation: str, name: str) -> int | None:
        """Value of an integer constant, or of a copy of one."""
        instructions = self.by_name(computation)
        found = instructions.get(name)
        while found is not None and found.opcode in ("copy", "copy-start", "copy-done", "bitcast"):
            found = instructions.get(found.operands[0])
        if found is None or found.opcode != "constant" or not re.fullmatch(r"-?\d+", found.literal):
            return None
        return int(found.literal)


def arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """Element type and dimensions of a shape's arrays; a tuple has several."""
    return [(kind, tuple(int(side) for side in sides.split(",") if side)) for kind, sides in _ARRAY.findall(shape)]


def size_in_bytes(found: Iterable[tuple[str, tuple[int, ...]]]) -> int:
    """Bytes of arrays, without padding."""
    return sum(math.prod(sides) * _bits(kind) // 8 for kind, sides in found)


def match_of(pattern: re.Pattern | str, text: str) -> re.Match:
    """Return the first match of a pattern.

    Raises:
        ValueError: no match; XLA writes its programs in another form.
    """
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"the program's text has no {pattern} in {text[:200]!r}; another version of XLA?")
    return found


def _bits(kind: str) -> int:
    return _BITS[kind] if kind in _BITS else int(match_of(r"\d+", kind)[0])


def parse(text: str) -> Program:
    """Parse the text of `compiled.as_text()`."""
    tables: dict[str, dict] = {}
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
    """Map each stack frame to `file:line` of its innermost calls in this package."""
    files, places, frames = (tables.get(name, {}) for name in ("FileNames", "FileLocations", "StackFrames"))
    found: dict[int, tuple[str, ...]] = {}
    for number, frame in frames.items():
        place = places[frame["file_location_id"]]
        path = files[place["file_name_id"]].replace("\\", "/")
        ours = "/fmboost_jax/" in path and "/site-packages/" not in path
        line = (f"{path.rpartition('/fmboost_jax/')[2]}:{place['line']}",) if ours else ()
        # Frames count from 1. A parent is listed before its children, who refer to it by its number plus one.
        found[number] = (line + found.get(frame.get("parent_frame_id", 0) - 1, ()))[:CALLS]
    return found


def _instruction(match: re.Match, sources: dict[int, tuple[str, ...]]) -> Instruction:
    root, name, shape, opcode, rest = match.groups()
    depth, end = 1, len(rest)
    for position, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            end = position
            break
    inside, attributes = rest[:end], rest[end + 1 :]
    cycles, op_name, frame = _CYCLES.search(attributes), _OP_NAME.search(attributes), _FRAME.search(attributes)
    branches = _BRANCHES.search(attributes)
    return Instruction(
        name=name,
        shape=shape,
        opcode=opcode,
        operands=tuple(_OPERAND.findall(inside)),
        literal=inside,
        calls=(*_CALLED.findall(attributes), *(_OPERAND.findall(branches[1]) if branches else ())),
        cycles=int(cycles[1]) if cycles else 0,
        op_name=op_name[1].replace("\\'", "'") if op_name else "",
        source=sources.get(int(frame[1]), ()) if frame else (),
        attributes=attributes,
        is_root=bool(root),
    )
