"""A checkpoint that was cut, emptied or lost a file: which one it is, which one is whole, how to go on."""

import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fmboost_jax.errors import InputError
from fmboost_jax.training.checkpoints import Checkpoints, load_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    """A working directory with steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("run")
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        for step in (1, 2):
            arrays = {"a": jnp.full(3, step, jnp.float32)}
            state = {"step": jnp.int32(step), "parameters": arrays, "ema": arrays}
            content = {"state": ocp.args.StandardSave(state), "config": ocp.args.JsonSave({"seed": step})}
            manager.save(step, args=ocp.args.Composite(**content))
    return workdir


def _empty(step: pathlib.Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def _cut(step: pathlib.Path) -> None:
    largest = max(
        (path for path in (step / "state").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def _without_arrays(step: pathlib.Path) -> None:
    for path in (step / "state").rglob("d/*"):
        path.unlink()


def _without_config(step: pathlib.Path) -> None:
    shutil.rmtree(step / "config")


@pytest.mark.parametrize("damage", [_empty, _cut, _without_arrays, _without_config])
def test_the_whole_one_is_named_and_can_be_read(run, tmp_path, damage):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    folder = workdir / "checkpoints"
    damage(folder / "2")
    with pytest.raises(InputError) as caught:
        load_weights(str(workdir))
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"checkpoint {folder / '2'} is damaged (")
    assert f"the last whole one is step 1: to train on from there, move {folder / '2'} away" in line
    assert line.endswith(f"to sample, name {folder / '1'}")
    weights, config, step = load_weights(str(folder / "1"))
    assert (config, step) == ({"seed": 1}, 1)
    np.testing.assert_array_equal(weights["a"], np.ones(3, np.float32))


def test_none_is_whole(run, tmp_path):
    shutil.copytree(run / "checkpoints" / "2", tmp_path / "checkpoints" / "2")
    _without_config(tmp_path / "checkpoints" / "2")
    checkpoints = Checkpoints(str(tmp_path))
    with pytest.raises(InputError, match=r"checkpoints/2 is damaged .* no other step is whole; start again"):
        checkpoints.config(2)
    checkpoints.close()
