"""CPU seconds and memory of a training step on batches in one part and in several (`optim.accumulate`).

    python -m bench.accumulation

A part has the same number of images in every row, so a row with more parts has a larger batch.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from fmboost_jax.configuration import read_config
from fmboost_jax.errors import run
from fmboost_jax.models.first_stage import LatentSpec
from fmboost_jax.runtime.memory import keep_freed_memory
from fmboost_jax.training.config import TrainingConfig
from fmboost_jax.training.step import init_state, make_train_step

CHANNELS = 4


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser("bench.accumulation", description=__doc__)
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 4], help="parts of a batch (default: 1 4)")
    parser.add_argument("--images", type=int, default=2, help="images of a part (default: 2)")
    parser.add_argument("--width", type=int, default=64, help="unet.model_channels (default: 64)")
    parser.add_argument("--side", type=int, default=32, help="height and width of the latents (default: 32)")
    parser.add_argument("--repeats", type=int, default=3, help="steps that are measured (default: 3)")
    arguments = parser.parse_args()
    keep_freed_memory()
    print("| parts | images | CPU s an image | temporaries, MiB |\n| --- | --- | --- | --- |")
    for parts in arguments.parts:
        seconds, memory = measure(parts, arguments.images * parts, arguments.width, arguments.side, arguments.repeats)
        print(f"| {parts} | {arguments.images * parts} | {seconds:.3f} | {memory / 2**20:.0f} |", flush=True)


def measure(parts: int, images: int, width: int, side: int, repeats: int) -> tuple[float, int]:
    """Median CPU seconds an image of all threads, and bytes of the step's temporaries."""
    sizes = (f"unet.model_channels={width}", f"unet.in_channels={2 * CHANNELS}", f"unet.out_channels={CHANNELS}")
    words = (*sizes, f"optim.accumulate={parts}", f"train.batch_size={images}")
    config = read_config("demo.py", [f"--config.{word}" for word in words], TrainingConfig)
    latent = jax.random.normal(jax.random.key(0), (images, side, side, CHANNELS), jnp.float16)
    batch = {"low": latent, "high": latent[:, ::-1], "position": jnp.arange(images, dtype=jnp.uint32)}
    state = jax.jit(lambda: init_state(config))()
    step = jax.jit(make_train_step(config, LatentSpec("identity", "", CHANNELS, 1)), donate_argnums=0)
    program, seconds = step.lower(state, batch).compile(), []
    for _ in range(repeats + 1):
        started = time.process_time()
        state, _ = jax.block_until_ready(program(state, batch))
        seconds.append(time.process_time() - started)
    return statistics.median(seconds[1:]) / images, program.memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
    run(main)
