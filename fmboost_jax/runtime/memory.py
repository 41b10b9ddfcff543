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
    """Let glibc keep freed memory for the next request, where no accelerator is at hand or JAX_PLATFORMS says cpu.

    On CPUs XLA asks for a program's temporaries anew at each call, gigabytes in one piece in a training step. glibc
    gives so large a piece back to the kernel at once, which zeroes page after page when the next step touches them: a
    quarter of the step. To be called before jax meets a device: threads that allocate before may keep heaps of their
    own, which cannot hold such a piece.

    Returns:
        Whether the allocator was changed: False beside an accelerator and with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or (os.environ.get("JAX_PLATFORMS") != "cpu" and any(map(glob.glob, _ACCELERATORS))):
        return False
    # No separate mappings, no trimming, one arena for all threads: only the main arena may grow beyond 64 MB.
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_ARENA_MAX, 1)])
