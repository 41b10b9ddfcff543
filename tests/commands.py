"""Commands as a user types them, on small real data: each in a new process, or faster within the tests' own."""

import functools
import importlib
import os
import pathlib
import signal
import subprocess
import sys

import jax
import pytest

from fmboost_jax.errors import InputError
from fmboost_jax.parallel.mesh import make_mesh
from tests.conftest import COMPILER_FLAGS

ROOT = pathlib.Path(__file__).parents[1]

# Overrides of configs/demo.py for pixels as latents, the first stage without computation.
PIXELS = (
    "--config.first_stage.kind=identity",
    "--config.first_stage.path=",
    "--config.source.noise_step=10",
    "--config.unet.in_channels=6",
    "--config.unet.out_channels=3",
)
# Overrides that make it small enough to train in seconds.
SMALL = (
    *PIXELS,
    "--config.data.crop_scale=1.0",
    "--config.data.low_res=16",
    "--config.data.high_res=32",
    "--config.data.crops=4",
    "--config.unet.model_channels=32",
    "--config.unet.channel_mult=(1,2)",
    "--config.unet.dim_head=16",
    "--config.unet.pool_factor=1",
    "--config.train.batch_size=4",
    "--config.train.log_every=1",
    "--config.evaluate.every=0",
    "--config.optim.warmup_steps=5",
    "--config.ema.copy_until=5",
)


def environment() -> dict[str, str]:
    """One device, regardless of the tests' own process, and its compiler flags."""
    return {**os.environ, "XLA_FLAGS": COMPILER_FLAGS, "PYTHONUNBUFFERED": "1"}


def words(module: str, *arguments) -> list[str]:
    """`python -m fmboost_jax.<module> …`."""
    return [sys.executable, "-m", f"fmboost_jax.{module}", *map(str, arguments)]


def command(module: str, *arguments, status: int = 0, **options) -> subprocess.CompletedProcess:
    """Run a command to its end and check its exit status."""
    done = subprocess.run(
        words(module, *arguments), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600, **options
    )
    assert done.returncode == status, f"exit {done.returncode}, expected {status}\n{done.stdout}\n{done.stderr}"
    return done


def refused(module: str, *arguments, **options) -> str:
    """Run a command that must fail as bad input does; returns its one line."""
    done = command(module, *arguments, status=2, **options)
    assert "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def call(module: str, *arguments) -> None:
    """Run a command's main function within this process; training uses one device of eight."""
    main = importlib.import_module(f"fmboost_jax.{module}")
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        if module == "train":
            patch.setattr(main, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
            patch.setattr(main, "keep_freed_memory", lambda: False)  # it would hold for the tests that follow
        try:
            main.main([str(argument) for argument in arguments])
        finally:
            signal.signal(signal.SIGTERM, handler)


def call_refused(module: str, *arguments) -> str:
    """Run a command within this process that must fail as bad input does; returns its one line."""
    with pytest.raises(InputError) as refusal:
        call(module, *arguments)
    line = str(refusal.value)
    assert "\n" not in line
    return line


def train_words(data, workdir, *arguments) -> list[str]:
    """A small training command."""
    return ["--config", "configs/demo.py", "--workdir", workdir, f"--config.data.dir={data}", *SMALL, *arguments]
