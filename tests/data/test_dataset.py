"""dataset.json: a written file is read, and fields that do not fit a config are refused with both values."""

import dataclasses
import hashlib
import json
import shutil

import pytest

from fmboost_jax.data.dataset import DataConfig, DatasetInfo, Recipe
from fmboost_jax.errors import InputError
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.first_stage import FirstStage, Identity, LatentSpec

IDENTITY = load_first_stage("identity")


def make_config(**data) -> DataConfig:
    return DataConfig(**({"high_res": 16, "low_res": 8} | data))


@pytest.fixture
def dataset(tmp_path_factory, write_dataset):
    return write_dataset(tmp_path_factory.mktemp("dataset"), (2, 3))


def test_a_written_dataset_is_read(dataset):
    assert DatasetInfo.read(dataset.folder) == dataset
    assert (dataset.records, dataset.low_shape, dataset.high_shape) == (5, (16, 16, 3), (16, 16, 3))
    for shard in dataset.shards:
        assert shard.sha256 == hashlib.sha256((dataset.folder / shard.name).read_bytes()).hexdigest()


def test_a_dataset_can_be_moved(dataset, tmp_path):
    shutil.move(dataset.folder, tmp_path / "elsewhere")
    assert DatasetInfo.read(tmp_path / "elsewhere").shards == dataset.shards


def change(**fields):
    def mend(folder):
        path = folder / "dataset.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return mend


def change_shard(**fields):
    def mend(folder):
        path = folder / "dataset.json"
        content = json.loads(path.read_text())
        content["shards"][1] |= fields
        path.write_text(json.dumps(content))

    return mend


def unfinished(folder):
    (folder / "dataset.json").rename(folder / "plan.json")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "does not exist; make it with"),
        (lambda folder: (folder / "dataset.json").unlink(), "has no dataset.json; python -m fmboost_jax.precompute"),
        (unfinished, "precompute has not finished, run its command again"),
        (lambda folder: (folder / "dataset.json").write_bytes(b'{"format": 1'), "is damaged, expected JSON"),
        (lambda folder: (folder / "dataset.json").write_bytes(b"\xff\x00"), "is damaged, expected JSON"),
        (lambda folder: (folder / "dataset.json").write_text("[]"), "expected a JSON object, found list"),
        (change(format=1), "expected format 2, found 1"),
        (change(shards=[]), r"expected a list of shards, found \[\]"),
        (change(shards=[3]), r"expected shards\[0\] with the fields name, records, bytes, sha256, found 3"),
        (change(channels="3"), "expected channels as int, found '3'"),
        (change(channels=True), "expected channels as int, found True"),
        (change(dtype="float64"), "dtype 'float64' is unknown; expected one of float16, bfloat16"),
        (change(records=6), "expected 5 records, the sum over its shards, found 6"),
        (change_shard(records=0), "shard 1 has the name 'shards/00001.array_record' and 0 records"),
        (change_shard(name="../../secrets"), "shard 1 has the name '../../secrets'"),
        (change_shard(bytes=7), r"00001.array_record \(records 2 to 4\): expected 7 bytes, found \d+"),
        (lambda folder: (folder / "shards/00001.array_record").unlink(), r"\(records 2 to 4\) is missing"),
    ],
)
def test_damage_is_named_in_one_line(damage, message, dataset):
    damage(dataset.folder)
    with pytest.raises(InputError, match=message) as caught:
        DatasetInfo.read(dataset.folder)
    assert str(dataset.folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("nothing", ["", None])
def test_no_folder_names_the_field(nothing):
    with pytest.raises(InputError, match=r"data\.dir is empty"):
        DatasetInfo.read(nothing)


def test_a_matching_config_is_accepted(dataset):
    dataset.check(make_config(), IDENTITY)
    dataset.check(make_config(), IDENTITY, state_channels=3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("high_res", 32, "data.high_res is 32 in the config and 16 in the dataset"),
        ("low_res", 4, "data.low_res is 4 in the config and 8 in the dataset"),
        ("upsampling", "lsu", "data.upsampling is 'lsu' in the config and 'psu' in the dataset"),
        ("dtype", "bfloat16", "data.dtype is 'bfloat16' in the config and 'float16' in the dataset"),
        ("images", True, "data.images is True in the config and False in the dataset"),
    ],
)
def test_a_difference_shows_both_values(field, value, message, dataset):
    with pytest.raises(InputError, match=message):
        dataset.check(make_config(**{field: value}), IDENTITY)


def test_all_differences_are_named(dataset):
    kl = FirstStage(LatentSpec("kl", "weights", 3, 1), Identity())
    expected = "first_stage.kind is 'kl' .* 'identity' .*high_res is 32.*; .*state channels is 4 .* and 3 in"
    with pytest.raises(InputError, match=expected):
        dataset.check(make_config(high_res=32), kl, state_channels=4)


def test_first_stage_of_another_scale_is_refused(dataset):
    other = FirstStage(LatentSpec("identity", "", 3, 1, scaling_factor=0.5, shift_factor=0.1), Identity())
    expected = r"scaling_factor is 0.5 in the config and 1.0 in the dataset; .*shift_factor is 0.1 .* and 0.0"
    with pytest.raises(InputError, match=expected):
        dataset.check(make_config(), other)


def test_a_first_stage_with_more_inversion_steps_is_refused(dataset):
    other = dataclasses.replace(IDENTITY, spec=dataclasses.replace(IDENTITY.spec, inversion_steps=1))
    with pytest.raises(InputError, match="inversion_steps is 1 in the config and 0 in the dataset"):
        dataset.check(make_config(), other)


def test_sizes_of_latents_follow_first_stage_and_upsampling():
    kl = FirstStage(LatentSpec("kl", "weights", 4, 8, scaling_factor=0.18215), Identity())
    lsu = Recipe.of(make_config(high_res=64, low_res=32, upsampling="lsu"), kl, 0)
    psu = Recipe.of(make_config(high_res=64, low_res=20, upsampling="psu"), kl, 0)
    assert (lsu.low_shape, lsu.high_shape) == ((4, 4, 4), (8, 8, 4))
    assert (psu.low_shape, psu.high_shape) == ((8, 8, 4), (8, 8, 4))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"upsampling": "esu"}, "upsampling 'esu' is unknown; expected one of psu, psu_bicubic, lsu"),
        ({"low_res_source": "pixel"}, "low_res_source 'pixel' is unknown"),
        ({"low_res": 20, "low_res_source": "mixed"}, "low_res 20 is not a multiple"),
        ({"dtype": "float32"}, "dtype 'float32' is unknown"),
        ({"low_res": 64}, "low_res 64 must be between 0 and high_res 64"),
        ({"high_res": 60}, "high_res 60 is not a multiple of the first stage's downsampling 8"),
        ({"low_res": 20, "upsampling": "lsu"}, "low_res 20 is not a multiple"),
        ({"crops": -1}, "crops is -1"),
        ({"crop_scale": 0.5}, "crop_scale is 0.5"),
        ({"crop_scale": float("nan")}, "crop_scale is nan"),
    ],
)
def test_impossible_recipes_are_refused(fields, message):
    kl = FirstStage(LatentSpec("kl", "weights", 4, 8), Identity())
    with pytest.raises(InputError, match=message):
        Recipe.of(make_config(**({"high_res": 64, "low_res": 32} | fields)), kl, 0)
