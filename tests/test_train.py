"""`python -m fmboost_jax.train`: resumes bit for bit, refuses bad input in one line."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess

import numpy as np
import pytest

from fmboost_jax.data.dataset import DatasetInfo
from fmboost_jax.errors import PREEMPTED
from fmboost_jax.runtime.lock import FolderLock
from fmboost_jax.training.checkpoints import load_weights
from tests import commands
from tests.commands import ROOT, call, call_refused, command, environment, words

STEPS = 12
RESUMABLE = (f"--config.train.steps={STEPS}", "--config.checkpoint.every=3", "--config.checkpoint.keep=2")


def train_words(data, workdir, *arguments):
    """A network of one level: most of these runs' time is its compilation."""
    return commands.train_words(data, workdir, "--config.unet.channel_mult=(1,)", *arguments)


@pytest.fixture(scope="module")
def whole_run(pairs, tmp_path_factory):
    """An uninterrupted run, with its evaluations."""
    workdir = tmp_path_factory.mktemp("whole")
    done = command("train", *train_words(pairs, workdir, *RESUMABLE))
    return workdir, done


@pytest.fixture
def continued(whole_run, tmp_path):
    """A copy of the run, to continue."""
    return shutil.copytree(whole_run[0], tmp_path / "run")


def assert_same_weights(found, expected):
    for ema in (True, False):
        (a, _, step_a), (b, _, step_b) = (load_weights(str(run), ema=ema) for run in (found, expected))
        assert step_a == step_b == STEPS
        for name in b:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def interrupt(process, step: int, how: signal.Signals) -> bool:
    """Wait until the bar shows a step (or the end), then send the signal; whether the process was still training."""
    shown = ""
    while character := process.stderr.read(1):
        shown = (shown + character)[-80:]
        reached = re.search(rf" (\d+)/{STEPS} ", shown)
        if reached and int(reached[1]) >= step:
            break
    alive = process.poll() is None
    process.send_signal(how)
    process.communicate()
    return alive


def test_interrupted_runs_end_with_the_same_bits(pairs, whole_run, tmp_path):
    """After SIGKILL and SIGTERM, all parameters equal those of an uninterrupted run.

    SIGTERM alone saves: its process has no checkpoint due.
    """
    typed = words("train", *train_words(pairs, tmp_path, *RESUMABLE, "--allow-config-change"))
    for step, how in ((4, signal.SIGKILL), (7, signal.SIGTERM)):
        never = ["--config.checkpoint.every=1000"] if how == signal.SIGTERM else []
        process = subprocess.Popen(
            typed + never, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert interrupt(process, step, how)
        if how == signal.SIGTERM:
            assert process.returncode == PREEMPTED
            assert load_weights(str(tmp_path))[2] >= step
    command("train", *typed[3:])
    assert_same_weights(tmp_path, whole_run[0])
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) == list(range(1, STEPS + 1))


def test_the_output_describes_the_run(pairs, photographs, tmp_path, capsys):
    evaluation = ("every=2", "images=4", f"photographs={photographs}")
    options = ("--config.train.steps=4", *(f"--config.evaluate.{option}" for option in evaluation))
    call("train", *train_words(pairs, tmp_path, *options))
    printed = capsys.readouterr()
    for word in ("parameters", "devices", "mesh", "temporaries", "FLOP", "psnr", "finished; step 4 of 4"):
        assert word in printed.out
    for word in ("loss", "samples/s", "data wait"):
        assert word in printed.err
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    assert [line["step"] for line in trained] == [1, 2, 3, 4]
    assert all({"steps_per_second", "samples_per_second", "data_wait_share"} <= line.keys() for line in trained)
    evaluated = [line for line in lines if "evaluate/psnr" in line]
    assert [line["step"] for line in evaluated] == [2, 4]
    assert all(0 <= line["evaluate/ssim"] <= 1 for line in evaluated)
    assert all(line["evaluate/photograph/psnr"] < line["evaluate/photograph/decoded/psnr"] for line in evaluated)
    assert (tmp_path / "pictures" / "samples_00000004.png").stat().st_size > 1000
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_second_training_in_one_workdir_is_refused(pairs, tmp_path):
    with FolderLock(tmp_path):
        for command, *rest in (("train", f"--config.data.dir={pairs}"), ("train_autoencoder",)):
            config = "configs/demo.py" if rest else "configs/autoencoder_demo.py"
            line = call_refused(command, "--config", config, "--workdir", tmp_path, *rest)
            assert f"folder {tmp_path} is in use by another training (process " in line
        assert os.listdir(tmp_path) == [".lock"]
    assert os.listdir(tmp_path) == []


def test_changed_config_is_refused_by_name_unless_allowed(pairs, continued, capsys):
    """How many checkpoints stay may change: the last, and every sixth."""
    saved = continued / "checkpoints"
    assert sorted(int(path.name) for path in saved.iterdir()) == [9, 12]
    changed = train_words(pairs, continued, *RESUMABLE, "--config.train.steps=13", "--config.optim.lr=7e-4")
    line = call_refused("train", *changed)
    assert "optim.lr: " in line
    assert "→ 0.0007" in line
    assert "train.steps: 12 → 13" in line
    kept = ("--config.checkpoint.keep=1", "--config.checkpoint.keep_every=6", "--config.checkpoint.every=1")
    call("train", *changed, *kept, "--config.train.steps=14", "--allow-config-change")
    assert "step 14 of 14" in capsys.readouterr().out
    assert sorted(int(path.name) for path in saved.iterdir()) == [12, 14]
    other = train_words(pairs, continued, "--config.train.steps=13", "--config.unet.num_res_blocks=2")
    line = call_refused("train", *other, "--allow-config-change")
    assert "another architecture" in line
    assert "unet.num_res_blocks: 1 → 2" in line


