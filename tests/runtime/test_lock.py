"""A folder's lock has one holder at a time: real processes, SIGKILL, and hosts that share only the disk."""

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from fmboost_jax.errors import InputError
from fmboost_jax.runtime import lock
from fmboost_jax.runtime.lock import NAME, FolderLock
from tests.commands import ROOT

# Holds the folder's lock until its standard input ends; the machine's name may be another's.
HOLDS = """
import sys
from fmboost_jax.runtime import lock
if sys.argv[2:]:
    lock.this_machine = lambda: sys.argv[2]
with lock.FolderLock(sys.argv[1], beat=0.02):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder, *machine):
    words = [sys.executable, "-c", HOLDS, str(folder), *machine]
    process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def take(folder, **options):
    with FolderLock(folder, **options):
        return json.loads((folder / NAME).read_bytes())


@pytest.fixture
def without_flock(monkeypatch):
    """As on a file system without locks, or on a shared disk whose locks other hosts do not see."""

    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)


def test_a_second_holder_is_refused_until_the_first_ends(tmp_path):
    folder = tmp_path / "run"
    first = holder(folder)
    with pytest.raises(InputError, match=rf"run is in use by another training \(process {first.pid} on "):
        take(folder)
    (folder / "metrics.jsonl").write_bytes(b"")
    first.communicate()
    assert (folder / NAME).read_bytes() == b""
    assert take(folder)["process"] == os.getpid()
    assert take(folder)["machine"] == lock.this_machine()


def test_the_lock_of_a_killed_holder_is_taken_at_once_even_if_its_process_id_is_reused(tmp_path, capfd):
    first = holder(tmp_path)
    first.kill()
    first.wait()
    left = json.loads((tmp_path / NAME).read_bytes())
    (tmp_path / NAME).write_text(json.dumps({**left, "process": os.getpid()}))
    found = take(tmp_path, stale=0.05)
    assert found["token"] != left["token"]
    assert "waiting" not in capfd.readouterr().err


def test_a_living_holder_on_another_host_is_seen_by_its_heartbeat(tmp_path, without_flock):
    first = holder(tmp_path, "elsewhere")
    with pytest.raises(InputError, match=f"process {first.pid} on elsewhere"):
        take(tmp_path, beat=0.1, stale=20.0)
    assert first.poll() is None
    first.communicate()


def test_a_silent_holder_on_another_host_loses_the_lock_and_stops(tmp_path, without_flock, capfd):
    first = FolderLock(tmp_path, beat=1e6)
    with first:
        first.check()
        with FolderLock(tmp_path, beat=0.01, stale=0.05) as second:
            assert "for its heartbeat" in capfd.readouterr().err
            second.check()
            with pytest.raises(InputError, match="saves nothing more"):
                first.check()
            (tmp_path / "metrics.jsonl").write_bytes(b"")
    # The first one's end leaves the second one's file alone: it had been released by the second.
    assert (tmp_path / NAME).read_bytes() == b""


def test_a_lock_that_is_removed_is_lost(tmp_path):
    with FolderLock(tmp_path) as held:
        (tmp_path / NAME).unlink()
        with pytest.raises(InputError, match=r"lost its file \.lock"):
            held.check()


@pytest.mark.parametrize("folder", ["", "run", "a/b/run"])
def test_a_holder_that_wrote_nothing_leaves_no_folder(tmp_path, folder):
    """A training whose config is refused is such a holder."""
    (tmp_path / "other").mkdir()
    with FolderLock(tmp_path / folder):
        assert (tmp_path / folder / NAME).exists()
        (tmp_path / folder / "checkpoints" / "x").mkdir(parents=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["other"]
    with FolderLock(tmp_path / folder):
        (tmp_path / folder / "checkpoints").mkdir()
        (tmp_path / folder / "checkpoints" / "file").write_bytes(b"")
    assert (tmp_path / folder / "checkpoints" / "file").exists()
    assert (tmp_path / folder / NAME).read_bytes() == b""


@pytest.mark.parametrize("third", [False, True])
def test_a_file_that_its_holder_removes_while_another_opens_it_is_opened_again(tmp_path, monkeypatch, third):
    """The second process has the removed file open and could lock it, while a third locks a new file."""
    first, flock = FolderLock(tmp_path / "run"), fcntl.flock
    first.__enter__()
    with contextlib.ExitStack() as held:

        def ends_first(*arguments):
            monkeypatch.setattr(fcntl, "flock", flock)
            first.__exit__()
            assert not (tmp_path / "run").exists()
            if third:
                held.enter_context(FolderLock(tmp_path / "run"))
            flock(*arguments)

        monkeypatch.setattr(fcntl, "flock", ends_first)
        if third:
            with pytest.raises(InputError, match="in use by another"):
                take(tmp_path / "run")
            return
        with FolderLock(tmp_path / "run") as second:
            second.check()
            with pytest.raises(InputError, match="in use by another"):
                take(tmp_path / "run")


@pytest.mark.parametrize("content", [b"\0" * 512, b"{", b"[]", b'{"token": 1}'])
def test_a_damaged_lock_file_holds_no_lock(tmp_path, content, capfd):
    (tmp_path / NAME).write_bytes(content)
    take(tmp_path, stale=0.05)
    assert capfd.readouterr().err == ""


def test_workdirs_that_are_no_folder_are_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written to: Not a directory"):
        take(tmp_path / "file" / "run")
