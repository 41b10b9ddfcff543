"""Benchmarks of several implementations of the same work, in alternation, so that machine noise is equal for all.

Each runs in a separate process, with separate memory, threads and caches. The first call, which compiles, is reported
separately.
"""

import dataclasses
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator

from bench.memory import forget_peak, peak_gib, resident_gib

# Builds an implementation and returns a function that does the work once, synchronously.
Prepare = Callable[[], Callable[[], object]]


@dataclasses.dataclass(frozen=True)
class Implementation:
    """An implementation to measure.

    Attributes:
        name: name in the table.
        prepare: a module-level function or a `functools.partial` of one, called in the implementation's process.
    """

    name: str
    prepare: Prepare


@dataclasses.dataclass(frozen=True)
class Result:
    """Measurements of one implementation.

    Attributes:
        name: name of the implementation.
        seconds: median of the repeats.
        ratio: to the first implementation's median over the repeats that alternated with these.
        first: seconds of building and of the first call, compilation included.
        peak: largest resident memory of its process in GiB.
        passing: peak during a repetition above the resident memory before it, in GiB.
        failure: reason of a failure; empty otherwise.
    """

    name: str
    seconds: float = float("nan")
    ratio: float = float("nan")
    first: float = float("nan")
    peak: float = float("nan")
    passing: float = float("nan")
    failure: str = ""


def alternate(implementations: list[Implementation], *, repeats: int = 5) -> list[Result]:
    """Return the results in the order of the implementations; a failure does not stop the others.

    Repetitions of the first implementation alternate with those of each other one. At most two processes run at the
    same time, to bound memory.
    """
    with Child(implementations[0]) as ours:
        first, mine, results = ours.prepare(), [], []
        for implementation in implementations[1:]:
            with Child(implementation) as peer:
                first_of_peer, pairs = peer.prepare(), []
                for _ in range(repeats):
                    pairs.append((ours.ask("run"), peer.ask("run")))
                mine.extend(pair[0] for pair in pairs)
                results.append(_result(peer, first_of_peer, pairs))
        return [_result(ours, first, [(seconds, seconds) for seconds in mine]), *results]


def _result(child: "Child", first: float, pairs: list[tuple[float, float]]) -> Result:
    """Of the second of each pair."""
    if child.failure:
        return Result(child.name, failure=child.failure)
    ours, seconds = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Result(child.name, seconds, seconds / ours, first, child.ask("peak"), child.ask("passing"))


class Child:
    """An implementation's process, from the outside."""

    def __init__(self, implementation: Implementation):
        context = multiprocessing.get_context("spawn")
        self.name, self.failure = implementation.name, ""
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, implementation.prepare))
        self.process.start()
        theirs.close()

    def prepare(self) -> float:
        """Build and run once; returns seconds. Only one process compiles at a time."""
        return self.ask("prepare")

    def ask(self, what: str) -> float:
        """Return the answer, or NaN after a failure."""
        if self.failure:
            return float("nan")
        try:
            self._pipe.send(what)
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError):
            self.process.join()
            answer = f"its process ended with code {self.process.exitcode}"
        if isinstance(answer, str):
            self.failure = answer
            return float("nan")
        return answer

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_):
        """Close the pipe, which ends the process."""
        self._pipe.close()
        self.process.join()


def _serve(pipe, prepare: Prepare) -> None:
    """Answer requests in the child process, with seconds, GiB, or the reason of a failure."""
    for answer in _answers(pipe, prepare):
        pipe.send(answer)


def _answers(pipe, prepare: Prepare) -> Iterator[float | str]:
    run, memory = None, {"peak": 0.0, "passing": 0.0}
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        if asked in memory:
            yield memory[asked]
            continue
        building, resident = run is None, resident_gib()
        forget_peak()
        started = time.perf_counter()
        try:
            run = prepare() if building else run
            run()
        except Exception as error:  # any library error; the others continue
            yield f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]
            return
        seconds, peak = time.perf_counter() - started, peak_gib()
        memory["peak"] = max(memory["peak"], peak)
        if not building:
            memory["passing"] = max(memory["passing"], peak - resident)
        yield seconds


def table(title: str, results: list[Result]) -> str:
    """Return a Markdown table with each peer's time relative to the first implementation."""
    ours = results[0]
    lines = [
        f"### {title}",
        "",
        "| | seconds | peer ÷ ours | first call, s | peak, GiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for result in results:
        if result.failure:
            lines.append(f"| {result.name} | {result.failure} | | | |")
            continue
        ratio = "" if result is ours else f"{result.ratio:.2f}×"
        lines.append(f"| {result.name} | {result.seconds:.3f} | {ratio} | {result.first:.1f} | {result.peak:.2f} |")
    return "\n".join(lines)
