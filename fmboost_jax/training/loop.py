"""The training loop: evaluate, save, and only then take the next batch."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from fmboost_jax.models.parameters import Parameters
from fmboost_jax.runtime.profile import Profile
from fmboost_jax.training.checkpoints import Checkpoints
from fmboost_jax.training.config import LoopConfig
from fmboost_jax.training.logs import Logs
from fmboost_jax.training.monitor import NonFiniteMonitor, Throughput
from fmboost_jax.training.state import TrainState
from fmboost_jax.training.tracker import Tracker

# (state, batch) → (state, metrics `loss`, `gradient_norm` and others)
TrainStep = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


@runtime_checkable
class Batches(Protocol):
    """Iterator of batches on the devices, each with arrays on the host that name its examples."""

    def __next__(self) -> tuple[Any, dict[str, np.ndarray]]: ...

    def close(self) -> None:
        """End its threads."""
        ...


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Evaluation of the averaged parameters during training.

    Attributes:
        run: averaged parameters → scores by name, and an image grid.
        every: updates from one evaluation to the next; 0 for none but `at_end`.
        name: of the image grid's files.
        at_end: evaluate at the end regardless of `every`.
    """

    run: Callable[[Parameters], tuple[dict[str, float], UInt8[np.ndarray, "h w 3"]]]
    every: int
    name: str
    at_end: bool = False

    def is_due(self, step: int, start: int, last: bool) -> bool:
        """Whether to evaluate at a step of a run that started at `start`."""
        regular = self.every > 0 and step > start and (last or step % self.every == 0)
        return regular or (last and self.at_end)


def run(
    state: TrainState,
    iterator: Batches,
    train_step: TrainStep,
    *,
    workdir: str,
    config: LoopConfig,
    checkpoints: Checkpoints,
    checkpoint_every: int,
    saved_config: dict[str, Any],
    start: int,
    evaluation: Evaluation | None,
    profile: Profile,
    terminated: Callable[[int], bool],
) -> tuple[TrainState, bool]:
    """Train from step `start` to `config.steps`, or until `terminated`.

    Evaluation and saving come before the next batch is taken: a checkpoint holds the iterator's position at its step.

    Args:
        state: at `start`; donated.
        iterator: batches of the steps; closed at the end.
        train_step: compiled, with the state donated.
        workdir: folder of the run.
        config: length of the run.
        checkpoints: of the run; closed at the end.
        checkpoint_every: updates from one checkpoint to the next.
        saved_config: the config as checkpoints store it.
        start: step to start from.
        evaluation: evaluation of the averaged parameters; None for none.
        profile: traces the steps in the config's `profile.steps`.
        terminated: step → whether to save and stop; every process calls it at every step.

    Returns:
        The last state, and whether it is that of `config.steps`.

    Raises:
        InputError: a loss that is not finite, a disk that is full.
    """
    first_process = jax.process_index() == 0
    logs = None
    if first_process:
        logs = Logs(workdir, start, Tracker(config.tracker, workdir, saved_config) if config.tracker else None)
    monitor, throughput = NonFiniteMonitor(workdir, config.nan_patience), Throughput(config.batch_size)
    bar = tqdm(total=config.steps, initial=start, unit="step", disable=not first_process, dynamic_ncols=True)
    step = start
    try:
        while True:
            last = step >= config.steps
            stop = last or terminated(step)
            if evaluation and evaluation.is_due(step, start, last):
                throughput.add(0.0, monitor.flush())
                scores, image = evaluation.run(state.ema)
                if logs:
                    logs.scalars(step, {f"evaluate/{name}": value for name, value in scores.items()})
                    path = logs.image(step, evaluation.name, image)
                    shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
                    bar.write(f"step {step}: {shown}, {path}")
                throughput.restart()
            if step > start and (stop or step % checkpoint_every == 0):
                throughput.add(0.0, monitor.flush())
                # Steps that were not finite changed no parameter, so a checkpoint at a stop is valid.
                if monitor.healthy or stop:
                    checkpoints.save(step, state, iterator, saved_config)
                throughput.restart()
            if stop:
                return state, last
            profile.before(step + 1)
            # Every transfer is explicit: the iterator puts batches on the devices, the monitor gets metrics.
            with jax.transfer_guard("disallow"), jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
                waiting = time.perf_counter()
                batch, names = next(iterator)
                waited = time.perf_counter() - waiting
                state, metrics = train_step(state, batch)
                step += 1
                profile.after(step, metrics)
                throughput.add(waited, monitor.add(step, metrics, names))
                bar.update()
                if step % config.log_every == 0:
                    values = throughput.report(monitor.flush())
                    bar.set_postfix_str(
                        f"loss {values.get('loss', math.nan):.4f}, {values['samples_per_second']:.1f} samples/s, "
                        f"data wait {values['data_wait_share']:.0%}"
                    )
                    if logs:
                        logs.scalars(step, values)
    finally:
        with contextlib.ExitStack() as stack:
            for close in (checkpoints.close, iterator.close, *([logs.close] if logs else []), bar.close, profile.close):
                stack.callback(close)
