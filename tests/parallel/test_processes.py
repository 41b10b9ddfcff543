"""Real processes as one run: they share the data, are killed, stop together, and resume in any number."""

import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from fmboost_jax.errors import BAD_INPUT, PREEMPTED, InputError
from fmboost_jax.parallel import distributed
from fmboost_jax.training.checkpoints import load_weights
from tests.commands import PIXELS, ROOT, call_refused, environment
from tests.datasets import write_dataset

STEPS = 9
ANY_FAILURE = object()
# Adam's eps is large so that rounding stays rounding: else a gradient near zero moves its weight by a whole lr.
TINY = (
    *PIXELS,
    "--config.data.low_res=8",
    "--config.data.high_res=16",
    "--config.unet.model_channels=32",
    "--config.unet.channel_mult=(1,)",
    "--config.unet.num_res_blocks=1",
    "--config.unet.dim_head=16",
    "--config.optim.lr=1e-2",
    "--config.optim.eps=1e-3",
    "--config.optim.warmup_steps=2",
    "--config.ema.copy_until=2",
    f"--config.train.steps={STEPS}",
    "--config.train.batch_size=4",
    "--config.train.log_every=1",
    "--config.checkpoint.every=3",
    f"--config.evaluate.every={STEPS}",
    "--config.evaluate.images=4",
    "--config.evaluate.steps=1",
    "--config.processes.timeout=30",
)
# Variables that launchers set.
SLURM = {
    "SLURM_JOB_ID": 7,
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_STEP_NUM_NODES": 1,
    "SLURM_NTASKS": "{count}",
    "SLURM_PROCID": "{index}",
    "SLURM_LOCALID": "{index}",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://127.0.0.1:1",
    "OMPI_COMM_WORLD_SIZE": "{count}",
    "OMPI_COMM_WORLD_RANK": "{index}",
    "OMPI_COMM_WORLD_LOCAL_RANK": "{index}",
}
# Runs the command, and dies by SIGKILL in the middle of saving step 6, when half of the checkpoint is written.
DIES_SAVING = """
import os, pathlib, signal, sys
from grain.checkpoint import CheckpointHandler
from fmboost_jax import errors, train
save = CheckpointHandler.save
def die_at_step_6(handler, directory, *arguments, **options):
    if str(directory.parent.name).partition(".")[0] == "6":
        os.kill(os.getpid(), signal.SIGKILL)
    return save(handler, directory, *arguments, **options)
CheckpointHandler.save = die_at_step_6
errors.run(train.main)
"""


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("latents")).folder


