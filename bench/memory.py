"""Peak memory of a process."""

import pathlib
import re


def peak_gib() -> float:
    """Largest resident memory of this process's program so far, in GiB.

    Linux's own mark of the program's memory: `getrusage` keeps the parent's over fork and exec, so a small child of a
    large process reports the parent's.
    """
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20
