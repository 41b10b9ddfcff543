"""Measurements on one GPU or TPU in ten minutes: the flow and the decoder at 1024², and training.

    python -m bench.accelerator --out RESULTS.jsonl
    python -m bench.accelerator --out RESULTS.jsonl --peers        # and the PyTorch reference model, on a GPU
    python -m bench.accelerator --out /tmp/rehearsal.jsonl --small           # on any machine, a minute

The programs are compiled side by side, then measured one after another, the most important first. Each row is written
at once, so an interruption loses no finished row. After `--minutes` no other measurement begins;
compilation is not bounded. A row has the median seconds, the seconds of compilation, images a second, MFU on
chips whose peak is known, and the process's peak memory on the device so far. `--small` uses a narrow network and small
latents, to test that every part runs.

On a TPU, compare `train` with the predictions in bench/tpu.md.
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bench.alternation import Child, Implementation
from bench.networks import Work, sampling, write_weights
from fmboost_jax.configuration import read_config
from fmboost_jax.errors import run
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.parallel.mesh import make_mesh
from fmboost_jax.planning.programs import lower
from fmboost_jax.planning.report import model_flops
from fmboost_jax.planning.topologies import CHIPS
from fmboost_jax.training.config import TrainingConfig

# bfloat16 FLOP a second, dense. GPUs: the vendor's data sheets.
PEAKS = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "TPU v5 lite": CHIPS["v5e"].peak,
    "TPU v5": CHIPS["v5p"].peak,
    "TPU v6 lite": CHIPS["v6e"].peak,
}
SMALL = (
    "--config.unet.model_channels=32",
    "--config.unet.channel_mult=(1,2)",
    "--config.unet.num_res_blocks=1",
    "--config.data.low_res=64",
    "--config.data.high_res=128",
)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "bench.accelerator", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="JSON lines, appended to")
    parser.add_argument("--minutes", type=float, default=10, help="time in all (default: 10)")
    parser.add_argument("--repeats", type=int, default=10, help="runs of each program after its first (default: 10)")
    parser.add_argument("--small", action="store_true", help="a rehearsal with a narrow network")
    parser.add_argument("--peers", action="store_true", help="compare the first part with PyTorch's reference model")
    parser.add_argument("--parts", type=int, help="measure the first ones alone, for less time (default: all)")
    arguments = parser.parse_args()
    end = time.perf_counter() + 60 * arguments.minutes
    chosen = list(parts(arguments.small))[: arguments.parts]
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(arguments.out.open("a", encoding="utf-8"))
        pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
        children = (
            [stack.enter_context(Child(peer)) for peer in peers(arguments.small, stack)] if arguments.peers else []
        )
        print(f"compiling {len(chosen)} programs", flush=True)
        prepared = pool.submit(lambda: [child.prepare() for child in children])
        programs = [pool.submit(compiled, part) for part in chosen]
        # All before the first measurement: the compiler tries kernels on the device.
        wait([prepared, *programs])

        def write(name: str, measure: Callable[[], dict[str, Any]]) -> None:
            if time.perf_counter() > end:
                print(f"{name}: not begun, the time is over")
                return
            try:
                row = measure()
            # Too little memory for a batch is a result, too.
            except jax.errors.JaxRuntimeError as error:
                row = {"failure": str(error).splitlines()[0]}
            row = {"part": name, "device": jax.devices()[0].device_kind, "jax": jax.__version__, **row}
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(json.dumps(row), flush=True)

        for part, program in zip(chosen, programs, strict=True):
            write(part.name, functools.partial(measured, part, program, arguments.repeats))
        for child in children:
            name = f"{chosen[0].name}: {child.name}"
            write(name, functools.partial(compared, chosen[0], programs[0], child, arguments.repeats))


class Part(NamedTuple):
    """One program to measure; its batch is the config's."""

    name: str
    config: TrainingConfig
    mode: str
    solver: Solver


