"""The stream of batches: every record once an epoch, the same for any number of processes, resumable to the element."""

import json

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmboost_jax.data.pipeline import batches, seek, spread_records
from fmboost_jax.data.records import PairSource
from fmboost_jax.errors import InputError


@pytest.fixture(scope="module")
def info(tmp_path_factory, write_dataset):
    return write_dataset(tmp_path_factory.mktemp("dataset"), (5, 4, 6))


def take(dataset, count):
    """The first batches of a dataset; its iterator is closed."""
    iterator = iter(dataset)
    try:
        return [next(iterator) for _ in range(count)]
    finally:
        iterator.close()


def records(taken) -> list[int]:
    return np.concatenate([batch["record"] for batch in taken]).tolist()


def test_batches_hold_the_records_they_name(info):
    source = PairSource(info)
    for batch in take(batches(info, batch_size=4, seed=0), 5):
        assert {name: array.dtype for name, array in batch.items()} == {
            "low": np.float16,
            "high": np.float16,
            "record": np.uint32,
            "position": np.uint32,
        }
        for row, record in enumerate(batch["record"]):
            np.testing.assert_array_equal(batch["low"][row], source[record]["low"])
            np.testing.assert_array_equal(batch["high"][row], source[record]["high"])


def test_bfloat16_is_read_as_stored(tmp_path, write_dataset):
    (batch,) = take(batches(write_dataset(tmp_path, (4,), dtype="bfloat16"), batch_size=4, seed=0), 1)
    assert batch["high"].dtype == jax.numpy.bfloat16


def test_each_epoch_holds_every_record_once_in_an_order_of_its_own(info):
    orders = np.array(records(take(batches(info, batch_size=5, seed=3), 12))).reshape(4, 15)
    for order in orders:
        assert sorted(order) == list(range(15))
    assert len({tuple(order) for order in orders}) == 4


def test_the_seed_alone_determines_the_order(info):
    first, again, other = (records(take(batches(info, batch_size=5, seed=seed), 6)) for seed in (3, 3, 4))
    threads = records(take(batches(info, batch_size=5, seed=3, num_threads=1, prefetch=1), 6))
    assert first == again == threads
    assert first != other


@settings(max_examples=8, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    rows=st.integers(1, 3),
    seed=st.integers(-1, 2**40),
)
def test_global_batches_are_the_same_in_any_number_of_processes(tmp_path_factory, write_dataset, sizes, rows, seed):
    """Over three epochs and more: the same rows, no position twice, every record once an epoch."""
    info = write_dataset(tmp_path_factory.mktemp("dataset"), tuple(sizes))
    size, count = 4 * rows, 3 * info.records // (4 * rows) + 1
    seen = []
    for processes in (1, 2, 4):
        shares = [
            take(
                batches(info, batch_size=size // processes, seed=seed, process_index=index, process_count=processes),
                count,
            )
            for index in range(processes)
        ]
        pairs = [
            [
                (int(position), int(record))
                for share in shares
                for position, record in zip(share[step]["position"], share[step]["record"], strict=True)
            ]
            for step in range(count)
        ]
        assert [[position for position, _ in batch] for batch in pairs] == [
            list(range(step * size, (step + 1) * size)) for step in range(count)
        ]
        seen.append(pairs)
    assert seen[0] == seen[1] == seen[2]
    stream = [record for batch in seen[0] for _, record in batch]
    for epoch in range(3):
        part = stream[epoch * info.records : (epoch + 1) * info.records]
        assert sorted(part) == list(range(info.records))


def test_one_epoch_without_shuffling_is_in_order(info):
    iterator = iter(batches(info, batch_size=4, seed=0, shuffle=False, repeat=False))
    taken = list(iterator)
    iterator.close()
    assert [len(batch["record"]) for batch in taken] == [4, 4, 4, 3]
    assert records(taken) == list(range(15))


def to_devices(batch):
    return jax.device_put({"record": batch["record"], "position": batch["position"]})


@pytest.mark.parametrize("transfer", [None, to_devices], ids=["host", "devices"])
@settings(max_examples=8, deadline=None)
@given(taken=st.integers(0, 9), threads=st.integers(0, 4))
def test_resuming_continues_at_the_same_element(info, transfer, taken, threads):
    def dataset():
        return batches(
            info, batch_size=2, seed=1, process_index=1, process_count=2, num_threads=threads, to_devices=transfer
        )

    whole = records(take(dataset(), 12))
    before, after = iter(dataset()), iter(dataset())
    head = [next(before) for _ in range(taken)]
    after.set_state(json.loads(json.dumps(before.get_state())))
    tail = [next(after) for _ in range(12 - taken)]
    before.close()
    after.close()
    assert records(head + tail) == whole


def test_resumes_from_an_orbax_checkpoint(info, tmp_path):
    whole = records(take(batches(info, batch_size=4, seed=1), 9))
    iterator = iter(batches(info, batch_size=4, seed=1, to_devices=to_devices))
    head = [next(iterator) for _ in range(5)]
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
        manager.wait_until_finished()
    next(iterator)
    iterator.close()
    iterator = iter(batches(info, batch_size=4, seed=1, to_devices=to_devices))
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.restore(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(iterator)))
    tail = [next(iterator) for _ in range(4)]
    iterator.close()
    assert records(head + tail) == whole


@pytest.mark.parametrize("transfer", [None, to_devices], ids=["host", "devices"])
def test_seek_continues_in_another_number_of_processes(info, transfer):
    whole = take(batches(info, batch_size=4, seed=1), 9)
    for first in (0, 5):
        parts = []
        for index in range(2):
            dataset = batches(info, batch_size=2, seed=1, process_index=index, process_count=2, to_devices=transfer)
            iterator = iter(dataset)
            next(iterator)
            seek(iterator, first)
            parts.append([next(iterator) for _ in range(first, 9)])
            iterator.close()
        for step, halves in zip(range(first, 9), zip(*parts, strict=True), strict=True):
            assert records(halves) == whole[step]["record"].tolist()


@pytest.mark.parametrize("transfer", [None, to_devices], ids=["host", "devices"])
def test_a_damaged_record_raises_when_it_is_read(tmp_path, write_dataset, transfer):
    info = write_dataset(tmp_path, (5, 4))
    path = tmp_path / info.shards[1].name
    content = bytearray(path.read_bytes())
    content[content.index(PairSource(info)[7]["high"].tobytes()) + 100] ^= 4
    path.write_bytes(content)
    iterator = iter(batches(info, batch_size=3, seed=0, shuffle=False, to_devices=transfer))
    assert records([next(iterator), next(iterator)]) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(InputError, match=r"00001\.array_record: record 2 \(record 7 of the dataset\) cannot be read"):
        next(iterator)
    iterator.close()


def test_spread_records_reach_from_end_to_end(info):
    assert spread_records(info, 3)["record"].tolist() == [0, 7, 14]
    everything = spread_records(info, 99)
    assert everything["record"].tolist() == list(range(15))
    assert everything["low"].shape == (15, *info.low_shape)
