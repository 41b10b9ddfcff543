"""Predict memory and speed of a run on TPUs, without TPUs: XLA's TPU compiler compiles it and estimates cycles.

    python -m fmboost_jax.plan --config configs/cfm1024.py --topology v5e:4x4 --batch-per-chip 8
    python -m fmboost_jax.plan --config configs/cfm1024.py --topology v5p:4x4x4 --sweep
    python -m fmboost_jax.plan --config configs/cfm2048.py --topology v6e:2x2 --mode decode --batch-per-chip 1
    python -m fmboost_jax.plan --mode generate --base sd15-lcm --topology v6e:1x1 --batch-per-chip 1

A train step of full width compiles in about 7 minutes on two cores, once: results stay in ~/.cache/fmboost_jax.
A topology is a kind of chip and the slice's sides in chips, for example v5e:2x2 (4 chips), v5e:16x16 (256),
v5p:2x2x1 (4), v5p:4x4x4 (64), v6e:8x16 (128). Needs libtpu: pip install "fmboost_jax[tpu]". docs/planning.md
explains the numbers.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable

import jax

from fmboost_jax.configuration import parse_arguments
from fmboost_jax.errors import InputError, run
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.parallel.mesh import AXES, make_mesh
from fmboost_jax.planning.compile import cache_folder, compile_for
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
    parser.add_argument(
        "--mode", choices=(*MODES, "generate"), default="train", help="program to plan (default: train)"
    )
    parser.add_argument(
        "--batch-per-chip", type=int, help="images a chip (default: config.train.batch_size divided by chips)"
    )
    parser.add_argument(
        "--steps", type=int, help="integration steps, for --mode sample (default: 4, or 1 for a network with two times)"
    )
    parser.add_argument(
        "--base",
        default="sd15-lcm",
        metavar="NAME",
        help="base model of --mode generate: sd15-lcm, sdxl-lcm, or a diffusers pipeline's folder or hub id "
        "(default: sd15-lcm); it makes images of config.data.low_res pixels",
    )
    parser.add_argument("--base-steps", type=int, default=4, help="its steps (default: 4)")
    parser.add_argument("--method", default="euler", help="fixed-step ODE method, for --mode sample (default: euler)")
    parser.add_argument("--sweep", action="store_true", help="try batch sizes and meshes, recommend one")
    parser.add_argument(
        "--batches",
        type=_batches,
        default=BATCHES,
        metavar="N,N,…",
        help="images a chip to sweep (default: 1,2,4,8,16,32,64)",
    )
    parser.add_argument(
        "--top", type=int, default=10, help="number of the most expensive operations to name (default: 10)"
    )
    parser.add_argument("--hlo", metavar="FILE", help="also write the compiled program's text")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments, config = parse_arguments(
        parser, sys.argv[1:] if argv is None else argv, TrainingConfig, default="cfm1024.py"
    )
    # The programs are traced here and run nowhere: the devices of this machine stay unused, and jax's cache cannot read
    # programs for devices that are absent.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)

    recommended = config.recommended_steps
    steps = recommended if arguments.steps is None else arguments.steps

    def plan_one(sizes: dict[str, int] | None, batch_per_chip: int | None) -> Plan:
        return plan(
            config,
            arguments.topology,
            mode=arguments.mode,
            mesh=sizes,
            batch_per_chip=batch_per_chip,
            solver=Solver(arguments.method, steps),
            top=arguments.top,
            hlo=arguments.hlo,
            name=arguments.config,
        )

    if arguments.mode == "generate":
        print(_plan_generation(arguments, config, Solver(arguments.method, steps)))
        return
    if arguments.sweep:
        _sweep(plan_one, config, tpu_slice(arguments.topology), arguments.batches, arguments.json)
        return
    found = plan_one(None, arguments.batch_per_chip)
    print(json.dumps(dataclasses.asdict(found), indent=2) if arguments.json else describe(found))


def plan(
    config: TrainingConfig,
    topology: str,
    *,
    mode: str = "train",
    mesh: dict[str, int] | None = None,
    batch_per_chip: int | None = None,
    solver: Solver | None = None,
    top: int = 10,
    hlo: str | None = None,
    name: str = "",
) -> Plan:
    """Compile a program for a TPU slice and sum XLA's estimates.

    Args:
        config: of the run.
        topology: slice of TPUs, such as "v5p:4x4x4".
        mode: entry of `fmboost_jax.planning.programs.MODES`. Default: "train".
        mesh: devices along each axis. Default: the config's.
        batch_per_chip: images a chip. Default: the config's batch, divided among the chips.
        solver: of mode "sample". Default: Euler, with the recommended steps of the config's objective.
        top: number of the most expensive operations to name. Default: 10.
        hlo: file for the text of the compiled program. Default: none.
        name: of the config, for the report.

    Raises:
        InputError: an unknown topology or mode, a batch that the mesh does not divide, or numbers below 1.
    """
    if batch_per_chip is not None and batch_per_chip < 1:
        raise InputError(f"the batch per chip is {batch_per_chip}, expected 1 or more")
    tpus = tpu_slice(topology)
    solver = solver or Solver(steps=config.recommended_steps)
    devices = make_mesh(mesh or dataclasses.asdict(config.mesh), tpus.devices)
    if batch_per_chip:
        train = dataclasses.replace(config.train, batch_size=batch_per_chip * len(tpus.devices))
        config = dataclasses.replace(config, train=train)
    print(f"compiling {mode} for {tpus.name}, {config.train.batch_size} images", file=sys.stderr, flush=True)
    lowered = lower(config, mode, devices, solver)
    compiled = compile_for(lowered, tpus.name, devices, cache_folder(config.compilation_cache))
    if hlo and compiled.text:
        with open(hlo, "w", encoding="utf-8") as file:
            file.write(compiled.text)
    return make_plan(name, config, mode, tpus, devices, solver, compiled, top)


def _plan_generation(arguments: argparse.Namespace, config: TrainingConfig, solver: Solver) -> str:
    # Only this mode needs PyTorch.
    from fmboost_jax.planning.generation import describe_parts, plan_generation

    tpus = tpu_slice(arguments.topology)
    batch = (arguments.batch_per_chip or 1) * len(tpus.devices)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=batch))
    devices = make_mesh(dataclasses.asdict(config.mesh), tpus.devices)
    parts = plan_generation(arguments.base, config, tpus, devices, solver, steps=arguments.base_steps)
    if arguments.json:
        return json.dumps([dataclasses.asdict(part) for part in parts], indent=2)
    low, high = config.data.low_res, config.data.high_res
    heading = f"{arguments.base} at {low}², {arguments.base_steps} steps; flow to {high}², {solver.steps} steps"
    return describe_parts(parts, batch, f"{heading}; {tpus.name}, {batch} images")


def _sweep(
    plan_one: Callable[[dict[str, int], int], Plan],
    config: TrainingConfig,
    tpus: Slice,
    batches: tuple[int, ...],
    as_json: bool,
) -> None:
    first = dict(make_mesh(dataclasses.asdict(config.mesh), tpus.devices).shape)
    plans = []
    for found in sweep(plan_one, meshes(len(tpus.devices), first), batches):
        plans.append(found)
        if not as_json:
            print(_row(found), flush=True)
    best = recommend(plans)
    if as_json:
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
