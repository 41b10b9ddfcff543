"""A dataset, a run and a bundle that version 0.1 wrote load and give the recorded numbers."""

import dataclasses
import json
import pathlib
import tarfile

import numpy as np
import pytest

from fmboost_jax import Booster
from fmboost_jax.data.dataset import DatasetInfo
from fmboost_jax.data.pipeline import spread_records
from fmboost_jax.train import train
from fmboost_jax.training.config import TrainingConfig, read_saved


@pytest.fixture(scope="module")
def legacy(tmp_path_factory) -> pathlib.Path:
    """The unpacked folders; `expected.npz` has latents, and what 2 Euler steps with seed 0 made of them."""
    folder = tmp_path_factory.mktemp("version_0_1")
    with tarfile.open(pathlib.Path(__file__).parent / "version_0_1.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize(("name", "expected"), [("bundle", "boosted"), ("run", "run")])
def test_a_bundle_and_a_run_boost_as_they_did(legacy, name, expected):
    with np.load(legacy / "expected.npz") as numbers:
        boosted = Booster.load(legacy / name).boost(numbers["latents"], steps=2)
        np.testing.assert_allclose(boosted, numbers[expected], atol=1e-5)


def test_a_dataset_is_read(legacy):
    info = DatasetInfo.read(legacy / "dataset")
    assert (info.records, info.low_shape, info.high_shape) == (4, (16, 16, 3), (16, 16, 3))
    pairs = spread_records(info, 4)
    assert pairs["low"].shape == (4, 16, 16, 3)
    assert np.isfinite(pairs["high"].astype(np.float32)).all()


def test_a_run_resumes(legacy, capsys):
    """Its saved config has neither `network` nor `objective`: the defaults are version 0.1's. Updates keep
    that version's order."""
    run = legacy / "run"
    saved = json.loads((run / "checkpoints/2/config/metadata").read_text())
    config = read_saved(TrainingConfig, saved, "the saved config")
    assert (config.optim.warmup_offset, config.ema.takes_in) == (0, "after")
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, dir=str(legacy / "dataset")),
        train=dataclasses.replace(config.train, steps=3, batch_size=8),  # one for each of the virtual devices
    )
    assert train(config, str(run), allow_config_change=True)
    assert "resuming from step 2" in capsys.readouterr().out
    assert (run / "checkpoints/3").is_dir()
