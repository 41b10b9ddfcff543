"""Cost of a training step of each objective, as a ratio to `flow`.

    python -m bench.objectives                          # seconds on this machine; two minutes
    python -m bench.objectives --topology v5e:2x2       # as XLA's TPU compiler predicts them, for cfm1024; minutes each

All objectives train one network on one batch of 4: that of configs/photo.py with 64 channels, at 32×32 latents, or
cfm1024's. Steps alternate between the objectives, and the seconds are medians.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp

from fmboost_jax.configuration import read_config
from fmboost_jax.errors import run
from fmboost_jax.models.first_stage import LatentSpec
from fmboost_jax.runtime.memory import keep_freed_memory
from fmboost_jax.training.config import FinishConfig, TrainingConfig
from fmboost_jax.training.step import init_state, make_train_step

NETWORK = ("--config.unet.model_channels=64", "--config.train.batch_size=4")
OBJECTIVES = {"flow": 1, "reflow": 1, "shortcut": 2, "meanflow": 2}  # and the times that the network reads


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "bench.objectives", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", nargs="+", help="TPU slices, as python -m fmboost_jax.plan takes them")
    parser.add_argument("--repeats", type=int, default=7, help="steps of each objective (default: 7)")
    arguments = parser.parse_args()
    columns = {topology: predicted(topology) for topology in arguments.topology or ()} or {
        f"seconds on {jax.devices()[0].device_kind}": measured(arguments.repeats)
    }
    print(
        "| objective |"
        + "".join(f" {name} | ratio |" for name in columns)
        + "\n"
        + "| --- " * (1 + 2 * len(columns))
        + "|"
    )
    for name in OBJECTIVES:
        cells = [f"{seconds[name]:.4f} | {seconds[name] / seconds['flow']:.2f}" for seconds in columns.values()]
        print(f"| {name} | {' | '.join(cells)} |")


def measured(repeats: int) -> dict[str, float]:
    """Median seconds of a step on this machine."""
    keep_freed_memory()
    steps = {name: _step(name, time_inputs) for name, time_inputs in OBJECTIVES.items()}
    for step in steps.values():
        step()
    seconds = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _step(objective: str, time_inputs: int):
    words = [f"--config.objective={objective}", f"--config.unet.time_inputs={time_inputs}", *NETWORK]
    config = dataclasses.replace(read_config("photo.py", words, TrainingConfig), finish=FinishConfig())
    noise_seed = 0 if objective == "reflow" else None
    step = jax.jit(make_train_step(config, LatentSpec("tiny", "", 32, 8), noise_seed=noise_seed), donate_argnums=0)
    low, high = jax.random.normal(jax.random.key(0), (2, config.train.batch_size, 32, 32, 32))
    numbers = jnp.arange(config.train.batch_size, dtype=jnp.uint32)
    batch = {"low": low, "high": high, "position": numbers, "record": numbers}
    state = jax.jit(init_state, static_argnums=0)(config)

    def run_step():
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return run_step


def predicted(topology: str) -> dict[str, float]:
    """Predicted seconds of cfm1024's step on a TPU slice; a reflow's step is that of a flow."""
    seconds = {}
    for name, time_inputs in OBJECTIVES.items():
        if name == "reflow":
            seconds[name] = seconds["flow"]
            continue
        options = [f"--config.objective={name}", f"--config.unet.time_inputs={time_inputs}", f"--topology={topology}"]
        command = [sys.executable, "-m", "fmboost_jax.plan", "--config=cfm1024.py", *options, "--json"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        seconds[name] = json.loads(done.stdout)["predicted"]["seconds"]
    return seconds


if __name__ == "__main__":
    run(main)
