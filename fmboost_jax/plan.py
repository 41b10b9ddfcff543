"""What a run would need on TPUs and how fast it would be, told without any: XLA's TPU compiler compiles the very
program that would run, and its own estimates are added up.

    python -m fmboost_jax.plan --config configs/cfm1024.py --topology v5e:4x4 --batch-per-chip 8
    python -m fmboost_jax.plan --config configs/cfm1024.py --topology v5p:4x4x4 --sweep
    python -m fmboost_jax.plan --config configs/cfm2048.py --topology v6e:2x2 --mode decode --batch-per-chip 1

A train step of full width compiles in about 7 minutes on two cores, once: results are kept in ~/.cache/fmboost_jax.
A topology is a kind of chip and the slice's sides in chips, for example v5e:2x2 (4 chips), v5e:16x16 (256),
v5p:2x2x1 (4), v5p:4x4x4 (64), v6e:8x16 (128). Needs libtpu: pip install "fmboost_jax[tpu]". What the numbers are made
of: docs/planning.md.
"""

import argparse
import dataclasses
import json
import sys

import jax

from fmboost_jax.configuration import parse_arguments
from fmboost_jax.errors import InputError, run
from fmboost_jax.flow.objectives import make_objective, recommended_steps
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.parallel.mesh import AXES, make_mesh
from fmboost_jax.planning.compile import compile_for, kept_folder
from fmboost_jax.planning.programs import MODES, lower
from fmboost_jax.planning.report import Plan, describe, make_plan
from fmboost_jax.planning.sweep import BATCHES, meshes, recommend, sweep
from fmboost_jax.planning.topologies import Slice, tpu_slice
from fmboost_jax.training.config import TrainingConfig


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "fmboost_jax.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", required=True, metavar="KIND:SIDES", help="slice of TPUs, such as v5p:4x4x4")
    parser.add_argument("--mode", choices=MODES, default="train", help="which program (train)")
    parser.add_argument(
        "--batch-per-chip", type=int, help="images a chip; config.train.batch_size is shared out unless told"
    )
    parser.add_argument(
        "--steps", type=int, help="integration steps, for --mode sample (default: 4, or 1 for a network with two times)"
    )
    parser.add_argument("--method", default="euler", help="fixed-step ODE method, for --mode sample (default: euler)")
    parser.add_argument("--sweep", action="store_true", help="try batch sizes and meshes, recommend one")
    parser.add_argument(
        "--batches", type=_batches, default=BATCHES, metavar="N,N,…", help="batches a chip to sweep (1,2,4,8,16,32,64)"
    )
    parser.add_argument("--top", type=int, default=10, help="how many of the dearest operations to name (10)")
    parser.add_argument("--hlo", metavar="FILE", help="also write the compiled program's text")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments, config = parse_arguments(parser, sys.argv[1:] if argv is None else argv, TrainingConfig)
    for name in ("batch_per_chip", "steps"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}, expected 1 or more")
    # What is traced here runs nowhere; this machine's own devices are left alone, and jax cannot read what it would
    # keep of a program for a machine that is not there.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    tpus = tpu_slice(arguments.topology)
    if arguments.sweep:
        _sweep(arguments, config, tpus)
        return
    plan = _plan(arguments, config, tpus, dataclasses.asdict(config.mesh), arguments.batch_per_chip)
    print(json.dumps(dataclasses.asdict(plan), indent=2) if arguments.json else describe(plan))


def _plan(arguments, config: TrainingConfig, tpus: Slice, sizes: dict[str, int], batch_per_chip: int | None) -> Plan:
    """The plan of one mesh and one batch."""
    mesh = make_mesh(sizes, tpus.devices)
    if batch_per_chip:
        train = dataclasses.replace(config.train, batch_size=batch_per_chip * len(tpus.devices))
        config = dataclasses.replace(config, train=train)
    solver = Solver(arguments.method, arguments.steps or recommended_steps(make_objective(config.objective)))
    print(f"compiling {arguments.mode} for {tpus.name}, {config.train.batch_size} images", file=sys.stderr, flush=True)
    lowered = lower(config, arguments.mode, mesh, solver)
    compiled = compile_for(lowered, tpus.name, mesh, kept_folder(config.compilation_cache))
    if arguments.hlo and compiled.text:
        with open(arguments.hlo, "w", encoding="utf-8") as file:
            file.write(compiled.text)
    return make_plan(arguments.config, config, arguments.mode, tpus, mesh, solver, compiled, arguments.top)


def _sweep(arguments, config: TrainingConfig, tpus: Slice) -> None:
    first = dict(make_mesh(dataclasses.asdict(config.mesh), tpus.devices).shape)
    plans = []
    for plan in sweep(
        lambda sizes, batch: _plan(arguments, config, tpus, sizes, batch),
        meshes(len(tpus.devices), first),
        arguments.batches,
    ):
        plans.append(plan)
        if not arguments.json:
            print(_row(plan), flush=True)
    best = recommend(plans)
    if arguments.json:
        rows = [dataclasses.asdict(plan) for plan in plans]
        print(json.dumps({"plans": rows, "recommended": plans.index(best) if best else None}, indent=2))
    elif best is None:
        print("\nNothing fits: try more chips, --config.unet.remat=True or --config.optim.accumulate")
    else:
        words = " ".join(f"--config.mesh.{axis}={best.mesh[axis]}" for axis in AXES)
        print(f"\nRecommended: --config.train.batch_size={best.batch} {words}\n\n{describe(best)}")


def _row(plan: Plan) -> str:
    mesh = " × ".join(f"{axis} {length}" for axis, length in plan.mesh.items())
    start = f"{mesh}, {plan.batch_per_chip:g} a chip: {plan.memory.share:4.0%} of HBM"
    if plan.prediction is None:
        return f"{start}, does not fit"
    return (
        f"{start}, {plan.prediction.seconds * 1e3:.2f} ms, MFU {plan.prediction.mfu:.1%}, "
        f"{plan.prediction.images_per_second:,.1f} images/s"
    )


def _batches(text: str) -> tuple[int, ...]:
    batches = tuple(sorted(int(number) for number in text.split(",")))
    if batches[0] < 1:
        raise argparse.ArgumentTypeError(f"batches must be positive, found {text}")
    return batches


if __name__ == "__main__":
    run(main)
