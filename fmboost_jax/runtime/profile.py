"""Profiles on demand: a trace of devices and host over some steps, for TensorBoard or Perfetto."""

import os

import jax

from fmboost_jax.errors import InputError


class Profile:
    """Traces the steps from a first to a last one, in the first process.

    `WORKDIR/profile/plugins/profile/<time>/` gets `*.xplane.pb` (TensorBoard) and `*.trace.json.gz` (ui.perfetto.dev).

    Args:
        workdir: folder of the run.
        steps: first and last step, counted from 1 as the log does; empty for no profile.

    Raises:
        InputError: steps that are not a pair in rising order.
    """

    def __init__(self, workdir: str, steps: tuple[int, ...]):
        if steps and not (len(steps) == 2 and all(type(step) is int for step in steps) and 1 <= steps[0] <= steps[1]):
            raise InputError(f"profile.steps is {steps}, expected the first and the last step, such as 10,20")
        self._folder = os.path.join(workdir, "profile")
        self._first, self._last = steps if steps and jax.process_index() == 0 else (0, 0)
        self._running = False

    def before(self, step: int) -> None:
        """Call before a step begins."""
        if step == self._first:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, metrics) -> None:
        """Call after a step was started, with an array that it computes; the last traced step is waited for."""
        if step == self._last:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Write the trace."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
