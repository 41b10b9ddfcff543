"""How fast batches arrive: the training pipeline over records of two 128×128×4 float16 latents, 262 kB each.

    python -m bench.data                # throughput from the page cache, one process
    python -m bench.data --unet         # and the base UNet's time for the same batch

The records are random numbers in a temporary folder, written and read by the package's own code, Riegeli's hashes
verified; nothing is transferred to a device. Every repeat is a new iterator in another order, whose first batches
are not counted. The result is the median; minimum and maximum show the influence of other work on the machine.
"""

import argparse
import dataclasses
import os
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fmboost_jax.configuration import read_config
from fmboost_jax.data.dataset import DatasetInfo, Recipe
from fmboost_jax.data.pipeline import batches
from fmboost_jax.data.records import ShardWriter, encode, record_bytes
from fmboost_jax.errors import run
from fmboost_jax.models.parameters import count, merge, split
from fmboost_jax.models.unet import UNet
from fmboost_jax.training.config import TrainingConfig

# 512² → 1024² with SD's autoencoder, upsampled in pixels: both latents are 128×128×4.
RECIPE = Recipe("kl", "", 4, 8, 0.18215, 0.0, 1024, 512, "psu", "float16", crops=0, crop_scale=1.0, seed=0)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "bench.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=2048, help="in the dataset (2048, 537 MB)")
    parser.add_argument("--batch-size", type=int, default=32, help="records to a batch (32)")
    parser.add_argument("--num-threads", type=int, default=4, help="that read (4)")
    parser.add_argument("--prefetch", type=int, default=8, help="batches read ahead (8)")
    parser.add_argument("--repeats", type=int, default=9, help="measurements of one pass each (9)")
    parser.add_argument(
        "--unet", type=int, nargs="?", const=1, metavar="BATCH", help="time the base UNet too, at this batch size (1)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        info = write_dataset(pathlib.Path(folder), arguments.records)
        rates = [
            measure(info, arguments.batch_size, seed, arguments.num_threads, arguments.prefetch)
            for seed in range(arguments.repeats + 1)
        ][1:]
    megabytes = [rate * record_bytes(RECIPE) / 1e6 for rate in rates]
    batch_seconds = arguments.batch_size / statistics.median(rates)
    print(
        f"pipeline: {statistics.median(megabytes):,.0f} MB/s, {statistics.median(rates):,.0f} records/s "
        f"(median of {len(rates)}; {min(megabytes):,.0f} to {max(megabytes):,.0f} MB/s) "
        f"on {len(os.sched_getaffinity(0))} cores, page cache warm"
    )
    print(f"a batch of {arguments.batch_size} arrives every {1000 * batch_seconds:.1f} ms")
    if arguments.unet:
        seconds, parameters = time_unet(arguments.unet)
        whole = seconds * arguments.batch_size / arguments.unet
        print(
            f"base UNet, {parameters:,} parameters, forward pass of {arguments.unet} × 128×128×4 on "
            f"{jax.devices()[0].device_kind}: {1000 * seconds:,.1f} ms measured; for a batch of {arguments.batch_size} "
            f"in proportion {1000 * whole:,.0f} ms, {whole / batch_seconds:,.0f} times what the pipeline needs"
        )


def write_dataset(folder: pathlib.Path, records: int, shards: int = 4, recipe: Recipe = RECIPE) -> DatasetInfo:
    """A dataset of random latents; the last of its shards may be larger."""
    random, entries = np.random.default_rng(0), []
    for shard in range(shards):
        writer = ShardWriter(folder, f"shards/{shard:05d}.array_record")
        first, last = records * shard // shards, records * (shard + 1) // shards
        for place in range(last - first):
            low, high = random.standard_normal((2, *recipe.high_shape), np.float32)
            writer.write(encode(recipe, (shard, place, 0, 0), low, high))
        entries.append(writer.finish())
    return DatasetInfo(**dataclasses.asdict(recipe), folder=folder, photos=records, skipped=0, shards=tuple(entries))


def measure(info: DatasetInfo, batch_size: int, seed: int, num_threads: int, prefetch: int) -> float:
    """Records a second over one pass."""
    iterator = iter(batches(info, batch_size=batch_size, seed=seed, num_threads=num_threads, prefetch=prefetch))
    # Start the clock in the steady state: the pool runs, the readers are open, the first fill of the buffer is used up.
    for _ in range(prefetch + 1):
        next(iterator)
    steps = max(1, info.records // batch_size)
    started = time.perf_counter()
    for _ in range(steps):
        next(iterator)
    seconds = time.perf_counter() - started
    iterator.close()
    return steps * batch_size / seconds


def time_unet(batch: int, repeats: int = 3) -> tuple[float, int]:
    """Seconds of the base UNet's forward pass at training size, median, compiled before; and its parameter count."""
    config = read_config("cfm1024.py", (), TrainingConfig).architecture
    if jax.default_backend() == "cpu":
        config = dataclasses.replace(config, dtype="float32")
    graph, parameters = split(UNet(config, rngs=nnx.Rngs(0)))
    forward = jax.jit(lambda parameters, x, t, context: merge(graph, parameters)(x, t, context))
    latent = jnp.ones((batch, *RECIPE.high_shape), jnp.float32)
    call = (parameters, latent, jnp.full(batch, 0.5), latent)
    jax.block_until_ready(forward(*call))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(forward(*call))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), count(parameters)


if __name__ == "__main__":
    run(main)