def parts(small: bool) -> Iterator[Part]:
    """The parts, the most important first."""
    overrides = SMALL if small else ()

    def part(name: str, mode: str, batch: int, steps: int = 1) -> Part:
        words = [*overrides, f"--config.train.batch_size={batch}", "--config.unet.dtype=bfloat16"]
        config = read_config("cfm1024.py", [*words, "--config.first_stage.dtype=bfloat16"], TrainingConfig)
        return Part(f"{name}, batch {batch}", config, mode, Solver("euler", steps))

    for batch, training in ((1, 32), (4, 128)):
        yield part("flow of 40 Euler steps", "sample", batch, 40)
        yield part("decoder", "decode", batch)
        yield part("training step", "train", training)
    for batch, training in ((1, 16), (4, 8)):
        yield part("flow of 4 Euler steps", "sample", batch, 4)
        yield part("flow of 20 Euler steps", "sample", batch, 20)
        yield part("training step", "train", training)
    yield part("training step", "train", 4)


def peers(small: bool, stack: contextlib.ExitStack) -> list[Implementation]:
    """The PyTorch reference model at the work of the first part, with random weights."""
    weights = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / "unet.safetensors"
    config: dict[str, Any] = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1} if small else {}
    with jax.default_device(jax.devices("cpu")[0]):
        write_weights(weights, config)
    return sampling(Work(weights, config, batch=1, latent=16 if small else 128, steps=40))[1:]


class Program(NamedTuple):
    """A part's program, and the seconds of lowering and compiling it."""

    lowered: jax.stages.Lowered
    compiled: jax.stages.Compiled
    seconds: float


def compiled(part: Part) -> Program:
    """A part's program for the first device."""
    started = time.perf_counter()
    lowered = lower(part.config, part.mode, one_device(), part.solver)
    return Program(lowered, lowered.compile(), time.perf_counter() - started)


def one_device() -> Mesh:
    """A mesh of the first device."""
    return make_mesh({"data": 1, "fsdp": 1, "spatial": 1}, jax.devices()[:1])


def runner(part: Part, program: Program) -> Callable[[], float]:
    """A function that runs a part's program on random arrays and returns the seconds; its first run is over."""
    arguments = list(random_arguments(program.lowered, one_device()))

    def once() -> float:
        started = time.perf_counter()
        result = jax.block_until_ready(program.compiled(*arguments))
        if part.mode == "train":  # The state was donated.
            arguments[0] = result[0]
        return time.perf_counter() - started

    once()
    return once


def measured(part: Part, compilation: "Future[Program]", repeats: int) -> dict[str, Any]:
    """The row of a part.

    Raises:
        JaxRuntimeError: the compilation failed, or there is too little memory.
    """
    program = compilation.result()
    once = runner(part, program)
    seconds = statistics.median(once() for _ in range(repeats))
    device = jax.devices()[0]
    images = part.config.train.batch_size
    row = {"seconds": seconds, "compile_seconds": program.seconds, "images_per_second": images / seconds}
    if peak := PEAKS.get(device.device_kind):
        row["mfu"] = model_flops(part.config, part.mode, part.solver) / seconds / peak
    if statistics_ := device.memory_stats():
        row["peak_bytes"] = statistics_["peak_bytes_in_use"]
    return row


def compared(part: Part, compilation: "Future[Program]", peer: Child, repeats: int) -> dict[str, Any]:
    """The row of a peer that alternates with a part's program; errors as for `measured`."""
    once = runner(part, compilation.result())
    pairs = [(once(), peer.ask("run")) for _ in range(repeats)]
    if peer.failure:
        return {"failure": peer.failure}
    ours, seconds = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {"seconds": seconds, "ours": ours, "ratio": seconds / ours}


def random_arguments(lowered: jax.stages.Lowered, mesh: Mesh) -> tuple[Any, ...]:
    """Arrays of the shapes that a lowered program takes: small random floats, ones elsewhere, keys."""
    positional, keywords = lowered.args_info
    assert not keywords
    # Repeated in each array: drawing hundreds of millions of numbers takes seconds. Second moments of the optimizer,
    # among others, are not negative.
    values = np.abs(0.02 * np.random.default_rng(0).standard_normal(2**20, np.float32))

    def draw(shape: tuple[int, ...], dtype: Any):
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(0), shape)
        if jnp.issubdtype(dtype, np.floating):
            return jnp.asarray(np.resize(values, shape).astype(dtype))
        return jnp.ones(shape, dtype)

    with jax.default_device(mesh.devices.flat[0]):
        return jax.tree.map(lambda a: draw(a.shape, a.dtype), positional)


if __name__ == "__main__":
    run(main)
