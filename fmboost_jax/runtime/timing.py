"""Measurement of JAX's compile time and run time."""

import time
from collections.abc import Callable

import jax

_EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


class CompileClock:
    """A context that measures, in seconds.

    Attributes:
        elapsed: spent in the block altogether.
    """

    def __enter__(self) -> "CompileClock":
        self._intervals: list[tuple[float, float]] = []
        self._start = time.monotonic()
        self.elapsed = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)
        self.elapsed = time.monotonic() - self._start

    @property
    def compiling(self) -> float:
        """Spent tracing, lowering and compiling within the block."""
        return sum((end - begin for begin, end in self._intervals), 0.0)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event in _EVENTS:
            # Events are reported at their end. A nested one (a jitted function traced within another) counts once.
            end = time.monotonic()
            self._intervals = [inner for inner in self._intervals if inner[0] < end - duration_secs]
            self._intervals.append((end - duration_secs, end))


def seconds_an_image(act: Callable, runs: int, images: int) -> float:
    """Mean time per image of a function that makes several images a call, after a first call that compiles."""
    jax.block_until_ready(act())
    start = time.perf_counter()
    for _ in range(runs):
        jax.block_until_ready(act())
    return (time.perf_counter() - start) / (runs * images)
