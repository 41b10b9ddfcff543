"""Experiment trackers, with the real package where it stores its records locally."""

import json
import os
import sqlite3
import subprocess
import sys

import pytest

from fmboost_jax.errors import InputError
from fmboost_jax.training.tracker import check_tracker

# In another process: the package keeps threads and reads its folder when it is imported.
RUN = """
import sys
import numpy as np
from fmboost_jax.training.logs import Logs
from fmboost_jax.training.tracker import Tracker

def records(start):
    logs = Logs("runs/one", start, Tracker("trackio", "runs/one", {"optim": {"lr": 0.5}}))
    logs.scalars(start + 1, {"loss": 1.0 / (start + 1)})
    if not start:
        logs.image(1, "samples", np.zeros((4, 6, 3), np.uint8))
    logs.close()

records(0)
records(1)
"""


def test_a_continued_run_has_one_record(tmp_path):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "track"), "TRACKIO_PROJECT": "upsampling"}
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(tmp_path / "track" / "upsampling.db") as database:
        query = "SELECT run_name, step, CAST(metrics AS TEXT) FROM metrics ORDER BY step, id"
        rows = database.execute(query).fetchall()
        (config,) = database.execute("SELECT CAST(config AS TEXT) FROM configs").fetchall()
    assert {name for name, _, _ in rows} == {"one"}
    losses = {step: json.loads(text)["loss"] for _, step, text in rows if "loss" in text}
    assert losses == {1: 1.0, 2: 0.5}
    assert any("samples" in text for _, _, text in rows)
    assert json.loads(config[0])["optim"] == {"lr": 0.5}


def test_unknown_and_missing_trackers_are_refused(monkeypatch):
    check_tracker("")
    with pytest.raises(InputError, match="expected one of"):
        check_tracker("notebook")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install wandb"):
        check_tracker("wandb")
