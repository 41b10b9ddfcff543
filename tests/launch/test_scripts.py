"""The launch scripts, with stubs of the cloud tools that record their arguments."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
SETTINGS = """
PROJECT=my-project REPOSITORY=https://example.org/code.git BUCKET=my-bucket CLUSTER=c IMAGE=registry/image POLL=0
"""
ACTIONS = [
    *(("tpu", action) for action in ("create", "state", "install", "train", "tail", "stop", "delete")),
    *((script, action) for script in ("gke", "slurm") for action in ("train", "state", "tail", "stop")),
]
# Writes its name and arguments as one line a shell could read; `replies` makes a call whose line holds a word fail or
# print, once each.
RECORDER = """#!{python}
import os, pathlib, shlex, sys
here = pathlib.Path(os.environ["RECORDS"])
line = shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])
with open(here / "calls", "a") as calls:
    calls.write(line + "\\n")
for reply in sorted(here.glob("reply-*")):
    word, output, status = reply.read_text().split("|")
    if word in line:
        reply.unlink()
        print(output)
        sys.exit(int(status))
"""


@pytest.fixture
def launch(tmp_path):
    """Runs a script; `launch.calls()` are the commands it gave."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("gcloud", "xpk", "kubectl", "sbatch", "srun", "scontrol", "squeue", "scancel", "tail"):
        (programs / name).write_text(RECORDER.format(python=sys.executable))
        (programs / name).chmod(0o755)
    settings = tmp_path / "pod.env"
    settings.write_text((LAUNCH / "pod.env").read_text() + SETTINGS)

    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "RECORDS": str(tmp_path),
        "LAUNCH_ENV": str(settings),
        "SLURM_JOB_ID": "7",
    }

    def shell(*words, status=0):
        typed = ["bash", "-c", *words] if len(words) == 1 else words
        done = subprocess.run(typed, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == status, done.stdout + done.stderr
        return done

    def run(script, *arguments, status=0):
        return shell(LAUNCH / f"{script}.sh", *arguments, status=status)

    def calls():
        path = tmp_path / "calls"
        return [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []

    def replies(*items):
        for index, (word, output, status) in enumerate(items):
            (tmp_path / f"reply-{index:02}").write_text(f"{word}|{output}|{status}")

    run.calls, run.replies, run.settings, run.shell = calls, replies, settings, shell
    return run


@pytest.mark.parametrize(("script", "action"), ACTIONS)
def test_a_dry_run_prints_what_a_run_calls(launch, script, action):
    printed = [shlex.split(line) for line in launch(script, action, "--dry-run").stdout.splitlines()]
    assert not launch.calls()
    launch(script, action)
    recorded = [words for words in printed if words[0] not in ("rm", "touch")]
    assert recorded == launch.calls() != []


def test_a_spot_slice_is_queued(launch):
    launch("tpu", "create")
    (words,) = launch.calls()
    assert words[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
    assert {"--spot", "--project=my-project", "--zone=us-west4-a", "--node-id=fmboost"} <= set(words)


def kind(words):
    """What a gcloud call is for."""
    if words[4] != "ssh":
        return words[4]
    return next(name for name in ("constraints.txt", "-m fmboost_jax.train", "tail -n 1") if name in words[-1])


def test_training_starts_again_after_a_preemption(launch):
    """No slice; an error; active; preempted in training; suspended; queued again; SIGTERM; finished."""
    launch.replies(
        ("describe", "NOT_FOUND", 1),
        ("describe", "the network is away", 1),
        ("describe", "ACTIVE", 0),
        ("-m fmboost_jax.train", "", 255),
        ("tail -n 1", "", 255),
        ("describe", "SUSPENDED", 0),
        ("describe", "NOT_FOUND", 1),
        ("describe", "ACTIVE", 0),
        ("-m fmboost_jax.train", "", 143),
        ("tail -n 1", "exit status 143", 0),
        ("describe", "ACTIVE", 0),
        ("tail -n 1", "exit status 0", 0),
    )
    launch("tpu", "until")
    train = ["describe", "constraints.txt", "-m fmboost_jax.train", "tail -n 1"]
    assert [kind(words) for words in launch.calls()] == [
        *("describe", "create", "describe", *train),
        *("describe", "delete", "describe", "create", *train),
        *train,
    ]


def test_bad_input_is_not_retried(launch):
    launch.replies(("describe", "ACTIVE", 0), ("tail -n 1", "exit status 2", 0))
    assert "refused its input" in launch("tpu", "until", status=2).stderr
    assert [kind(words) for words in launch.calls()].count("-m fmboost_jax.train") == 1


@pytest.mark.parametrize(("status", "stopped", "back"), [(0, 0, 0), (2, 0, 0), (143, 0, 1), (137, 0, 1), (143, 1, 0)])
def test_a_slurm_job_goes_back_into_the_queue_unless_it_is_done(launch, tmp_path, status, stopped, back):
    """The script for sbatch, run as SLURM would: finished, bad input, preempted, killed, stopped by the user."""
    launch("slurm", "train")
    job = launch.calls()[-1][-1].removeprefix("--wrap=")
    if stopped:
        (tmp_path / "fmboost.stopped").touch()
    launch.replies(("srun", "", status))
    launch.shell(job, status=status)
    assert [words[0] for words in launch.calls()[1:]] == ["srun", *["scontrol"] * back]


def test_a_workers_exit_status_is_in_the_log(launch, tmp_path):
    launch("tpu", "train")
    typed = launch.calls()[-1][-1].removeprefix("--command=")
    python = tmp_path / "fmboost_jax/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho trained "$2"; exit 143\n')
    python.chmod(0o755)
    launch.shell(typed, status=143)
    assert (tmp_path / "fmboost_jax/train.log").read_text() == "trained fmboost_jax.train\nexit status 143\n"


def test_it_stops_after_the_allowed_number_of_starts(launch):
    launch.settings.write_text(launch.settings.read_text() + "RESTARTS=1\n")
    launch.replies(*[("describe", "ACTIVE", 0), ("tail -n 1", "exit status 1", 0)] * 2)
    assert "in 2 starts" in launch("tpu", "until", status=1).stderr


@pytest.mark.parametrize("script", ["tpu", "gke", "slurm"])
def test_help_lists_the_actions(launch, script):
    assert launch(script, "--help").stdout.startswith(f"usage: launch/{script}.sh ACTION [--dry-run]")


@pytest.mark.parametrize(
    ("script", "arguments", "setting", "expected"),
    [
        ("tpu", [], "", "expected one of create"),
        ("gke", ["fly"], "", "'fly'"),
        ("slurm", ["train", "--fast"], "", "--fast"),
        ("tpu", ["create", "delete"], "", "delete"),
        ("tpu", ["create"], "PROJECT=", "PROJECT is empty"),
        ("tpu", ["create"], "SPOT=maybe", "expected yes or no"),
        ("slurm", ["train"], "GPUS=two", "whole number"),
    ],
)
def test_bad_input_is_one_line_and_calls_nothing(launch, script, arguments, setting, expected):
    launch.settings.write_text(launch.settings.read_text() + setting + "\n")
    (line,) = launch(script, *arguments, status=2).stderr.splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert not launch.calls()


def test_shellcheck():
    program = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is in the [dev] extra")
    scripts = [str(path.relative_to(LAUNCH.parent)) for path in sorted(LAUNCH.iterdir())]
    done = subprocess.run([program, "-x", *scripts], cwd=LAUNCH.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
