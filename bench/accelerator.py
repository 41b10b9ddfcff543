"""Measurements on one GPU or TPU in ten minutes: the flow and the decoder at 1024², and training.

    python -m bench.accelerator --out RESULTS.jsonl
    python -m bench.accelerator --out RESULTS.jsonl --minutes 10 --peers     # and the PyTorch reference model on a GPU
    python -m bench.accelerator --out /tmp/rehearsal.jsonl --small           # on any machine, a minute

The most important parts come first. Each row is written as soon as it is measured, so an interruption loses none.
No part begins when the time is over. A row has the median seconds, the seconds of compilation, images a second, MFU on
chips whose peak is known, and the device's peak memory. `--small` uses a narrow network and small latents, to test that
every part runs.

On a TPU, compare `train` with the predictions in bench/tpu.md.
"""

import argparse
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bench import sample
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
BATCHES, STEPS, TRAINING_BATCHES = (1, 4), (4, 20, 40), (8, 16, 32, 4)
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
    parser.add_argument("--peers", action="store_true", help="end with python -m bench.sample, on a GPU with PyTorch")
    arguments = parser.parse_args()
    end = time.perf_counter() + 60 * arguments.minutes
    with arguments.out.open("a", encoding="utf-8") as file:
        for name, measure in parts(arguments.small, arguments.repeats):
            if time.perf_counter() > end:
                print(f"{name}: not begun, the time is over")
                continue
            try:
                row = measure()
            # Too little memory for a batch is a result, too.
            except jax.errors.JaxRuntimeError as error:
                row = {"failure": str(error).splitlines()[0]}
            row = {"part": name, "device": jax.devices()[0].device_kind, "jax": jax.__version__, **row}
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(json.dumps(row), flush=True)
    if arguments.peers and time.perf_counter() < end:
        for text in sample.tables(latent=128, batch=1, steps=[4, 40], width=128, repeats=arguments.repeats):
            print(text, end="\n\n", flush=True)


def parts(small: bool, repeats: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Names of the parts, and the functions that measure them."""
    overrides = SMALL if small else ()

    def part(mode: str, batch: int, steps: int = 1) -> Callable[[], dict[str, Any]]:
        words = [*overrides, f"--config.train.batch_size={batch}", "--config.unet.dtype=bfloat16"]
        config = read_config("cfm1024.py", [*words, "--config.first_stage.dtype=bfloat16"], TrainingConfig)
        return lambda: measured(config, mode, Solver("euler", steps), repeats)

    for batch in BATCHES:
        for steps in STEPS:
            yield f"flow of {steps} Euler steps, batch {batch}", part("sample", batch, steps)
        yield f"decoder, batch {batch}", part("decode", batch)
    for batch in TRAINING_BATCHES[: 1 if small else None]:
        yield f"training step, batch {batch}", part("train", batch)


def measured(config: TrainingConfig, mode: str, solver: Solver, repeats: int) -> dict[str, Any]:
    """Compile a mode's program for the first device, run it on random arrays, and return the row."""
    mesh = make_mesh({"data": 1, "fsdp": 1, "spatial": 1}, jax.devices()[:1])
    started = time.perf_counter()
    lowered = lower(config, mode, mesh, solver)
    program = lowered.compile()
    compiled = time.perf_counter() - started
    arguments = list(random_arguments(lowered, mesh))

    def once() -> float:
        started = time.perf_counter()
        result = jax.block_until_ready(program(*arguments))
        if mode == "train":  # The state was donated.
            arguments[0] = result[0]
        return time.perf_counter() - started

    once()
    seconds = statistics.median(once() for _ in range(repeats))
    device = jax.devices()[0]
    row = {"seconds": seconds, "compile_seconds": compiled, "images_per_second": config.train.batch_size / seconds}
    if peak := PEAKS.get(device.device_kind):
        row["mfu"] = model_flops(config, mode, solver) / seconds / peak
    if statistics_ := device.memory_stats():
        row["peak_bytes"] = statistics_["peak_bytes_in_use"]
    return row


def random_arguments(lowered: jax.stages.Lowered, mesh: Mesh) -> tuple[Any, ...]:
    """Arrays of the shapes that a lowered program takes: small random floats, ones elsewhere, keys."""
    positional, keywords = lowered.args_info
    assert not keywords

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any):
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            return jax.random.split(key, shape)
        if jnp.issubdtype(dtype, np.floating):
            # Second moments of the optimizer, among others, are not negative.
            return jnp.abs(0.02 * jax.random.normal(key, shape, jnp.float32)).astype(dtype)
        return jnp.ones(shape, dtype)

    leaves, tree = jax.tree.flatten(positional)
    with jax.default_device(mesh.devices.flat[0]):
        # One program for each shape: a single program for hundreds of arrays takes minutes to compile.
        keys = jax.random.split(jax.random.key(0), len(leaves))
        return jax.tree.unflatten(tree, [draw(key, a.shape, a.dtype) for key, a in zip(keys, leaves, strict=True)])


if __name__ == "__main__":
    run(main)
