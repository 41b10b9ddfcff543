"""The notebooks: each equals its script and runs in small; `tests/boosting/test_pipelines.py` runs that of prompts."""

import runpy

import matplotlib as mpl
import pytest

from tests.commands import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run_example(name):
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_the_notebook_is_the_script(script):
    jupytext = pytest.importorskip("jupytext", reason="notebooks are made of scripts by jupytext")
    notebook, source = jupytext.read(script.with_suffix(".ipynb")), jupytext.read(script)
    assert [(c.cell_type, c.source) for c in notebook.cells] == [(c.cell_type, c.source) for c in source.cells]


@pytest.mark.parametrize("name", ["upscale_a_photograph", "the_flow_in_2d"])
def test_the_notebook_runs_with_small_settings(name, monkeypatch):
    monkeypatch.setenv("FMBOOST_SMALL", "1")
    mpl.use("Agg")
    found = run_example(name)
    if name == "upscale_a_photograph":
        assert found["large"].size == (96, 96)
    if name == "the_flow_in_2d":
        assert sum(found["losses"][-20:]) < 0.9 * sum(found["losses"][:20])


def test_training_on_ones_own_photographs(monkeypatch):
    monkeypatch.setenv("FMBOOST_SMALL", "1")
    found = run_example("train_on_your_photographs")
    assert found["booster"](found["photograph"]).size == (128, 128)


def test_planning_for_a_tpu(monkeypatch, tmp_path, capsys):
    pytest.importorskip("libtpu")
    monkeypatch.setenv("FMBOOST_SMALL", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run_example("plan_and_train_on_a_tpu")
    assert "MFU" in capsys.readouterr().out
