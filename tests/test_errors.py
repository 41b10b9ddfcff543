"""Exits of commands: one line and code 2 for input and environment, a traceback and code 1 for other faults."""

import errno
import os
import subprocess
import sys

import pytest

from fmboost_jax.errors import InputError, run
from tests.commands import ROOT


def ended(capsys, main) -> tuple[int, list[str]]:
    """Exit code and lines on stderr of a command with this main function."""
    with pytest.raises(SystemExit) as caught:
        run(main)
    return caught.value.code, capsys.readouterr().err.splitlines()


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize("folder", ["file/inside", "absent/file", "n" * 300, "closed/file"])
def test_files_that_cannot_be_written_are_one_line(tmp_path, capsys, folder):
    (tmp_path / "file").touch()
    (tmp_path / "closed").symlink_to("closed")
    code, lines = ended(capsys, (tmp_path / folder).touch)
    assert code == 2
    (line,) = lines
    assert line.startswith(f"error: {tmp_path / folder}: ")
    assert line.endswith(")")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InputError("no such thing"), "error: no such thing"),
        (OSError(errno.ENOSPC, "full", "a", None, "b"), "error: a → b: No space left on device (make room and run"),
        (OSError(errno.EMFILE, "many"), "error: Too many open files (raise the limit"),
        (MemoryError("no room\nfor 3"), "error: out of memory (no room for 3)"),
        (RuntimeError("RESOURCE_EXHAUSTED: 3 GB"), "error: out of memory (RESOURCE_EXHAUSTED: 3 GB)"),
    ],
)
def test_errors_of_the_environment_are_one_line(capsys, error, expected):
    code, (line,) = ended(capsys, raising(error))
    assert code == 2
    assert line.startswith(expected)


@pytest.mark.parametrize("error", [ValueError("x"), OSError(errno.EIO, "the disk does not answer"), AssertionError()])
def test_faults_and_temporary_errors_keep_their_traceback(capsys, error):
    code, lines = ended(capsys, raising(error))
    assert code == 1
    assert lines[0].startswith("Traceback")


@pytest.mark.parametrize("platform", ["cuda", "no-such-platform"])
def test_a_missing_platform_is_one_line(platform):
    program = "import jax; from fmboost_jax.errors import run; run(jax.devices)"
    environment = {**os.environ, "JAX_PLATFORMS": platform}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: JAX finds no device (JAX_PLATFORMS={platform}; ")
    assert "Traceback" not in done.stderr


def test_output_survives_a_terminals_encoding_and_a_closed_pipe():
    program = "from fmboost_jax.errors import run\nrun(lambda: print('α' * 100_000))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "\\u03b1" * 100_000)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(words, cwd=ROOT, env=environment, stdout=writer, stderr=subprocess.PIPE, timeout=300)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
