"""One training at a time in a folder, also where several hosts share its disk.

The file FOLDER/.lock holds a random token, the host, and a count that the holder raises every few seconds. It is empty
while the lock is free. Two signs show that a holder has ended:

- On the holder's own machine, the kernel drops the file's lock (`flock`) when the process ends, however it ends.
- From another machine, or where the file system has no `flock`, the count stops rising. The observer's own clock
  measures how long.

A holder that wrote no other file, for example because its config was refused, removes the file and the folders that it
created. A process that opened the file earlier detects that its name is gone, and opens a new one.

Process ids are not compared. A holder that finds another token in the file was considered dead, for example because
its machine was suspended. It must stop (`FolderLock.check`), so that two holders never continue together.
"""

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time

from fmboost_jax.errors import InputError, printable
from fmboost_jax.files import local_path

NAME = ".lock"
BEAT = 5.0  # seconds from one count of the holder to the next
STALE = 30.0  # seconds without a new count after which a holder counts as dead
_BYTES = 512  # the file's length while the lock is held, so that a write never truncates
_OPENINGS = 10  # of the file, while others remove it
_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def this_machine() -> str:
    """The host's name and the identifier of its last start."""
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}".strip()


@dataclasses.dataclass(frozen=True)
class Holder:
    """Contents of the lock's file: its holder.

    Attributes:
        token: random, of one holding of the lock.
        machine: see `this_machine`.
        process: its process id, for messages only.
        since: local time at which it took the lock, for messages only.
        count: rises while it lives; 16 hexadecimal digits, so that bytes of two writes still make a whole file.
    """

    token: str
    machine: str
    process: int
    since: str
    count: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.machine.partition(' ')[0]}, since {self.since}"


class FolderLock:
    """A lock on a folder; a context, in which this process is the only holder.

    Args:
        folder: made if needed.
        beat: seconds from one count to the next.
        stale: seconds without a new count after which a holder on another machine counts as dead.

    Raises:
        InputError: on entering: another holder lives, or the folder cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike, *, beat: float = BEAT, stale: float = STALE):
        self._folder, self._path = os.fspath(folder), os.path.join(folder, NAME)
        self._beat, self._stale = beat, stale
        self._released = threading.Event()
        self._thread: threading.Thread | None = None
        self._missing: list[str] = []  # folders that this lock makes, the deepest first
        self._before: set[str] = set()  # names in the folder

    def __enter__(self) -> "FolderLock":
        local_path(self._folder, "folder")
        try:
            self._note_what_is_there()
            self._open_and_take()
        except OSError as error:
            self._leave_as_found()
            raise InputError(f"folder {printable(self._folder)} cannot be written to: {error.strerror}") from error
        self._thread = threading.Thread(target=self._count, name="lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        assert self._thread is not None
        self._released.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self._is_ours(self._read()):
                os.truncate(self._path, 0)
                self._leave_as_found()
        os.close(self._file)

    def check(self) -> None:
        """Raise an error if another process has taken the lock; call it before each commit.

        Raises:
            InputError: the lock is lost.
        """
        holder = self._read()
        if not self._is_ours(holder):
            found = f"is in use by another training ({holder})" if holder else "has lost its file .lock"
            raise InputError(f"folder {printable(self._folder)} {found}; this training stops and saves nothing more")

    def _note_what_is_there(self) -> None:
        folder = os.path.abspath(self._folder)
        self._before = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        while not os.path.lexists(folder):
            self._missing.append(folder)
            folder = os.path.dirname(folder)

    def _leave_as_found(self) -> None:
        """Remove the lock's file and the folders made since it was taken, if no other file was made."""
        if NAME in self._before:
            return
        folder = pathlib.Path(self._folder)
        with contextlib.suppress(OSError):  # in use by another, or gone
            new = [path for path in folder.iterdir() if path.name not in self._before and path.name != NAME]
            if any(not path.is_dir() or path.is_symlink() or _files(path) for path in new):
                return
            for path in new:
                for place, _, _ in os.walk(path, topdown=False):
                    os.rmdir(place)
            (folder / NAME).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for place in self._missing:
                os.rmdir(place)

    def _open_and_take(self) -> None:
        for opening in range(_OPENINGS):
            try:
                os.makedirs(self._folder, exist_ok=True)
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
                with contextlib.ExitStack() as undo:
                    undo.callback(os.close, self._file)
                    self._take()
                    undo.pop_all()
                return
            except FileNotFoundError:  # its holder removed it between our opening and our taking it
                if opening == _OPENINGS - 1:
                    raise

    def _take(self) -> None:
        alone = self._flock()
        holder = self._read()
        if holder and not (alone and holder.machine == this_machine()):
            self._watch(holder)
        if not os.path.samestat(os.fstat(self._file), os.stat(self._path)):
            raise FileNotFoundError(errno.ENOENT, "replaced", self._path)
        self._mine = Holder(secrets.token_hex(16), this_machine(), os.getpid(), time.strftime("%F %T"), "")
        self._write(0)

    def _flock(self) -> bool:
        """Lock the file; whether the file system can. This says nothing about other machines."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._refusal(self._read()) from None
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            return False
        return True

    def _watch(self, holder: Holder) -> None:
        """Wait until the holder's count rises, or has been constant for so long that the holder counts as dead."""
        print(
            f"folder {printable(self._folder)} was used by {holder}: waiting {self._stale:g} s for its heartbeat",
            file=sys.stderr,
        )
        end = time.monotonic() + self._stale
        while time.monotonic() < end:
            time.sleep(min(self._beat / 5, 1.0))
            now = self._read()
            if now is None:
                return
            if now != holder:
                raise self._refusal(now)

    def _refusal(self, holder: Holder | None) -> InputError:
        return InputError(
            f"folder {printable(self._folder)} is in use by another training ({holder or 'just started'}); wait for "
            "its end or name another folder"
        )

    def _count(self) -> None:
        for number in itertools.count(1):
            if self._released.wait(self._beat):
                return
            with contextlib.suppress(OSError):  # a network disk that is temporarily unavailable
                if not self._is_ours(self._read()):
                    return
                self._write(number)

    def _is_ours(self, holder: Holder | None) -> bool:
        return holder is not None and holder.token == self._mine.token

    def _read(self) -> Holder | None:
        # Opened again each time: network file systems look for new content then.
        try:
            return Holder(**json.loads(pathlib.Path(self._path).read_bytes()))
        except (ValueError, TypeError, FileNotFoundError):
            return None

    def _write(self, number: int) -> None:
        self._mine = dataclasses.replace(self._mine, count=f"{number:016x}")
        with open(self._path, "r+b") as file:
            file.write(json.dumps(dataclasses.asdict(self._mine)).encode().ljust(_BYTES))


def _files(folder: pathlib.Path) -> bool:
    return any(files for _, _, files in os.walk(folder))
