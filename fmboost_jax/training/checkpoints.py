"""Orbax checkpoints of a run: state, data iterator and config as one, written in the background, committed by a rename.

    WORKDIR/checkpoints/<step>/state    step, parameters, ema, optimizer
                               data     position of each process's data iterator, for version 0.1
                               config   the config as JSON, with the spec of the latents
                               checksums  of the arrays and the config

A checkpoint that was interrupted at any byte has no final name, is never the latest, and is removed at the next start.
Every process writes its own parts; the checkpoint is renamed when all have finished. Any number of processes on any
mesh can continue from it, because the step determines the next batch.
"""

import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from grain.checkpoint import CheckpointHandler, CheckpointSave
from orbax.checkpoint.checkpoint_managers import preservation_policy

from fmboost_jax.data.pipeline import seek
from fmboost_jax.errors import InputError, one_line, some
from fmboost_jax.files import utf8_path
from fmboost_jax.runtime.lock import FolderLock
from fmboost_jax.tables import size
from fmboost_jax.training.checksums import check_arrays, check_config, describe, path_name
from fmboost_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one working directory.

    Args:
        workdir: folder of the run, which holds `checkpoints/`.
        keep: number of recent checkpoints that are kept.
        keep_every: checkpoints whose step is a multiple of this are also kept; 0 for none.
        lock: on the folder, checked before each save; None in processes that do not hold it.
    """

    def __init__(self, workdir: str, *, keep: int = 3, keep_every: int = 0, lock: FolderLock | None = None):
        self._lock = lock
        self.directory = os.path.join(os.path.abspath(utf8_path(workdir, "workdir")), "checkpoints")
        _leave_failures_to_us()
        policies: list[preservation_policy.PreservationPolicy] = [preservation_policy.LatestN(keep)]
        if keep_every:
            policies.append(preservation_policy.EveryNSteps(keep_every))
        handlers: dict[str, Any] = {  # Grain's handler has no type that Orbax knows
            # zstd takes longer than a disk and saves a few per cent: the bits of trained weights look random.
            "state": ocp.PyTreeCheckpointHandler(use_compression=False),
            "data": CheckpointHandler(),
            "config": ocp.JsonCheckpointHandler(),
            "checksums": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_handlers=handlers,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
            ),
        )

    @property
    def latest(self) -> int | None:
        """Step of the last whole checkpoint; None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, iterator, config: dict) -> None:
        """Start to save; returns while the arrays are still being written.

        Raises:
            InputError: the lock is lost, the disk has too little room, or this or the previous save failed on it; the
                last whole checkpoint is named.
        """
        if self._lock:
            self._lock.check()
        needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(self.directory).free
        if free < needed:
            reason = f"it needs {size(needed)}, the disk has {size(free)} left"
            raise InputError(f"checkpoint {step} cannot be saved to {self.directory}: {reason}; {self._last()}")
        content = state.to_dict()
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeSave(content),
            data=CheckpointSave(iterator),
            config=ocp.args.JsonSave(config),
            checksums=ocp.args.JsonSave(describe(content, config)),
        )
        self._guard(lambda: self._manager.save(step, args=arguments))

    def wait(self) -> None:
        """Wait until pending saves are on disk. Raises as `save` does."""
        self._guard(self._manager.wait_until_finished)

    def config(self, step: int) -> dict:
        """The config that was saved with a checkpoint.

        Raises:
            InputError: the checkpoint is damaged; the last whole one is named.
        """
        with _naming_damage(self.directory, step):
            return _read_config(os.path.join(self.directory, str(step)))

    def restore(self, step: int, abstract_state: TrainState, iterator) -> TrainState:
        """Restore the state in the shapes and shardings of `abstract_state`, and the iterator's place.

        Leaves without a sharding go to the first device.

        Raises:
            InputError: the checkpoint is damaged, in which case the last whole one is named, or has other shapes.
        """
        wanted = jax.tree.map(_on_first_device, abstract_state.to_dict())
        state = ocp.args.PyTreeRestore(item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted))
        with _naming_damage(self.directory, step, wanted):
            restored = self._manager.restore(step, args=ocp.args.Composite(state=state))["state"]
            if kept := _read_checksums(os.path.join(self.directory, str(step))):
                check_arrays(restored, kept)
        seek(iterator, step)
        return TrainState(**restored)

    def close(self) -> None:
        """Wait for the last save and stop the threads."""
        self._guard(self._manager.close)

    def _guard(self, action) -> None:
        try:
            action()
        except InputError:
            raise
        except Exception as error:  # Orbax and TensorStore raise their own exceptions for a disk that fails.
            raise InputError(
                f"saving a checkpoint to {self.directory} failed; {self._last()}; is the disk full? ({one_line(error)})"
            ) from error

    def _last(self) -> str:
        steps = [int(name) for name in os.listdir(self.directory) if name.isdigit()]
        return f"the last whole checkpoint is step {max(steps)}" if steps else "there is no whole checkpoint"


