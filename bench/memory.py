"""Peak memory of a process."""

import pathlib
import re

_PROCESS = pathlib.Path("/proc/self")


def peak_gib() -> float:
    """Largest resident memory of this process's program so far, or since `forget_peak`, in GiB.

    Linux's own mark of the program's memory: `getrusage` keeps the parent's over fork and exec, so a small child of a
    large process reports the parent's.
    """
    return _status("VmHWM")


def resident_gib() -> float:
    """Resident memory of this process now, in GiB."""
    return _status("VmRSS")


def forget_peak() -> None:
    """Let the peak begin anew at what is resident now."""
    (_PROCESS / "clear_refs").write_text("5")


def _status(field: str) -> float:
    return int(re.search(rf"{field}:\s+(\d+) kB", (_PROCESS / "status").read_text())[1]) / 2**20
