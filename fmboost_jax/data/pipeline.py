"""Batches of latent pairs for training: shuffled, repeated, divided among processes, and resumable at any element.

There is one endless global stream. Every epoch has each record once, in a new order that depends on the seed. The index
of an element in the stream is its `position`. Random numbers of an element come from `fold_in(seed, position)`, so they
do not depend on the process that reads it. Global batch k of size B has the positions k·B to (k + 1)·B − 1 for any
number P of processes; process p reads rows p·B/P to (p + 1)·B/P − 1 of it. Runs with 1, 2 or 4 processes therefore have
the same batches, with the same order of rows.
"""

from collections.abc import Callable
from typing import Any

import grain
import numpy as np

from fmboost_jax.data.dataset import DatasetInfo
from fmboost_jax.data.records import PairSource

_ON_DEVICE = 2  # batches prefetched to the devices


def batches(
    info: DatasetInfo,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 4,
    prefetch: int = 8,
    shuffle: bool = True,
    repeat: bool = True,
    to_devices: Callable[[dict[str, np.ndarray]], Any] | None = None,
) -> grain.IterDataset:
    """Return this process's share of the global batches.

    A batch is a dict of numpy arrays: `low` (b, h, w, c) and `high` (b, H, W, C), raw latents in the stored dtype;
    `record` (b,) uint32, the number in the dataset; `position` (b,) uint32, the index in the stream, modulo 2³². A
    dataset with images has `image` (b, f·H, f·W, 3) uint8, too.

    `grain.checkpoint.CheckpointSave` saves the dataset's iterator, and a restored iterator continues at the same
    element; for another number of processes see `seek`. Close the iterator after use. It raises InputError, with file
    and record, when it reads a damaged record.

    Args:
        info: the dataset.
        batch_size: batch size of this process; the global batch is `process_count` times as large.
        seed: seed of the shuffling, modulo 2³².
        process_index: number of this process, from 0.
        process_count: number of processes.
        num_threads: threads that read and decode.
        prefetch: batches read in advance; 0 reads in the calling thread.
        shuffle: whether each epoch has a new order; otherwise records have the order of the dataset.
        repeat: whether the stream is endless. Otherwise it is one epoch: its last batch may be smaller, and some
            processes may have one batch less.
        to_devices: function that transfers a batch to the devices. A separate thread applies it, two batches in
            advance.
    """
    stream = grain.MapDataset.source(PairSource(info)).seed(seed % 2**32)
    if shuffle:
        stream = stream.shuffle()
    if repeat:
        stream = stream.repeat()
    # Before the batches are divided among processes, so that the index is the global one.
    stream = stream.map_with_index(_with_position).batch(batch_size, drop_remainder=repeat)
    stream = stream[process_index::process_count]
    dataset = stream.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch))
    if to_devices is not None:
        dataset = grain.experimental.ThreadPrefetchIterDataset(dataset.map(to_devices), prefetch_buffer_size=_ON_DEVICE)
    return dataset


def seek(iterator: grain.DatasetIterator, step: int) -> None:
    """Move an iterator of `batches` to global batch number `step`, from 0.

    A saved iterator can be restored only with the number of processes that saved it. Batch `step` has the same records
    for any number of processes, so a run with the same global batch can use `seek` to continue with another number.
    """
    grain.experimental.set_next_index(iterator, step)


def spread_records(info: DatasetInfo, count: int) -> dict[str, np.ndarray]:
    """Return `count` evenly spaced pairs of a dataset, or all of a smaller one: `low`, `high` and `record`, stacked."""
    source = PairSource(info)
    numbers = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
    pairs = [source[number] for number in numbers]
    return {name: np.stack([pair[name] for pair in pairs]) for name in pairs[0]}


def _with_position(position: int, pair: dict) -> dict:
    return {**pair, "position": np.uint32(position % 2**32)}