@pytest.fixture(scope="module")
def launch(latents, tmp_path_factory):
    """Starts processes of one run; returns them. Process 0's stderr is a pipe, the others write to files."""
    home = tmp_path_factory.mktemp("home")
    inherited = {name: value for name, value in environment().items() if name != "JAX_COMPILATION_CACHE_DIR"}
    surroundings = {
        **inherited,
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(home),
        # Kernels are divided among a process's threads, and so rounded: as many of them for one device as for two.
        "NPROC": "2",
        # Compiling is what these tests would wait for.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    started = []

    def start(count, workdir, *overrides, devices=1, programs=None, environ=None):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        run = []
        for index in range(count):
            program = (programs or {}).get(index, ["-m", "fmboost_jax.train"])
            words = ["--config", "configs/demo.py", "--workdir", str(workdir), f"--config.data.dir={latents}", *TINY]
            words += overrides
            flags = f"{surroundings['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
            settings = {**surroundings, "XLA_FLAGS": flags}
            if environ:
                settings |= {name: str(value).format(index=index, count=count) for name, value in environ.items()}
                settings["JAX_COORDINATOR_PORT"] = str(port)
            elif count > 1:
                words += [f"--coordinator=localhost:{port}", f"--process-count={count}", f"--process-index={index}"]
            with open(home / f"log{index}", "w") as log:
                process = subprocess.Popen(
                    [sys.executable, *program, *words],
                    cwd=ROOT,
                    env=settings,
                    stdout=subprocess.PIPE,
                    stderr=log if index else subprocess.PIPE,
                    text=True,
                )
            run.append(process)
        started.extend(run)
        return run

    start.home = home
    yield start
    for process in started:
        process.kill()
        process.wait()


def end(run, statuses=None, seconds=300):
    """Wait for all to end, so long at most, and check their exit statuses; returns what they printed."""
    outputs = [process.communicate(timeout=seconds) for process in run]
    found = [process.returncode for process in run]
    for status, expected in zip(found, statuses or [0] * len(run), strict=True):
        assert status == expected or (expected is ANY_FAILURE and status not in (0, PREEMPTED)), (found, outputs)
    return outputs


def wait_for_step(process, step):
    """Read the bar until it shows a step."""
    shown = ""
    while character := process.stderr.read(1):
        shown += character
        reached = re.search(r" (\d+)/\d+ \[", shown[-80:])
        if reached and int(reached[1]) >= step:
            return
    raise AssertionError(f"ended before step {step}: {shown}")


def losses(workdir):
    """Of every step, which must stand there once."""
    lines = [line for line in metrics(workdir) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def scores(workdir):
    """What the last evaluation found."""
    (last,) = [line for line in metrics(workdir) if "evaluate/psnr" in line]
    return last


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def checkpoints(workdir):
    return sorted(int(name) for name in os.listdir(workdir / "checkpoints") if name.isdigit())


def weights(workdir):
    online, average = (load_weights(str(workdir), ema=ema)[0] for ema in (False, True))
    return online | {f"ema.{name}": value for name, value in average.items()}


@pytest.fixture(scope="module")
def whole(launch, tmp_path_factory):
    """An uninterrupted run: one process with two devices."""
    workdir = tmp_path_factory.mktemp("whole")
    ((output, _),) = end(launch(1, workdir, "--config.profile.steps=2,3", devices=2))
    return workdir, output


def test_one_process_with_two_devices(launch, whole):
    """The other runs are compared with this one; it writes a profile and compiled programs."""
    workdir, output = whole
    assert "devices                   2 × cpu, 1 process(es)" in output
    assert len(losses(workdir)) == STEPS
    (trace,) = (workdir / "profile").rglob("*.trace.json.gz")
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    assert {"train_step"} <= {word for event in events for word in ("train_step",) if word in event.get("name", "")}
    assert list((launch.home / "fmboost_jax").glob("jit_train_step*"))


def test_killed_while_saving_and_resumed_with_the_same_bits(launch, whole, tmp_path):
    """A run of one process is continued by two, one of which dies inside a save.

    The other exits within the timeout, and the incomplete checkpoint is ignored.
    """
    shutil.copytree(whole[0] / "checkpoints" / "3", tmp_path / "checkpoints" / "3")
    shutil.copy(whole[0] / "metrics.jsonl", tmp_path)
    survivor, victim = launch(2, tmp_path, programs={1: ["-c", DIES_SAVING]})
    victim.wait(timeout=300)
    outputs = end([victim, survivor], [-signal.SIGKILL, ANY_FAILURE], seconds=60)
    assert "finished" not in outputs[1][0]
    assert checkpoints(tmp_path) == [3]
    assert [name for name in os.listdir(tmp_path / "checkpoints") if name.startswith("6.")]
    (first, _), (second, _) = end(launch(2, tmp_path, environ=OPEN_MPI))
    assert "resuming from step 3" in first
    assert "2 × cpu, 2 process(es)" in first
    assert re.search(r"[1-9] program\(s\) found in \S+/compilation_cache", first)
    assert "finished" not in second
    assert losses(tmp_path) == losses(whole[0])
    found = weights(tmp_path)
    for name, value in weights(whole[0]).items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert scores(tmp_path) == pytest.approx(scores(whole[0]), rel=1e-5)
    assert checkpoints(tmp_path) == [3, 6, 9]


def test_sigterm_to_one_stops_all_and_any_number_resumes(launch, tmp_path):
    """Two processes are stopped, two of two devices resume until one is killed, and one finishes.

    One process is the reference.
    """
    plain = "--config.evaluate.every=0"
    stopped = launch(
        2, tmp_path / "many", plain, "--config.train.steps=100000", "--config.checkpoint.every=100000", environ=SLURM
    )
    wait_for_step(stopped[0], 1)
    stopped[1].send_signal(signal.SIGTERM)
    (first, _), _ = end(stopped, [PREEMPTED] * 2)
    assert "stopped by SIGTERM" in first
    (step,) = checkpoints(tmp_path / "many")
    assert f"step {step} of" in first
    shutil.copytree(tmp_path / "many", tmp_path / "one")

    last = step + 6
    going_on = (plain, f"--config.train.steps={last}", "--config.checkpoint.every=2", "--allow-config-change")
    split = launch(2, tmp_path / "many", *going_on, "--config.mesh.fsdp=2", "--config.mesh.spatial=2", devices=2)
    # The save before the last has ended by then: a save waits for the one before it.
    wait_for_step(split[0], step + 5)
    split[0].kill()
    end(split, [-signal.SIGKILL, ANY_FAILURE], seconds=60)
    assert max(checkpoints(tmp_path / "many")) > step
    for workdir in ("many", "one"):
        ((output, _),) = end(launch(1, tmp_path / workdir, *going_on))
        assert f"finished; step {last} of {last}" in output
    assert re.search(r"[1-9] program\(s\) found in \S+/fmboost_jax", output)
    # Float32 rounding; a batch in another order would show in the losses.
    np.testing.assert_allclose(losses(tmp_path / "many"), losses(tmp_path / "one"), rtol=1e-5)
    expected = weights(tmp_path / "one")
    for name, value in weights(tmp_path / "many").items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5, err_msg=name)


def test_all_processes_exit_with_the_code_of_bad_input(launch, tmp_path):
    """Bad input ends every process with exit code 2, so that no launch script retries it."""
    run = launch(2, tmp_path, "--config.data.dir=nowhere")
    (_, said), _ = end(run, [BAD_INPUT] * 2)
    assert "error: data folder nowhere does not exist" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--process-count=2", "--process-index=0"], "found None, 2, 0"),
        (["--coordinator=localhost:1", "--process-count=2", "--process-index=2"], "index from 0 to N − 1"),
        (["--coordinator=localhost", "--process-count=2", "--process-index=1"], "HOST:PORT"),
        (["--config.processes.timeout=0"], "processes.timeout is 0"),
        (["--config.profile.steps=20,10"], "(20, 10)"),
    ],
)
def test_bad_input_gets_one_line(latents, tmp_path, arguments, expected):
    words = ["--config", "configs/demo.py", "--workdir", str(tmp_path), f"--config.data.dir={latents}", *TINY]
    assert expected in call_refused("train", *words, *arguments)


def test_a_single_process_starts_nothing(monkeypatch):
    """Neither without a launcher's variables nor with SLURM's for one process."""
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: pytest.fail("there is nothing to shut down"))
    with distributed.processes(timeout=10):
        assert not jax.distributed.is_initialized()
    for name, value in SLURM.items():
        monkeypatch.setenv(name, str(value).format(index=0, count=1))
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("one process needs no start"))
    with distributed.processes(timeout=10):
        pass


def test_open_mpi_without_enough_variables_is_refused(monkeypatch):
    """Otherwise each process would train alone, in the same folder."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "8")
    with pytest.raises(InputError, match="add the coordinator"), distributed.processes(timeout=10):
        pass
