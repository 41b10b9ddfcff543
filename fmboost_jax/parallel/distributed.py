"""Many processes as one run: how they start, agree to stop, and notice that one of them has died.

jax itself finds coordinator, number and index of processes under Open MPI, under SLURM (`srun`), on GKE and on TPU VMs;
elsewhere the three flags of `add_arguments` tell. A single process starts nothing.
"""

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from fmboost_jax.errors import BAD_INPUT, InputError, one_line, report

# What tells the number of processes where jax would see a cluster in a single process, too.
_COUNTS = ("OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS")
# jax's words where it sees no cluster, or has met its devices before, as in a notebook.
_NONE_SEEN = ("coordinator_address should be defined", "must be called before")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--coordinator`, `--process-count` and `--process-index` to a command."""
    many = parser.add_argument_group("many processes, where neither TPU, GKE, SLURM nor Open MPI tells of them")
    many.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 is reached by the others")
    many.add_argument("--process-count", type=int, help="processes of the run")
    many.add_argument("--process-index", type=int, help="number of this process, from 0")


def add_share_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--process-index` and `--process-count` to a command whose processes work without each other."""
    parser.add_argument("--process-index", type=int, default=0, help="number of this process, from 0 (default: 0)")
    parser.add_argument("--process-count", type=int, default=1, help="processes that share the work (default: 1)")


def check_share(process_index: int, process_count: int) -> None:
    """Refuse an index that is not one of the processes'.

    Raises:
        InputError: an index outside 0 to process_count − 1.
    """
    if not 0 <= process_index < process_count:
        raise InputError(f"process index {process_index} is outside 0 to {process_count - 1} (count {process_count})")


@contextlib.contextmanager
def processes(arguments: argparse.Namespace, timeout: int) -> Iterator[None]:
    """Join the other processes for as long as the context lasts; to be entered before jax meets a device.

    Where this process fails, it ends at once instead of waiting for the others at jax's closing barrier. They notice:
    a process that has given no sign of life for `timeout` seconds ends all others, whatever they wait for. One that
    refuses its input waits for the others to do so too, no longer than that.

    Args:
        arguments: of a parser that `add_arguments` was applied to.
        timeout: seconds, see above; also how long a process that is done waits for the others to be done.

    Raises:
        InputError: flags that do not belong together, or too little to start from.
        SystemExit: the coordinator cannot be reached; exit code 1.
    """
    started = _start(arguments, timeout)
    try:
        yield
    except BaseException as error:
        if started:
            status = report(error)
            if status == BAD_INPUT:
                # As a rule all refuse the same: each is to say so before process 0, which holds them together, is gone.
                with contextlib.suppress(jax.errors.JaxRuntimeError):
                    jax.distributed.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        raise
    if started:
        jax.distributed.shutdown()


def _start(arguments: argparse.Namespace, timeout: int) -> bool:
    told = (arguments.coordinator, arguments.process_count, arguments.process_index)
    if timeout < 1:
        raise InputError(f"processes.timeout is {timeout}, expected at least one second")
    if jax.distributed.is_initialized():
        return False  # the caller's own, as in a notebook on a pod
    if any(value is not None for value in told):
        if None in told or not 0 <= told[2] < told[1] or not told[0].rpartition(":")[2].isdigit():
            raise InputError(
                "--coordinator HOST:PORT, --process-count N and --process-index I (0 to N − 1) go together, found "
                f"{told[0]}, {told[1]}, {told[2]}"
            )
        if told[1] == 1:
            return False
    elif any(os.environ.get(name) == "1" for name in _COUNTS):
        return False
    try:
        jax.distributed.initialize(
            *told,
            cluster_detection_method=None if told[0] is None else "deactivate",
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=timeout,
        )
    except jax.errors.JaxRuntimeError as error:
        # Not bad input: a host may be late, and the run is to be started again.
        raise SystemExit(f"error: the other processes cannot be reached: {one_line(error)}") from error
    except (ValueError, RuntimeError) as error:
        if told[0] is not None or not any(reason in str(error) for reason in _NONE_SEEN):
            raise InputError(f"many processes cannot be started: {one_line(error)}") from error
        if int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:  # Open MPI 5 no longer says what jax looks for
            raise InputError(
                "Open MPI started many processes, but does not tell jax where the first one is: add --coordinator "
                "HOST:PORT --process-count $OMPI_COMM_WORLD_SIZE --process-index $OMPI_COMM_WORLD_RANK"
            ) from error
        return False
    return True


def listen_for_sigterm() -> Callable[[int], bool]:
    """The function (step) → whether to save and stop now, because SIGTERM has come, to this process or another.

    It must be called at every step, in every process: all get True at the same step, soon after the signal.
    """
    if jax.process_count() > 1:
        # jax's own service watches for the signal, and lets the processes agree on a step that none has passed.
        return multihost_utils.reached_preemption_sync_point
    came = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: came.set())
    return lambda step: came.is_set()


def agree(number: int) -> int:
    """Process 0's number, in all processes: what each has read from a shared disk may differ."""
    return int(multihost_utils.broadcast_one_to_all(number)) if jax.process_count() > 1 else number
