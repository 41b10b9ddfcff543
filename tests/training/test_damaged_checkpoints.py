"""A checkpoint that is truncated, changed or lacks a file: the message names it, the last whole one, the remedy."""

import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fmboost_jax.errors import InputError
from fmboost_jax.parallel.mesh import make_mesh
from fmboost_jax.training.checkpoints import Checkpoints, load_weights
from fmboost_jax.training.checksums import checksums, describe


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    """A working directory with steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("run")
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        for step in (1, 2):
            noise = np.random.default_rng(step).standard_normal((64, 40)).astype(np.float32)
            arrays = {"a": jnp.full(3, step, jnp.float32), "b": jnp.asarray(noise)}
            state = {"step": jnp.int32(step), "parameters": arrays, "ema": arrays}
            config = {"seed": step, "path": "linear"}
            content = {"config": config, "checksums": describe(state, config)}
            content = {name: ocp.args.JsonSave(value) for name, value in content.items()}
            manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), **content))
    return workdir


def _empty(step: pathlib.Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def _cut(step: pathlib.Path) -> None:
    for path in (step / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _without_arrays(step: pathlib.Path) -> None:
    for path in (step / "state").rglob("d/*"):
        path.unlink()


def _without_config(step: pathlib.Path) -> None:
    shutil.rmtree(step / "config")


def _with_another_config(step: pathlib.Path) -> None:
    path = step / "config" / "metadata"
    path.write_text(path.read_text().replace("linear", "lineal"))


@pytest.mark.parametrize("damage", [_empty, _cut, _without_arrays, _without_config, _with_another_config])
def test_the_last_whole_checkpoint_is_named_and_can_be_read(run, tmp_path, damage):
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
    assert (config, step) == ({"seed": 1, "path": "linear"}, 1)
    np.testing.assert_array_equal(weights["a"], np.ones(3, np.float32))


def test_no_whole_checkpoint(run, tmp_path):
    shutil.copytree(run / "checkpoints" / "2", tmp_path / "checkpoints" / "2")
    _without_config(tmp_path / "checkpoints" / "2")
    checkpoints = Checkpoints(str(tmp_path))
    with pytest.raises(InputError, match=r"checkpoints/2 is damaged .* no other step is complete; start again"):
        checkpoints.config(2)
    checkpoints.close()


def test_a_changed_byte_is_named_with_its_array(run, tmp_path):
    """For a changed byte anywhere in the arrays' files, the loaded weights are correct or the step is refused."""
    shutil.copytree(run, tmp_path / "run")
    expected = load_weights(str(tmp_path / "run"))[0]
    state, chance, lines = tmp_path / "run" / "checkpoints" / "2" / "state", random.Random(0), []
    for path in sorted(path for path in state.rglob("*") if path.is_file() and path.stat().st_size):
        content = path.read_bytes()
        for _ in range(3):
            changed = bytearray(content)
            changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            path.write_bytes(changed)
            try:
                found = load_weights(str(tmp_path / "run"))[0]
                assert all(np.array_equal(found[name], expected[name]) for name in expected)
            except InputError as error:
                lines.append(str(error))
        path.write_bytes(content)
    assert all("checkpoints/2 is damaged (" in line and "the last whole one is step 1" in line for line in lines)
    assert any("(array ema.b changed after saving)" in line for line in lines)


SPLITS = [(None, None), ("data", None), (None, "fsdp"), ("fsdp", "data"), (("data", "fsdp"), None)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8])
@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 16)])
def test_checksums_do_not_depend_on_how_arrays_are_divided(shape, dtype):
    array = np.random.default_rng(0).integers(-100, 100, shape).astype(dtype)
    mesh, whole = make_mesh({"data": 2, "fsdp": 4, "spatial": 1}), checksums({"a": array})
    for split in SPLITS:
        sharding = NamedSharding(mesh, PartitionSpec(*[None] * (len(shape) - 2), *split))
        assert checksums({"a": jax.device_put(array, sharding)}) == whole


def test_every_change_of_one_word_changes_the_checksum():
    array = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    before = checksums([array])
    for place in range(array.nbytes):
        changed = bytearray(array.tobytes())
        changed[place] ^= 1 << place % 8
        assert checksums([np.frombuffer(changed, np.float32).reshape(array.shape)]) != before
    assert checksums([array[::-1]]) != before
    assert checksums([array[..., ::-1]]) != before
