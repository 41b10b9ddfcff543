"""What a run would cost on TPUs, told without one: XLA's TPU compiler compiles the very program that would run.

python -m fmboost_jax.plan --config configs/cfm1024.py --topology v5e:2x2 --batch_per_chip 8
"""

import argparse
import sys
import time

from fmboost_jax.configuration import parse_arguments
from fmboost_jax.errors import run
from fmboost_jax.parallel.mesh import make_mesh
from fmboost_jax.planning.costs import by_category, dearest, operations, total_cycles
from fmboost_jax.planning.hlo import parse
from fmboost_jax.planning.programs import MODES, Integration, lower
from fmboost_jax.planning.topologies import tpu_slice
from fmboost_jax.training.logs import size, table


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "fmboost_jax.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", required=True, metavar="KIND:SIDES", help="slice of TPUs, such as v5p:4x4x4")
    parser.add_argument("--mode", choices=MODES, default="train", help="which program (train)")
    parser.add_argument("--batch_per_chip", type=int, help="images a chip; the config's batch shared out unless told")
    parser.add_argument("--steps", type=int, default=4, help="of the integration grid, for --mode sample (4)")
    parser.add_argument("--method", default="euler", help="of the integration, for --mode sample (euler)")
    parser.add_argument("--top", type=int, default=10, help="how many of the dearest operations to name (10)")
    parser.add_argument("--hlo", metavar="FILE", help="where to write the compiled program's text")
    arguments, config = parse_arguments(parser, sys.argv[1:] if argv is None else argv)
    tpus = tpu_slice(arguments.topology)
    mesh = make_mesh(config.mesh, tpus.devices)
    if arguments.batch_per_chip:
        config.train.batch_size = arguments.batch_per_chip * len(tpus.devices)
    started = time.perf_counter()
    lowered = lower(config, arguments.mode, mesh, Integration(arguments.method, arguments.steps))
    print(f"lowered in {time.perf_counter() - started:.1f} s", file=sys.stderr)
    compiled = lowered.compile()
    print(f"compiled in {time.perf_counter() - started:.1f} s", file=sys.stderr)
    text = compiled.as_text()
    if arguments.hlo:
        with open(arguments.hlo, "w", encoding="utf-8") as file:
            file.write(text)
    found, memory = operations(parse(text)), compiled.memory_analysis()
    cycles = total_cycles(found)
    print(
        table(
            {
                "chips": f"{len(tpus.devices)} × {tpus.chip.name}",
                "mesh": ", ".join(f"{axis} {length}" for axis, length in mesh.shape.items()),
                "batch": f"{config.train.batch_size} in all",
                "HBM a chip": f"{size(memory.argument_size_in_bytes)} arguments, "
                f"{size(memory.temp_size_in_bytes)} temporaries",
                "step": f"{cycles:,} cycles, {cycles / tpus.chip.clock * 1e3:.2f} ms",
            }
        )
    )
    print(table({name: f"{part / cycles:6.1%} {part:>12,}" for name, part in list(by_category(found).items())[:25]}))
    for operation in dearest(found, arguments.top):
        i = operation.instruction
        print(
            f"{operation.cycles / cycles:6.2%} {operation.cycles:>11,} ×{operation.runs} {operation.category}: "
            f"{i.name}\n        {i.shape[:160]}\n        {i.op_name} {' < '.join(i.source)}"
        )


if __name__ == "__main__":
    run(main)