@pytest.mark.parametrize("kind", ["run", "bundle"])
def test_starts_from_other_weights_also_with_a_second_time(pairs, whole_run, tmp_path, kind):
    """The second time's embedding starts at zero, so a shortcut model starts with the flow's velocity.

    The dtype of the computation may be another one.
    """
    options = ("--config.train.steps=1", "--config.objective=shortcut", "--config.unet.time_inputs=2")
    options += ("--config.unet.dtype=bfloat16",)
    weights = whole_run[0]
    if kind == "bundle":
        weights = tmp_path / "bundle"
        call("export", "--checkpoint", str(whole_run[0]), "--out", str(weights))
    start = f"--config.train.init_from={weights}"
    call("train", *train_words(pairs, tmp_path / "shortcut", *options, start, "--config.optim.lr=1e-30"))
    (found, _, _), (expected, _, _) = load_weights(str(tmp_path / "shortcut")), load_weights(str(whole_run[0]))
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    second = {name: value for name, value in found.items() if name not in expected}
    assert {name.partition(".")[0] for name in second} == {"second_time1", "second_time2"}
    assert np.abs(second["second_time2.kernel"]).max() < 1e-20
    line = call_refused(
        "train", *train_words(pairs, tmp_path / "other", *options, start, "--config.unet.num_res_blocks=2")
    )
    assert "unet.num_res_blocks: 1 → 2" in line
    assert "time_inputs" not in line
    assert not (tmp_path / "other").exists()


def test_full_disk_keeps_the_last_checkpoint(pairs, continued, capsys):
    """A limit on the size of files acts as a full disk: a later save fails."""
    more = train_words(pairs, continued, "--config.train.steps=14", "--allow-config-change")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
        line = call_refused("train", *more)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "is the disk full?" in line
    assert "the last whole checkpoint is step 12" in line
    assert load_weights(str(continued))[2] == 12
    call("train", *more)
    assert "step 14 of 14" in capsys.readouterr().out


def test_a_changed_byte_of_a_checkpoint_is_named_and_the_last_whole_one(pairs, whole_run, tmp_path):
    shutil.copytree(whole_run[0], tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    arrays = max((folder / "12" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(arrays.read_bytes())
    content[len(content) // 2] ^= 1
    arrays.write_bytes(content)
    line = call_refused("train", *train_words(pairs, tmp_path / "run", *RESUMABLE))
    assert re.search(rf"checkpoint {folder}/12 is damaged \(array (parameters|ema|optimizer)\.\S+ changed after", line)
    assert "the last whole one is step 9" in line


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_records(pairs, continued):
    good = load_weights(str(continued))[0]
    patience = 3
    line = call_refused(
        "train",
        *train_words(pairs, continued, "--config.train.steps=50", "--config.checkpoint.every=1"),
        "--config.optim.lr=1e38",
        f"--config.train.nan_patience={patience}",
        "--allow-config-change",
    )
    assert "nonfinite.json" in line
    dumped = json.loads((continued / "nonfinite.json").read_text())
    assert all(len(step["record"]) == len(step["position"]) == 4 for step in dumped)
    first = dumped[0]["step"]
    saved = load_weights(str(continued))
    assert saved[2] < first
    assert all(np.isfinite(value).all() for value in saved[0].values())
    assert good.keys() == saved[0].keys()
    steps = [json.loads(row)["step"] for row in (continued / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) < first + patience


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("--config.optim.lrr=1", 'Did you mean "lr"'),
        ("--config.train.steps=1e3", "invalid literal for int()"),
        ("--config.data.dir=nowhere", "nowhere"),
        ("--config.data.high_res=64", "high_res"),
        ("--config.optim.lr=0.0", "optim.lr is 0.0, expected more than 0"),
        ("--config.mesh.fsdp=3", "fsdp=3"),
        ("--config.unet.model_channels=48", "multiple of 32"),
        ("--config.unet.attention_resolutions=(3,)", "is (3,), expected factors of this UNet's levels, 1, or ()"),
        ("--config.path=cubic", "linear, gvp"),
        ("--config.first_stage.kind=vq", "identity, kl, tiny"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(pairs, tmp_path, override, expected):
    assert expected in call_refused("train", *train_words(pairs, tmp_path / "run", "--config.train.steps=2"), override)
    assert not (tmp_path / "run").exists()


def test_damaged_shard_is_named_with_its_record(pairs, tmp_path):
    damaged = tmp_path / "pairs"
    shutil.copytree(pairs, damaged)
    shard = damaged / DatasetInfo.read(damaged).shards[0].name
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    line = call_refused("train", *train_words(damaged, tmp_path / "run", "--config.train.steps=9"))
    assert shard.name in line
    assert "record" in line
