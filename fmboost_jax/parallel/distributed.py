"""Many processes as one run: start-up, the agreement to stop, and the end when one of them has died.

JAX finds the coordinator, the number of processes and their indices under Open MPI, under SLURM (`srun`), on GKE and on
TPU VMs. Elsewhere the caller passes the three. A single process starts nothing.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

from fmboost_jax.errors import BAD_INPUT, InputError, one_line, report

T = TypeVar("T")
# Variables with the number of processes. JAX detects a cluster by other ones, also for a single process.
_COUNTS = ("OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS")
# JAX's messages if it detects no cluster, or if its devices are already in use, as in a notebook.
_NO_CLUSTER = ("coordinator_address should be defined", "must be called before")


def check_share(process_index: int, process_count: int) -> None:
    """Check a process's index.

    Raises:
        InputError: an index outside 0 to process_count − 1.
    """
    if not 0 <= process_index < process_count:
        raise InputError(f"process index {process_index} is outside 0 to {process_count - 1} (count {process_count})")


@contextlib.contextmanager
def processes(
    coordinator: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
    *,
    timeout: int,
) -> Iterator[None]:
    """Join the other processes of a run; leave them when the context ends. Enter it before JAX uses a device.

    A process that fails exits immediately; it does not wait at JAX's shutdown barrier. The others exit when they have
    had no heartbeat from a process for `timeout` seconds. A process that raises InputError first waits at the barrier,
    for at most `timeout` seconds, so that the others can report their own InputError.

    Args:
        coordinator: HOST:PORT of process 0. Default: detected.
        process_count: processes of the run. Default: detected.
        process_index: number of this process, from 0. Default: detected.
        timeout: seconds, see above; also the longest wait of a finished process for the others.

    Raises:
        InputError: some of the three are missing or out of range, or the launcher's variables are incomplete.
        SystemExit: the coordinator cannot be reached; exit code 1.
    """
    started = _start(coordinator, process_count, process_index, timeout)
    try:
        yield
    except BaseException as error:
        if started:
            status = report(error)
            if status == BAD_INPUT:
                # Bad input is usually the same in all processes: each reports it before process 0, their coordinator,
                # exits.
                with contextlib.suppress(jax.errors.JaxRuntimeError):
                    jax.distributed.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        raise
    if started:
        jax.distributed.shutdown()


def _start(coordinator: str | None, count: int | None, index: int | None, timeout: int) -> bool:
    if timeout < 1:
        raise InputError(f"processes.timeout is {timeout}, expected at least one second")
    if jax.distributed.is_initialized():
        return False  # by the caller, as in a notebook on a pod
    if coordinator is None and count is None and index is None:
        if any(os.environ.get(name) == "1" for name in _COUNTS):
            return False
    elif coordinator is None or count is None or index is None or not _is_complete(coordinator, count, index):
        raise InputError(
            "expected a coordinator HOST:PORT, a process count N and a process index from 0 to N − 1 together, found "
            f"{coordinator}, {count}, {index}"
        )
    elif count == 1:
        return False
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            cluster_detection_method=None if coordinator is None else "deactivate",
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=timeout,
        )
    except jax.errors.JaxRuntimeError as error:
        # Not bad input: a host may be late, and a launcher may start the run again.
        raise SystemExit(f"error: the other processes cannot be reached: {one_line(error)}") from error
    except (ValueError, RuntimeError) as error:
        if coordinator is not None or not any(reason in str(error) for reason in _NO_CLUSTER):
            raise InputError(f"many processes cannot be started: {one_line(error)}") from error
        if int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:  # Open MPI 5 does not set the variables that JAX reads
            raise InputError(
                "Open MPI started many processes, but JAX cannot find the coordinator in its variables: add the "
                "coordinator HOST:PORT, the process count $OMPI_COMM_WORLD_SIZE and the process index "
                "$OMPI_COMM_WORLD_RANK"
            ) from error
        return False
    return True


def _is_complete(coordinator: str, count: int, index: int) -> bool:
    return 0 <= index < count and coordinator.rpartition(":")[2].isdigit()


def listen_for_sigterm() -> Callable[[int], bool]:
    """Return a function (step) → whether to save and stop now, because this process or another has received SIGTERM.

    Every process must call it at every step. All get True at the same step, soon after the signal.
    """
    if jax.process_count() > 1:
        # JAX's preemption service handles the signal. The processes agree on a step that none has passed.
        return multihost_utils.reached_preemption_sync_point
    received = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: received.set())
    return lambda step: received.is_set()


def agree(number: int) -> int:
    """Return process 0's number in all processes. Numbers that they read from a shared disk may differ."""
    return int(multihost_utils.broadcast_one_to_all(number)) if jax.process_count() > 1 else number


@contextlib.contextmanager
def in_first_process(context: contextlib.AbstractContextManager[T]) -> Iterator[T | None]:
    """Enter a context in process 0, on behalf of all; the others get None.

    Raises:
        InputError: in every process, where process 0 cannot enter it.
    """
    with contextlib.ExitStack() as stack:
        value, refusal = None, None
        if jax.process_index() == 0:
            try:
                value = stack.enter_context(context)
            except InputError as error:
                refusal = error
        if agree(int(refusal is not None)):
            raise refusal or InputError("process 0 refuses to start; its output says why")
        yield value
