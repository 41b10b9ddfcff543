"""Shards as units of work: which photographs they hold, when they count as finished, when the dataset is written."""

import dataclasses
import json

import numpy as np
import pytest

from fmboost_jax.data.dataset import DatasetInfo, Recipe, Shard
from fmboost_jax.data.records import ShardWriter, encode
from fmboost_jax.data.shards import FinishedShard, Plan
from fmboost_jax.errors import InputError

RECIPE = Recipe("identity", "", 3, 1, 1.0, 0.0, 4, 2, "psu", "float16", 0, 1.0, 0)


@pytest.fixture
def plan(tmp_path):
    plan = Plan(folder=tmp_path / "out", recipe=RECIPE, photos=5, photos_per_shard=2, fingerprint="of these")
    plan.begin()
    return plan


def finish(plan, shard, skipped=()):
    """Make a shard of one record a photograph."""
    names = [f"{photo}.png" for photo in plan.shard_photos(shard)]
    used = [name for name in names if name not in skipped]
    writer = ShardWriter(plan.folder, plan.shard_name(shard))
    if used:
        for place in range(len(used)):
            writer.write(encode(RECIPE, (shard, place, 0, 0), np.zeros((4, 4, 3)), np.ones((4, 4, 3))))
        entry = writer.finish()
    else:
        writer.discard()
        entry = Shard(plan.shard_name(shard), 0, 0, "")
    reasons = tuple((name, "broken") for name in names if name in skipped)
    plan.finish_shard(shard, FinishedShard(entry.name, entry.records, entry.bytes, entry.sha256, tuple(used), reasons))


def test_every_photograph_is_in_one_shard(plan):
    assert [list(plan.shard_photos(shard)) for shard in range(plan.shards)] == [[0, 1], [2, 3], [4]]


def test_dataset_is_written_after_the_last_shard(plan):
    for shard in (2, 0):
        finish(plan, shard)
        assert plan.merge() is None
    assert not (plan.folder / "dataset.json").exists()
    finish(plan, 1, skipped=["3.png"])
    info, skipped = plan.merge()
    assert DatasetInfo.read(plan.folder) == info
    assert (info.records, info.photos, info.skipped) == (4, 4, 1)
    assert skipped == [("3.png", "broken")]


def test_shard_without_a_photograph_leaves_no_file(plan):
    for shard in range(3):
        finish(plan, shard, skipped=["2.png", "3.png"])
    info, _ = plan.merge()
    assert [shard.name for shard in info.shards] == ["shards/00000.array_record", "shards/00002.array_record"]
    assert all(plan.is_intact(shard) for shard in range(3))
    assert not (plan.folder / plan.shard_name(1)).exists()


def test_no_photograph_at_all_is_an_error(plan):
    for shard in range(3):
        finish(plan, shard, skipped=[f"{photo}.png" for photo in range(5)])
    with pytest.raises(InputError, match=r"none of the 5 photographs can be used; the first, 0\.png: broken"):
        plan.merge()
    assert not (plan.folder / "dataset.json").exists()


def test_only_a_shard_with_its_checksum_is_intact(plan):
    assert not plan.is_intact(0)
    finish(plan, 0)
    assert plan.is_intact(0)
    path = plan.folder / plan.shard_name(0)
    content = path.read_bytes()
    for damaged in (content[:-1], content[:5000] + b"\1" + content[5001:]):
        path.write_bytes(damaged)
        assert not plan.is_intact(0)
    path.write_bytes(content)
    path.with_suffix(".json").write_text("{")
    assert not plan.is_intact(0)
    path.with_suffix(".json").unlink()
    assert not plan.is_intact(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"fingerprint": "of others"},
            "with other settings or photographs: names or sizes of the photographs have changed;",
        ),
        ({"photos": 6}, "photos was 5 and is now 6"),
        ({"photos_per_shard": 3}, "photos_per_shard was 2 and is now 3"),
        ({"recipe": dataclasses.replace(RECIPE, seed=1, crops=2)}, "crops was 0 and is now 2; seed was 0 and is now 1"),
    ],
)
def test_another_plan_is_refused(changes, message, plan):
    before = (plan.folder / "plan.json").read_bytes()
    with pytest.raises(InputError, match=message):
        dataclasses.replace(plan, **changes).begin()
    plan.begin()
    assert (plan.folder / "plan.json").read_bytes() == before


def test_a_plan_of_an_earlier_version_is_continued(plan):
    path = plan.folder / "plan.json"
    fields = json.loads(path.read_text())
    for added in ("low_res_source", "images", "teacher"):
        del fields[added]
    path.write_text(json.dumps(fields))
    plan.begin()
    with pytest.raises(InputError, match="images was False and is now True"):
        dataclasses.replace(plan, recipe=dataclasses.replace(RECIPE, images=True)).begin()


def test_shard_file_names_its_photographs(plan):
    finish(plan, 0, skipped=["1.png"])
    fields = json.loads((plan.folder / "shards/00000.json").read_text())
    assert (fields["photos"], fields["skipped"]) == (["0.png"], [["1.png", "broken"]])
