"""A plan: what one run would need and how fast it would be, for people and, as JSON, for machines."""

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
    """HBM of one chip in bytes: a compiled program's parts, or in all what one that does not fit wanted."""

    arguments: int | None
    temporaries: int | None
    outputs: int | None
    code: int | None
    total: int
    available: int
    share: float
    fits: bool

    @classmethod
    def of(cls, compiled: Compiled, available: int) -> "Memory":
        """Of what the compiler says; outputs without those that take an argument's place."""
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
    """How fast a program that fits would be.

    Attributes:
        cycles: sum of the compiler's `estimated_cycles`, loops by their trips.
        compute_seconds: these over the chip's clock.
        collective_seconds: what collectives need on the links beside, as far as nothing hides it (our model).
        seconds: both: one step, or one batch sampled or decoded.
        flops: of the compiled program's convolutions and matrix products, all chips.
        model_flops: the model's own count; a train step is three forward passes.
        mfu: model_flops over what the chips could do in `seconds`.
        images_per_second: batch over `seconds`.
        days: of a million steps.
        categories: cycles by `fmboost_jax.planning.costs.by_category`.
        collectives: rows of `fmboost_jax.planning.collectives.summary`.
        operations: the dearest, with their source lines.
        unknown_loops: loops whose length is not known, each counted as one run.
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
    kept: bool


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
    """What the compiler's result says.

    Args:
        name: of the config, as it was asked for.
        config: with `train.batch_size` images in all.
        mode: which program.
        tpus: the slice that it was compiled for.
        mesh: over the slice's devices.
        solver: of mode "sample".
        compiled: the compiler's result.
        top: how many of the most expensive operations to name.
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
        Memory.of(compiled, tpus.chip.memory),
        prediction,
        compiled.seconds,
        compiled.kept,
    )


def _predict(config: TrainingConfig, mode: str, tpus: Slice, solver: Solver, text: str, top: int) -> Prediction:
    program = parse(text)
    found = costs.operations(program)
    talk = collectives(program, found, tpus)
    cycles, chips, batch = costs.total_cycles(found), len(tpus.devices), config.train.batch_size
    compute, exposed = cycles / tpus.chip.clock, sum(c.runs * c.exposed for c in talk)
    seconds = compute + exposed
    own = model_flops(config, mode, solver)
    return Prediction(
        cycles=cycles,
        compute_seconds=compute,
        collective_seconds=exposed,
        seconds=seconds,
        flops=costs.total_flops(found) * chips,
        model_flops=own,
        mfu=own / (seconds * chips * tpus.chip.peak),
        images_per_second=batch / seconds,
        days=seconds * STEPS / 86400,
        categories=costs.by_category(found),
        collectives=summary(talk),
        operations=[_operation(operation, tpus) for operation in costs.dearest(found, top)],
        unknown_loops=sum(operation.endless for operation in found),
    )


def model_flops(config: TrainingConfig, mode: str, solver: Solver) -> int:
    """The model's own count for `config.train.batch_size` images: a backward pass is twice a forward one; what is
    recomputed does not count."""
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
    """The plan for people."""
    memory, prediction = plan.memory, plan.prediction
    rows = {
        "program": f"{plan.mode}, {plan.config}",
        "chips": f"{plan.chips}, {plan.topology}",
        "mesh": ", ".join(f"{axis} {length}" for axis, length in plan.mesh.items()),
        "batch": f"{plan.batch_per_chip:g} a chip, {plan.batch} in all",
        "HBM a chip": _memory(memory),
        "compiled": f"in {plan.compile_seconds:.0f} s" + (", kept from an earlier plan" if plan.kept else ""),
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
        return f"{size(memory.total)} wanted, {memory.share:.0%} of {of}"
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
