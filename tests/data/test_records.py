"""The record format: exact round trips, and detection of all damage."""

import dataclasses
import re
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmboost_jax.data.dataset import DatasetInfo, Recipe
from fmboost_jax.data.records import PairSource, ShardWriter, decode, encode, record_bytes
from fmboost_jax.errors import InputError


def recipe(**changes) -> Recipe:
    fields = {
        "first_stage": "kl",
        "first_stage_path": "somewhere",
        "channels": 4,
        "downsampling": 8,
        "scaling_factor": 0.18215,
        "shift_factor": 0.0,
        "high_res": 64,
        "low_res": 32,
        "upsampling": "lsu",
        "dtype": "float16",
        "crops": 0,
        "crop_scale": 1.0,
        "seed": 0,
    }
    return Recipe(**(fields | changes))


word = st.integers(0, 2**32 - 1)


@settings(max_examples=40, deadline=None)
@given(
    header=st.tuples(word, word, word, word),
    dtype=st.sampled_from(["float16", "bfloat16"]),
    upsampling=st.sampled_from(["psu", "psu_bicubic", "lsu"]),
    channels=st.integers(1, 5),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    images=st.booleans(),
    seed=word,
)
def test_round_trip_is_exact(header, dtype, upsampling, channels, sizes, images, seed):
    low_res, high_res = 8 * sizes[0], 8 * (sizes[0] + sizes[1])
    fields = {"dtype": dtype, "upsampling": upsampling, "channels": channels, "images": images}
    pair = recipe(low_res=low_res, high_res=high_res, **fields)
    random = np.random.default_rng(seed)
    stored = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)
    low = (10 * random.normal(size=pair.low_shape)).astype(np.float32)
    high = (10 * random.normal(size=pair.high_shape)).astype(np.float32)
    expected = {"low": low.astype(stored), "high": high.astype(stored)}
    if images:
        expected["image"] = random.integers(0, 256, pair.image_shape, np.uint8)
    record = encode(pair, header, low, high, expected.get("image"))
    assert len(record) == record_bytes(pair)
    got_header, arrays = decode(pair, record)
    assert tuple(got_header) == header
    assert {name: array.dtype for name, array in arrays.items()} == {n: a.dtype for n, a in expected.items()}
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name])


def test_layout_is_the_documented_one():
    pair = recipe(channels=1, low_res=8, high_res=16)
    record = encode(pair, (1, 2, 3, 4), np.full((1, 1, 1), 1.5), np.array([[[0.25], [-2]], [[3], [65504]]]))
    assert record == struct.pack("<4I5e", 1, 2, 3, 4, 1.5, 0.25, -2, 3, 65504)


def test_latents_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 2, 4\)"):
        encode(recipe(), (0, 0, 0, 0), np.zeros((2, 2, 4)), np.zeros((8, 8, 4)))
    latents = np.zeros((4, 4, 4)), np.zeros((8, 8, 4))
    with pytest.raises(ValueError, match=r"image None; the recipe has \(64, 64, 3\)"):
        encode(recipe(images=True), (0, 0, 0, 0), *latents)
    with pytest.raises(ValueError, match=r"image \(64, 64, 3\); the recipe has None"):
        encode(recipe(), (0, 0, 0, 0), *latents, np.zeros((64, 64, 3), np.uint8))


def test_source_reads_every_record_of_every_shard(tmp_path, write_dataset):
    info = write_dataset(tmp_path, (5, 1, 6))
    random = np.random.default_rng(0)
    pairs = [PairSource(info)[number] for number in range(12)]
    for number, pair in enumerate(pairs):
        assert pair["record"] == number
        np.testing.assert_array_equal(pair["low"], random.normal(size=info.low_shape).astype(np.float16))
        np.testing.assert_array_equal(pair["high"], random.normal(size=info.high_shape).astype(np.float16))
    assert len(PairSource(info)) == 12
    for outside in (-1, 12):
        with pytest.raises(IndexError):
            PairSource(info)[outside]


