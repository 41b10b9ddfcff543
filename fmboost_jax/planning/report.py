"""A plan: predicted memory and speed of one run, as text and as JSON."""

import dataclasses

from jax.sharding import Mesh

from fmboost_jax.errors import InputError
from fmboost_jax.flow.solvers import Solver, evaluations
from fmboost_jax.planning import costs
from fmboost_jax.planning.collectives import collectives, summary
from fmboost_jax.planning.compile import Compiled
from fmboost_jax.planning.hlo import parse
from fmboost_jax.planning.programs import first_stage, recipe_of
from fmboost_jax.planning.topologies import Slice
from fmboost_jax.tables import size, table
from fmboost_jax.training.config import TrainingConfig

STEPS = 1_000_000
NAMED_CATEGORIES = 12


@dataclasses.dataclass(frozen=True)
class Memory:
    """HBM of one chip in bytes: the parts of a compiled program, or the total of one that does not fit."""

    arguments: int | None
    temporaries: int | None
    outputs: int | None
    code: int | None
    total: int
    available: int
    share: float
    fits: bool

    @classmethod
    def from_compiled(cls, compiled: Compiled, available: int) -> "Memory":
        """Build from the compiler's result; donated arguments do not count as outputs."""
        parts = compiled.memory
        if not parts:
            total, named = compiled.wanted, (None, None, None, None)
        else:
            outputs = max(0, parts["output"] - parts["alias"])
            named = (parts["argument"], parts["temp"], outputs, parts["generated_code"])
            total = sum(named)
        return cls(*named, total, available, total / available, bool(parts) and total <= available)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Predicted speed of a program that fits.

    Attributes:
        cycles: sum of the compiler's `estimated_cycles`, loops by their trips.
        compute_seconds: cycles divided by the chip's clock.
        collective_seconds: communication that no computation hides (our model).
        seconds: the sum, for one step or one batch sampled or decoded.
        flops: FLOPs of the compiled program's convolutions and matrix products on all chips.
        model_flops: FLOPs by the model's own count; a train step is three forward passes.
        mfu: model FLOPs utilisation: model_flops over the chips' peak FLOPs in `seconds`.
        images_per_second: batch divided by `seconds`.
        days: time of a million steps.
        categories: cycles by `fmboost_jax.planning.costs.by_category`.
        collectives: rows of `fmboost_jax.planning.collectives.summary`.
        operations: the most expensive operations, with their source lines.
        unknown_loops: number of loops of unknown length, each counted as one run.
    """

    cycles: int
    compute_seconds: float
    collective_seconds: float
    seconds: float
    flops: int
    model_flops: int
    mfu: float
    images_per_second: float
    days: float
    categories: dict[str, int]
    collectives: list[dict]
    operations: list[dict]
    unknown_loops: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """One program on one slice; `prediction` is None where it does not fit."""

    config: str
    mode: str
    topology: str
    chips: int
    mesh: dict[str, int]
    batch_per_chip: float
    batch: int
    memory: Memory
    prediction: Prediction | None
    compile_seconds: float
    cached: bool


def make_plan(
    name: str,
    config: TrainingConfig,
    mode: str,
    tpus: Slice,
    mesh: Mesh,
    solver: Solver,
    compiled: Compiled,
    top: int,
) -> Plan:
    """Make a plan from the compiler's result.

    Args:
        name: the config's name on the command line.
        config: the config, with the total batch as `train.batch_size`.
        mode: the program, one of `MODES`.
        tpus: the slice.
        mesh: mesh of the slice's devices.
        solver: solver of mode "sample".
        compiled: the compiler's result.
        top: number of the most expensive operations to list.
    """
    prediction = None
    if compiled.text:
        prediction = _predict(config, mode, tpus, solver, compiled.text, top)
    return Plan(
        name,
        mode,
        tpus.name,
        len(tpus.devices),
        dict(mesh.shape),
        config.train.batch_size / len(tpus.devices),
        config.train.batch_size,
        Memory.from_compiled(compiled, tpus.chip.memory),
        prediction,
        compiled.seconds,
        compiled.cached,
    )


def _predict(config: TrainingConfig, mode: str, tpus: Slice, solver: Solver, text: str, top: int) -> Prediction:
    program = parse(text)
    found = costs.operations(program)
    communication = collectives(program, found, tpus)
    cycles, chips, batch = costs.total_cycles(found), len(tpus.devices), config.train.batch_size
    compute, exposed = cycles / tpus.chip.clock, sum(c.runs * c.exposed for c in communication)
    seconds = compute + exposed
    expected = model_flops(config, mode, solver)
    return Prediction(
        cycles=cycles,
        compute_seconds=compute,
        collective_seconds=exposed,
        seconds=seconds,
        flops=costs.total_flops(found) * chips,
        model_flops=expected,
        mfu=expected / (seconds * chips * tpus.chip.peak),
        images_per_second=batch / seconds,
        days=seconds * STEPS / 86400,
        categories=costs.by_category(found),
        collectives=summary(communication),
        operations=[_operation(operation, tpus) for operation in costs.most_expensive(found, top)],
        unknown_loops=sum(operation.unknown_length for operation in found),
    )


def model_flops(config: TrainingConfig, mode: str, solver: Solver) -> int:
    """Count the model's FLOPs for `config.train.batch_size` images.

    A backward pass counts as two forward passes; recomputation does not count.
    """
    stage = first_stage(config)
    height, width, _ = recipe_of(config, stage).high_shape
    batch = config.train.batch_size
    if mode == "decode":
        flops = stage.model.decoder_flops(height, width)
        if not flops:
            raise InputError(f"first stage {stage.kind!r} has no network to decode with; plan another mode")
        return batch * flops
    passes = 3 if mode == "train" else evaluations(solver.method, solver.steps)
    return batch * passes * config.architecture.flops(height, width)


def _operation(operation: costs.Operation, tpus: Slice) -> dict:
    instruction = operation.instruction
    seconds = operation.cycles / tpus.chip.clock
    return {
        "name": instruction.name,
        "category": operation.category,
        "cycles": operation.cycles,
        "runs": operation.runs,
        "of_peak": operation.flops * operation.runs / (seconds * tpus.chip.peak) if seconds else 0.0,
        "shape": instruction.shape,
        "op_name": instruction.op_name,
        "source": list(instruction.source),
    }


def describe(plan: Plan) -> str:
    """Format the plan as text."""
    memory, prediction = plan.memory, plan.prediction
    rows = {
        "program": f"{plan.mode}, {plan.config}",
        "chips": f"{plan.chips}, {plan.topology}",
        "mesh": ", ".join(f"{axis} {length}" for axis, length in plan.mesh.items()),
        "batch": f"{plan.batch_per_chip:g} a chip, {plan.batch} in all",
        "HBM a chip": _memory(memory),
        "compiled": f"in {plan.compile_seconds:.0f} s" + (", read from the cache" if plan.cached else ""),
    }
    if prediction is None:
        return table(rows)
    work = "step" if plan.mode == "train" else "batch"
    rows |= {
        "FLOPs": f"{size(prediction.flops, 'FLOP')} a {work}; the model's own count is "
        f"{size(prediction.model_flops, 'FLOP')}, {prediction.model_flops / prediction.flops:.0%} of it",
        "time": f"{prediction.seconds * 1e3:.2f} ms a {work}: {prediction.compute_seconds * 1e3:.2f} ms for "
        f"{prediction.cycles:,} cycles, {prediction.collective_seconds * 1e3:.2f} ms for collectives not hidden",
        "MFU": f"{prediction.mfu:.1%}",
        "speed": f"{prediction.images_per_second:,.1f} images/s"
        + (f", {STEPS:,} steps in {prediction.days:.2f} days" if plan.mode == "train" else ""),
    }
    if prediction.unknown_loops:
        rows["not known"] = f"the length of {prediction.unknown_loops} loop(s), each counted as one run"
    named = list(prediction.categories.items())
    parts = dict(named[:NAMED_CATEGORIES]) | {"all others": sum(cycles for _, cycles in named[NAMED_CATEGORIES:])}
    shares = {name: f"{cycles / prediction.cycles:6.1%} {cycles:>14,}" for name, cycles in parts.items()}
    sections = [
        table(rows),
        "Cycles:\n" + table(shares),
        "Collectives a " + work + ":\n" + _collectives(prediction.collectives),
        f"The {len(prediction.operations)} most expensive operations:\n"
        + "\n".join(_lines(operation, prediction.cycles) for operation in prediction.operations),
    ]
    return "\n\n".join(sections)


def _memory(memory: Memory) -> str:
    of = f"{size(memory.available)}: {'fits' if memory.fits else 'DOES NOT FIT'}"
    if memory.arguments is None:
        return f"{size(memory.total)} needed, {memory.share:.0%} of {of}"
    rest = f"{size(memory.outputs or 0)} outputs, {size(memory.code or 0)} program"
    return (
        f"{size(memory.total)}, {memory.share:.0%} of {of} ({size(memory.arguments)} arguments, "
        f"{size(memory.temporaries or 0)} temporaries, {rest})"
    )


def _collectives(rows: list[dict]) -> str:
    if not rows:
        return "  none"
    return "\n".join(
        f"  {row['count']:>5} × {row['kind']} over {row['chips']} chips, {size(row['bytes'])}: "
        f"{row['seconds'] * 1e3:.2f} ms on the links, "
        + (f"overlapped but for {row['exposed_seconds'] * 1e3:.2f} ms" if row["overlapped"] else "not overlapped")
        for row in rows
    )


def _lines(operation: dict, cycles: int) -> str:
    runs = f" in {operation['runs']} runs" if operation["runs"] > 1 else ""
    peak = f", {operation['of_peak']:.0%} of the peak" if operation["of_peak"] else ""
    shape = operation["shape"]
    return (
        f"  {operation['cycles'] / cycles:5.1%} {operation['cycles']:>12,} cycles{runs}{peak}  {operation['name']} "
        f"({operation['category']})\n"
        f"         {shape if len(shape) < 150 else shape[:150] + ' …'}\n"
        f"         {operation['op_name']}  {' < '.join(operation['source'])}"
    )
