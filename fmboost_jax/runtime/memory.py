"""The C library's allocator on CPUs: memory that a training step frees is kept for the next step."""

import ctypes
import glob
import os
import sys

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
# TPU chips under either of their drivers, NVIDIA and AMD GPUs.
_ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*", "/dev/kfd")


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next request, if there is no accelerator or JAX_PLATFORMS is cpu.

    On CPUs, XLA allocates the temporaries of a program at every call, in a training step as one block of gigabytes.
    glibc returns such a block to the kernel when it is freed, and the kernel zeroes its pages again in the next step,
    which takes a quarter of the step. Call this function before JAX uses a device: threads that allocate earlier may
    have separate heaps, which are too small for such a block.

    Returns:
        Whether the allocator was changed; False with an accelerator or with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or (os.environ.get("JAX_PLATFORMS") != "cpu" and any(map(glob.glob, _ACCELERATORS))):
        return False
    # No separate mappings, no trimming, one arena for all threads: only the main arena may grow beyond 64 MB.
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_ARENA_MAX, 1)])
