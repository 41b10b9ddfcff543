"""Reflow: a trained flow makes the high-res latents, from noise that each record keeps."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.teacher import teach
from fmboost_jax.data.dataset import DatasetInfo
from fmboost_jax.data.records import PairSource
from fmboost_jax.data.reflow import reflow_pairs
from fmboost_jax.errors import InputError
from fmboost_jax.flow.boost import boost_latents
from fmboost_jax.flow.coupling import record_keys, sample_noise, source_keys
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.models.parameters import merge
from tests.commands import SMALL, call, train_words

WORDS = ("--config", "configs/demo.py", *SMALL)


@pytest.fixture(scope="module")
def reflow(pairs, run, tmp_path_factory):
    """Two draws for each of 16 pairs, in shards of 4 records, by the command."""
    out = tmp_path_factory.mktemp("reflow") / "data"
    options = ("--teacher-steps", 2, "--draws", 2, "--records-per-shard", 4, "--batch-size", 3, "--config.seed=9")
    call("precompute", *WORDS, "--pairs", pairs, "--teacher", run, "--out", out, *options)
    return out


def test_high_res_latents_are_the_teachers_from_the_records_noise(reflow, pairs, run):
    info, source = DatasetInfo.read(reflow), PairSource(DatasetInfo.read(pairs))
    booster, made = Booster.load(run), PairSource(info)
    assert (info.records, len(info.shards)) == (32, 8)
    assert info.teacher is not None
    assert info.teacher.source == booster.coupling
    # The weights are those that the checkpoint averages.
    assert info.teacher.weights == booster.fingerprint
    network = merge(booster.graph, booster.parameters)
    for record in (0, 1, 13, 31):
        pair, original = made[record], source[record // 2]
        np.testing.assert_array_equal(pair["low"], original["low"])
        assert made.origin(record) == source.origin(record // 2)
        low = booster.first_stage.spec.scale(jnp.asarray(original["low"], jnp.float32)[None])
        noise = sample_noise(source_keys(record_keys(9, jnp.asarray([record])))[0], low.shape[1:])
        high = boost_latents(network.velocity, low, noise, coupling=booster.coupling, solver=Solver("euler", 2))
        expected = booster.first_stage.spec.unscale(high)[0]
        np.testing.assert_allclose(pair["high"], expected, atol=2e-3)  # float16
    assert np.abs(made[0]["high"] - made[1]["high"]).max() > 0.01  # another draw


def test_continues_with_the_same_bytes(reflow, pairs, run, tmp_path):
    booster, info = Booster.load(run, devices=jax.devices()), DatasetInfo.read(pairs)  # the command's devices
    teacher, boost = teach(booster, info, Solver("euler", 2), draws=2, seed=9)
    sizes = {"records_per_shard": 4, "batch_size": 3, "batch_multiple": booster.mesh.size}

    def make(boost, share):
        return reflow_pairs(info, teacher, boost, booster.first_stage, tmp_path / "out", **sizes, **share)

    def stops_after_two(low, records):
        if records[0] >= 8:
            raise KeyboardInterrupt
        return boost(low, records)

    with pytest.raises(KeyboardInterrupt):
        make(stops_after_two, {})
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert make(boost, {"process_index": 1, "process_count": 2}) is None
    assert make(boost, {"process_index": 0, "process_count": 2}) is not None
    for file in reflow.rglob("*"):
        if file.is_file() and file.name != "preview.png":
            assert (tmp_path / "out" / file.relative_to(reflow)).read_bytes() == file.read_bytes()
    other, _ = teach(booster, info, Solver("euler", 3), draws=2, seed=9)
    with pytest.raises(InputError, match="teacher was"):
        reflow_pairs(info, other, boost, booster.first_stage, tmp_path / "out", records_per_shard=4)
    with pytest.raises(InputError, match="were made by a flow"):
        reflow_pairs(DatasetInfo.read(reflow), teacher, boost, booster.first_stage, tmp_path / "other")


def test_trains_on_them(reflow, tmp_path):
    words = train_words(reflow, tmp_path / "run", "--config.train.steps=2", "--config.objective=reflow")
    call("train", *words)
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    assert Booster.load(tmp_path / "run").boost(jnp.zeros((1, 16, 16, 3)), steps=1).shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--config.objective=reflow",), "trains on pairs that a flow made"),
        (("--config.source.noise_step=11",), "noise_step: 10 → 11"),
    ],
)
def test_training_refuses_a_dataset_that_does_not_fit(options, message, reflow, pairs, tmp_path):
    data = pairs if "objective" in options[0] else reflow
    with pytest.raises(InputError, match=message):
        call("train", *train_words(data, tmp_path / "run", *options))


def test_options_of_reflow_need_each_other(pairs, tmp_path):
    with pytest.raises(InputError, match="go together"):
        call("precompute", *WORDS, "--pairs", pairs, "--out", tmp_path / "out")


def test_a_teacher_of_another_factor_is_refused(pairs, run):
    booster = Booster.load(run)
    booster.factor = 4
    with pytest.raises(InputError, match="enlarges ×4"):
        teach(booster, DatasetInfo.read(pairs), Solver(), draws=1, seed=0)
