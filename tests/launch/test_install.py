"""The Dockerfile's steps, with a stub of the interpreter that records its arguments."""

import os
import re
import subprocess

import pytest

from tests.commands import ROOT


@pytest.mark.parametrize(("device", "extras"), [("cpu", "web,hub"), ("cuda", "cuda,web,hub"), ("tpu", "tpu,web,hub")])
def test_install(device, extras, tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "calls"}\n')
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python)}
    subprocess.run(["bash", ROOT / "launch" / "install.sh", device], env=environment, check=True, capture_output=True)
    install, *checks = (tmp_path / "calls").read_text().splitlines()
    assert install.endswith(f"--constraint constraints.txt .[{extras}]")
    assert checks == ["-m fmboost_jax --version", "-m fmboost_jax sample --help"]


def test_unknown_device():
    done = subprocess.run(["bash", ROOT / "launch" / "install.sh", "abacus"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: device abacus is unknown; expected one of cpu, cuda, tpu\n"


def test_the_dockerfile_runs_the_script():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert 'RUN bash /opt/fmboost_jax/launch/install.sh "$DEVICE"' in lines
    ignored = (ROOT / ".dockerignore").read_text().split()
    needed = (
        "pyproject.toml",
        "setup.py",
        "constraints.txt",
        "configs",
        "fmboost_jax",
        "launch",
        "README.md",
        "LICENSE",
    )
    assert not set(ignored) & set(needed)
    assert re.search(r"^FROM python:3\.11", "\n".join(lines), re.MULTILINE)  # the constraints are those of 3.11