def _on_first_device(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The leaf with a sharding: Orbax restores a NumPy array where there is none."""
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _leave_failures_to_us() -> None:
    """Keep Orbax and TensorStore from printing: failures are raised here, in one line, without their tracebacks."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def hook(failure):
        # Writes in flight report to an event loop that the failure has closed.
        if str(failure.exc_value) != "Event loop is closed":
            before(failure)

    sys.unraisablehook = hook


@contextlib.contextmanager
def _naming_damage(directory: str, step: int, wanted: dict | None = None) -> Iterator[None]:
    """Turn what Orbax and TensorStore raise for a damaged checkpoint into one line with the remedy.

    Args:
        directory: of the checkpoints.
        step: of the one that is read.
        wanted: shapes of the arrays that the run has; None: those of the checkpoint.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        folder, reason = os.path.join(directory, str(step)), one_line(error, 150)
        # A checkpoint is checked by reading it, which is a collective operation of all processes.
        alone = jax.process_count() == 1
        if wanted and alone and (misfit := _misfit(folder, wanted)):
            raise InputError(f"checkpoint {folder} does not fit this run ({misfit}); choose another workdir") from error
        others = [other for other in reversed(_steps(directory)) if other != step]
        whole = next((other for other in others if not alone or _is_whole(os.path.join(directory, str(other)))), None)
        if whole is None:
            remedy = "no other step is complete; start again in another workdir"
        else:
            remedy = (
                f"the last {'whole one' if alone else 'one before it'} is step {whole}: to train on from there, move "
                f"{folder} away and run the same command; to sample, name {os.path.join(directory, str(whole))}"
            )
        raise InputError(f"checkpoint {folder} is damaged ({reason}); {remedy}") from error


def _misfit(folder: str, wanted: dict) -> str:
    """Arrays that a checkpoint and a run do not have in the same shape; empty where the checkpoint cannot be read."""
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            found = _shapes(reader.metadata(os.path.join(folder, "state")).item_metadata.tree)
    except Exception:  # the checkpoint is damaged
        return ""
    expected = _shapes(wanted)
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    return some([f"{n}: expected {expected.get(n, 'none')}, found {found.get(n, 'none')}" for n in names], 3)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _is_whole(folder: str) -> bool:
    """Whether all arrays of one step's checkpoint, and its config, can be read and are what was saved."""
    try:
        _read_config(folder)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            state = os.path.join(folder, "state")
            tree = reader.metadata(state).item_metadata.tree
            arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            restored = reader.restore(state, args=ocp.args.PyTreeRestore(restore_args=arrays))
        if kept := _read_checksums(folder):
            check_arrays(restored, kept)
    except Exception:  # any error means that the checkpoint cannot be used
        return False
    return True


def _read_json(folder: str) -> dict:
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        return reader.restore(folder)


def _read_checksums(folder: str) -> dict | None:
    """What `describe` returned for one step; None for a checkpoint without checksums, of an earlier version."""
    path = os.path.join(folder, "checksums")
    return _read_json(path) if os.path.isdir(path) else None


def _read_config(folder: str) -> dict:
    config = _read_json(os.path.join(folder, "config"))
    if kept := _read_checksums(folder):
        check_config(config, kept)
    return config


def _steps(directory: str) -> list[int]:
    return sorted(int(name) for name in os.listdir(directory) if name.isdigit()) if os.path.isdir(directory) else []


def load_weights(directory: str, *, step: int | None = None, ema: bool = True) -> tuple[dict, dict, int]:
    """Weights and config of a run's checkpoint, without its optimiser.

    Args:
        directory: the run's working directory, its `checkpoints` folder, or one step's folder.
        step: of the checkpoint. Default: the latest.
        ema: the averaged parameters (the ones to sample with) or the online ones.

    Returns:
        Parameters (flat dict, see `fmboost_jax.models.parameters`), the config, and the step.

    Raises:
        InputError: no checkpoint there, or a damaged one; the last whole one is named.
    """
    directory = os.path.abspath(directory)
    if os.path.isdir(os.path.join(directory, "checkpoints")):
        directory = os.path.join(directory, "checkpoints")
    elif os.path.basename(directory).isdigit() and os.path.isdir(os.path.join(directory, "state")):
        directory, step = os.path.dirname(directory), int(os.path.basename(directory))
    steps = _steps(directory)
    if not steps or (step is not None and step not in steps):
        wanted = "a checkpoint" if step is None else f"step {step}"
        raise InputError(f"no checkpoint in {directory}: expected {wanted}, found {steps or 'none'}")
    step = steps[-1] if step is None else step
    _leave_failures_to_us()
    with _naming_damage(directory, step):
        config, weights = _read(os.path.join(directory, str(step)), "ema" if ema else "parameters")
    return weights, config, step


def _read(folder: str, name: str) -> tuple[dict, dict]:
    """The config and one dictionary of the state of one step's checkpoint."""
    config = _read_config(folder)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        state = os.path.join(folder, "state")
        shapes = reader.metadata(state).item_metadata[name]
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = {
            name: {k: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device) for k, leaf in shapes.items()}
        }
        restored = reader.restore(
            state,
            args=ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=True,
            ),
        )
    if kept := _read_checksums(folder):
        check_arrays({name: restored[name]}, kept)
    return config, restored[name]
