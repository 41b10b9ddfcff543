"""Monitors of a training run: speed, wait for data, and losses that are not finite."""

import collections
import json
import math
import os
import time

import jax
import numpy as np

from fmboost_jax.errors import InputError

# Steps in flight before their loss is read: reading it at once would stall the device.
LAG = 2


class NonFiniteMonitor:
    """Reads every step's metrics a little late and stops a run whose loss or gradient is repeatedly not finite.

    Such steps change no parameter (see `fmboost_jax.training.step`). The keys of their examples go to
    `nonfinite.json` in the run's folder; those that process p > 0 read, to `nonfinite_<p>.json`.

    Args:
        workdir: folder of the run.
        patience: consecutive steps with a loss that is not finite after which the run ends.
    """

    def __init__(self, workdir: str, patience: int):
        process = f"_{jax.process_index()}" if jax.process_index() else ""
        self._path = os.path.join(workdir, f"nonfinite{process}.json")
        self._lag = min(LAG, max(patience, 1) - 1)
        self._allowed = max(patience, 1) - self._lag
        self._pending = collections.deque()
        self._bad: list[dict] = []

    def add(self, step: int, metrics: dict[str, jax.Array], names: dict[str, np.ndarray]) -> list[dict[str, float]]:
        """Record a step that was started; return the metrics of steps that are past the lag.

        Args:
            step: number of the step.
            metrics: result of `train_step`, still on the device.
            names: arrays `record` and `position`, which identify the examples of the batch.

        Raises:
            InputError: the loss was not finite for too long.
        """
        self._pending.append((step, metrics, names))
        return self._read(self._lag)

    def flush(self) -> list[dict[str, float]]:
        """Metrics of all steps not yet read; waits for them. Raises as `add` does."""
        return self._read(0)

    @property
    def healthy(self) -> bool:
        """Whether the last step read had a finite loss."""
        return not self._bad

    def _read(self, lag: int) -> list[dict[str, float]]:
        read = []
        while len(self._pending) > lag:
            step, metrics, names = self._pending.popleft()
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"]):
                self._bad.clear()
                read.append(values)
                continue
            self._bad.append({"step": step, **{name: array.tolist() for name, array in names.items()}})
            if len(self._bad) >= self._allowed:
                self._stop(values)
        return read

    def _stop(self, values: dict[str, float]):
        with open(self._path, "w", encoding="utf-8") as file:
            json.dump(self._bad, file, indent=1)
        first = self._bad[0]["step"]
        raise InputError(
            f"loss {values['loss']}, gradient norm {values['gradient_norm']} since step {first}: expected finite "
            f"values; the run stops, no parameter was changed by these steps and none was saved after them; the "
            f"batches' records are in {self._path}; look at them, or lower optim.lr or set optim.clip_norm"
        )


class Throughput:
    """Mean metrics and speed since the last report; the time includes the wait for data.

    Args:
        batch_size: examples a step, over all devices.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Start a new measurement, so that an evaluation or a save does not count as training time."""
        self._started, self._wait, self._steps, self._metrics = time.perf_counter(), 0.0, 0, []

    def add(self, wait: float, metrics: list[dict[str, float]]) -> None:
        """Add one step: the seconds that it waited for its batch, and the metrics that have arrived."""
        self._wait += wait
        self._steps += 1
        self._metrics += metrics

    def report(self, last_metrics: list[dict[str, float]]) -> dict[str, float]:
        """Means since `restart`, with `steps_per_second`, `samples_per_second`, `data_wait_share`; then restarts."""
        metrics = self._metrics + last_metrics
        seconds = time.perf_counter() - self._started
        values = {name: float(np.mean([m[name] for m in metrics])) for name in metrics[0]} if metrics else {}
        values |= {
            "steps_per_second": self._steps / seconds,
            "samples_per_second": self._steps * self._batch_size / seconds,
            "data_wait_share": self._wait / seconds,
        }
        self.restart()
        return values
