"""Peak memory of a process."""

import pathlib
import re

_PROCESS = pathlib.Path("/proc/self")


def peak_gib() -> float:
    """Largest resident memory of this process's program so far, or since `forget_peak`, in GiB.

    It is read from Linux's VmHWM. `getrusage` is not used, because its value survives fork and exec: a small child of a
    large process would report the parent's peak.
    """
    return _status("VmHWM")


def resident_gib() -> float:
    """Resident memory of this process now, in GiB."""
    return _status("VmRSS")


def forget_peak() -> None:
    """Reset the peak to the present resident memory."""
    (_PROCESS / "clear_refs").write_text("5")


def _status(field: str) -> float:
    return int(re.search(rf"{field}:\s+(\d+) kB", (_PROCESS / "status").read_text())[1]) / 2**20
