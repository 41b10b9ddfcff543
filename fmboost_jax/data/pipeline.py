"""Batches of latent pairs for training: shuffled, repeated, shared out among processes, resumable to the element.

The order is one endless global stream: every epoch holds each record once, in an order of its own that depends on the
seed. An element's place in that stream is its `position`; whatever is random about an element is to be drawn from
`fold_in(seed, position)`, so it does not depend on who reads it. Global batch number k is positions k·B to
(k + 1)·B − 1 whatever the number P of processes is; process p reads rows p·B/P to (p + 1)·B/P − 1 of it. So 1, 2 or 4
processes see the same batches, in the same order of rows.
"""

from collections.abc import Callable
from typing import Any

import grain
import numpy as np

from fmboost_jax.data.dataset import DatasetInfo
from fmboost_jax.data.records import PairSource

_ON_DEVICE = 2  # batches that wait on the devices


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
    """This process's share of the global batches.

    A batch is a dict of numpy arrays: `low` (b, h, w, c) and `high` (b, H, W, C), unscaled latents in the stored dtype;
    `record` (b,) uint32, the number in the dataset; `position` (b,) uint32, the place in the stream (it wraps after 4.3
    billion).

    The dataset's iterator can be saved by `grain.checkpoint.CheckpointSave` and goes on exactly where it was; for
    another number of processes see `seek`. Close it when done. It raises InputError, with file and record, for a
    damaged record when that record's turn comes.

    Args:
        info: the dataset.
        batch_size: of this process; the global batch is `process_count` times as large.
        seed: of the shuffling; only its lowest 32 bits count.
        process_index: this process, from 0.
        process_count: all processes.
        num_threads: that read and decode.
        prefetch: batches read ahead; 0 reads in the calling thread.
        shuffle: whether each epoch has an order of its own; else records come in the dataset's.
        repeat: whether the stream is endless; else it is one epoch, whose last batch may be smaller, and the last
            processes may have one batch less.
        to_devices: applied to each batch in a thread of its own, two batches ahead; for transfers to the devices.
    """
    stream = grain.MapDataset.source(PairSource(info)).seed(seed % 2**32)
    if shuffle:
        stream = stream.shuffle()
    if repeat:
        stream = stream.repeat()
    # Before the batches are shared out, so that the index is the global one.
    stream = stream.map_with_index(_with_position).batch(batch_size, drop_remainder=repeat)
    stream = stream[process_index::process_count]
    dataset = stream.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch))
    if to_devices is not None:
        dataset = grain.experimental.ThreadPrefetchIterDataset(dataset.map(to_devices), prefetch_buffer_size=_ON_DEVICE)
    return dataset


def seek(iterator: grain.DatasetIterator, step: int) -> None:
    """Make global batch number `step`, from 0, the next that an iterator of `batches` gives.

    A saved iterator can only be restored into as many processes as saved it. Since batch `step` is the same
    records in any number of processes, this is how a run goes on in another number, if the global batch stays the same.
    """
    grain.experimental.set_next_index(iterator, step)


def spread_records(info: DatasetInfo, count: int) -> dict[str, np.ndarray]:
    """`count` pairs evenly spread over the dataset, or all if it holds fewer: `low`, `high` and `record`, stacked."""
    source = PairSource(info)
    numbers = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
    pairs = [source[number] for number in numbers]
    return {name: np.stack([pair[name] for pair in pairs]) for name in pairs[0]}


def _with_position(position: int, pair: dict) -> dict:
    return {**pair, "position": np.uint32(position % 2**32)}
