"""Throughput of real training in 1, 2 and 4 processes on this machine, the wait for data included.

    python -m bench.processes

Every process is `python -m fmboost_jax.train` itself and computes in one thread (NPROC=1), as if it had its own core.
Processes are not bound to cores: threads that exchange gradients would then wait milliseconds for those that compute.
Each process reads its part of the same dataset and has the same number of examples a step, so the global batch grows
with the processes (weak scaling). Gradients are summed over gloo. The numbers are those of the training's log. The
first ones are skipped, and the result is the median of the others.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile

from bench.data import RECIPE, write_dataset
from fmboost_jax.errors import InputError, run
from fmboost_jax.files import write_atomically

SIDE = 64
PIXELS = dataclasses.replace(
    RECIPE, first_stage="identity", channels=3, downsampling=1, scaling_factor=1.0, high_res=SIDE, low_res=SIDE // 2
)
LOG_EVERY = 5
WARM = 3  # logs that are left out
CONFIG = (
    "--config=configs/demo.py",
    "--config.first_stage.kind=identity",
    "--config.first_stage.path=",
    f"--config.data.high_res={SIDE}",
    f"--config.data.low_res={SIDE // 2}",
    "--config.unet.in_channels=6",
    "--config.unet.out_channels=3",
    "--config.unet.model_channels=32",
    "--config.unet.channel_mult=(1,2,2)",
    "--config.unet.attention_resolutions=()",
    f"--config.train.log_every={LOG_EVERY}",
    "--config.evaluate.every=0",
    "--config.checkpoint.every=1000000",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """Result for one number of processes.

    Attributes:
        processes: how many.
        cores: that they had in all.
        batch: examples a step, over all processes.
        images_a_second: over all processes.
        data_wait: share of the time that process 0 waited for its batches.
    """

    processes: int
    cores: int
    batch: int
    images_a_second: float
    data_wait: float

    @property
    def a_process(self) -> float:
        """Images a second and process."""
        return self.images_a_second / self.processes


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "bench.processes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="numbers of processes (1 2 4)")
    parser.add_argument("--batch", type=int, default=4, help="examples a process and step (4)")
    parser.add_argument("--steps", type=int, default=60, help="steps of each run (60)")
    arguments = parser.parse_args()
    print(table(rows(arguments.processes, batch=arguments.batch, steps=arguments.steps)))


def rows(counts: list[int], *, batch: int = 4, steps: int = 60, config: tuple[str, ...] = ()) -> list[Row]:
    """Train in each of these numbers of processes, one after the other.

    Args:
        counts: numbers of processes.
        batch: examples a process and step.
        steps: of each run.
        config: further overrides, such as `--config.unet.model_channels=64`.

    Raises:
        InputError: too few steps, or a process that failed, with the end of its output.
    """
    if steps // LOG_EVERY <= WARM:
        raise InputError(f"{steps} steps are too few: expected more than {LOG_EVERY * WARM}")
    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder) / "data"
        info = write_dataset(data, 512, recipe=PIXELS)
        write_atomically(data / "dataset.json", info.to_json().encode())
        words = [f"--config.data.dir={data}", f"--config.train.steps={steps}", *config]
        return [_measure(pathlib.Path(folder) / str(count), count, batch, words) for count in counts]


def _measure(workdir: pathlib.Path, count: int, batch: int, words: list[str]) -> Row:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"--coordinator=localhost:{free.getsockname()[1]}"
    typed = [sys.executable, "-m", "fmboost_jax.train", *CONFIG, f"--config.train.batch_size={batch * count}", *words]
    typed += ["--workdir", str(workdir), coordinator, f"--process-count={count}"]
    started = [
        subprocess.Popen(
            [*typed, f"--process-index={index}"],
            env=os.environ | {"NPROC": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]
    try:
        said = [process.communicate()[0] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, output in zip(started, said, strict=True):
        if process.returncode:
            raise InputError(f"training in {count} processes ended with {process.returncode}: {output[-300:]}")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()][WARM:]
    speed, wait = (
        statistics.median(line[name] for line in lines) for name in ("samples_per_second", "data_wait_share")
    )
    return Row(count, min(count, len(os.sched_getaffinity(0))), batch * count, speed, wait)


def table(measured: list[Row]) -> str:
    """The rows as a Markdown table; efficiency is against the first row."""
    lines = [
        "| processes | cores | batch | images/s | images/s a process | of the first row's | data wait |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in measured:
        share = row.a_process / measured[0].a_process
        lines.append(
            f"| {row.processes} | {row.cores} | {row.batch} | {row.images_a_second:.1f} | {row.a_process:.1f} | "
            f"{share:.0%} | {row.data_wait:.1%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