@pytest.fixture(scope="module")
def intact(tmp_path_factory, write_dataset):
    info = write_dataset(tmp_path_factory.mktemp("intact"), (4,))
    source = PairSource(info)
    return info, [source[number] for number in range(4)], (info.folder / info.shards[0].name).read_bytes()


def read_damaged(folder, intact, content) -> list[str | None]:
    """Reads all records of a shard with this content: None where a record is right, the error where it is refused."""
    info, pairs, _ = intact
    path = folder / info.shards[0].name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    source, outcome = PairSource(dataclasses.replace(info, folder=folder)), []
    for number, pair in enumerate(pairs):
        try:
            got = source[number]
        except InputError as error:
            outcome.append(str(error))
        else:
            np.testing.assert_array_equal(got["low"], pair["low"])
            np.testing.assert_array_equal(got["high"], pair["high"])
            outcome.append(None)
    for number, message in enumerate(outcome):
        assert message is None or re.match(rf"shard {path}: record {number} .*$", message)
    return outcome


@pytest.mark.parametrize("part", ["data", "whole file"])
def test_every_flipped_bit_is_detected(part, tmp_path, intact):
    """A flip in a latent is an error in that record alone; no flip changes the values that are read."""
    _, pairs, content = intact
    spans = [content.index(pair["low"].tobytes()) for pair in pairs]
    length = pairs[0]["low"].nbytes + pairs[0]["high"].nbytes
    random = np.random.default_rng(1)
    for _ in range(150):
        hit = int(random.integers(4))
        position = spans[hit] + int(random.integers(length)) if part == "data" else int(random.integers(len(content)))
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(random.integers(8))
        outcome = read_damaged(tmp_path, intact, damaged)
        if part == "data":
            assert [error is not None for error in outcome] == [number == hit for number in range(4)]


def test_a_damaged_index_gives_no_wrong_record(tmp_path, intact):
    """ArrayRecord keeps its index at the start of the file's last 64 KiB; damaged, the shard is refused."""
    content = intact[2]
    for offset in range(100):
        damaged = bytearray(content)
        damaged[len(content) - 65536 + offset] ^= 0x10
        assert None not in read_damaged(tmp_path, intact, damaged), offset


@pytest.mark.parametrize("lost", [1, 100, 65536, 100_000])
def test_a_truncated_shard_is_named(lost, tmp_path, intact):
    info, _, content = intact
    assert None not in read_damaged(tmp_path, intact, content[:-lost])
    shutil.copy(info.folder / "dataset.json", tmp_path)
    expected = rf"00000\.array_record \(records 0 to 3\): expected {len(content)} bytes, found {len(content) - lost}"
    with pytest.raises(InputError, match=expected):
        DatasetInfo.read(tmp_path)


def test_exchanged_shards_are_detected(tmp_path, write_dataset):
    info = write_dataset(tmp_path, (3, 3))
    first, second = (tmp_path / shard.name for shard in info.shards)
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    with pytest.raises(
        InputError, match=r"00001\.array_record: record 2 \(record 5 .* has the header of record 2 of shard 00000"
    ):
        PairSource(DatasetInfo.read(tmp_path))[5]


def test_a_shard_gets_its_name_when_it_is_complete(tmp_path):
    pair = recipe()
    files = []
    for run in ("a", "b"):
        writer = ShardWriter(tmp_path / run, "shards/00000.array_record")
        writer.write(encode(pair, (0, 0, 0, 0), np.zeros(pair.low_shape), np.ones(pair.high_shape)))
        path = tmp_path / run / "shards/00000.array_record"
        assert not path.exists()
        shard = writer.finish()
        assert [path] == list(path.parent.iterdir())
        assert (shard.records, shard.bytes) == (1, path.stat().st_size)
        files.append((path.read_bytes(), shard))
    assert files[0] == files[1]
    writer = ShardWriter(tmp_path / "c", "shards/00000.array_record")
    writer.discard()
    assert not list((tmp_path / "c/shards").iterdir())
