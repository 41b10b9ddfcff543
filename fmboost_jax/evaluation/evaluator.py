"""The work of an evaluation: batches, partial results on disk, cached statistics of reference sets."""

import itertools
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from fmboost_jax.data.threads import in_order
from fmboost_jax.errors import InputError
from fmboost_jax.evaluation import checksums
from fmboost_jax.evaluation.image_set import ImageSet
from fmboost_jax.evaluation.image_sources import Batch, Folder, ImageSource, load_quietly
from fmboost_jax.evaluation.metrics import Metrics
from fmboost_jax.evaluation.partial_results import PartialResult, PartialResults
from fmboost_jax.evaluation.protocol import Protocol
from fmboost_jax.evaluation.report import summary
from fmboost_jax.images.photos import UnusablePhoto
from fmboost_jax.metrics.frechet import FeatureStatistics, frechet_distance

EVALUATED, REFERENCE = "images", "reference"


class Evaluator:
    """An evaluation whose batches are divided among processes.

    Args:
        protocol: protocol of the evaluation.
        metrics: metrics of the protocol.
        parts: results of the batches on disk.
        cache: folder of the reference sets' statistics.
        process_index: number of this process. It evaluates batches process_index, process_index + process_count, ….
        process_count: processes that share the work.
    """

    def __init__(
        self,
        protocol: Protocol,
        metrics: Metrics,
        parts: PartialResults,
        cache: pathlib.Path,
        *,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self._protocol, self._metrics, self._parts, self._cache = protocol, metrics, parts, cache
        self._process_index, self._process_count = process_index, process_count

    def evaluate(self, source: ImageSource, captions: dict[str, str]) -> None:
        """Evaluate the missing batches of this process."""

        def measure(names: list[str], batch: Batch) -> PartialResult:
            rows = self._metrics.rows(names, batch.images, batch.originals, captions)
            return PartialResult(rows, [], batch.seconds, self._metrics.features(names, batch.images))

        self._work(EVALUATED, source, measure)

    def prepare_reference(self, reference: ImageSet, checksum: str) -> None:
        """Compute this process's batches of the reference's features, if the cache lacks their statistics."""
        if any(not path.exists() for path in self._cached(checksum).values()):

            def measure(names: list[str], batch: Batch) -> PartialResult:
                return PartialResult([], [], 0.0, self._metrics.features(names, batch.images))

            self._work(REFERENCE, Folder(reference), measure)

    def _work(self, kind: str, source: ImageSource, measure: Callable[[list[str], Batch], PartialResult]) -> None:
        size = self._protocol.batch_size
        assigned = range(self._process_index, _batches(source.names, size), self._process_count)
        missing = [number for number in assigned if not self._parts.has(kind, number)]
        names = [(number, name) for number in missing for name in source.names[number * size : (number + 1) * size]]
        total = sum(len(source.names[number * size : (number + 1) * size]) for number in assigned)
        loaded = in_order(lambda item: (item[0], *load_quietly(source, item[1])), names, self._protocol.num_threads)
        bar = tqdm(total=total, initial=total - len(names), desc=kind, unit="image", dynamic_ncols=True)
        with bar:
            for number, group in itertools.groupby(loaded, lambda item: item[0]):
                part = _one_batch(source, measure, group)
                self._parts.write(kind, number, part)
                bar.update(len(source.names[number * size : (number + 1) * size]))

    def unfinished(self, source: ImageSource, reference: ImageSet | None, checksum: str) -> int:
        """Return the number of batches that other processes have not finished."""
        wanted = [(EVALUATED, number) for number in range(_batches(source.names, self._protocol.batch_size))]
        if reference is not None and any(not path.exists() for path in self._cached(checksum).values()):
            count = _batches(reference.names, self._protocol.batch_size)
            wanted += [(REFERENCE, number) for number in range(count)]
        return sum(not self._parts.has(*part) for part in wanted)

    def results(self, source: ImageSource, reference: ImageSet | None, checksum: str) -> tuple[dict, list[dict]]:
        """Return the results over all batches, and a row for each image.

        Raises:
            InputError: no image could be used, or too few for a Fréchet distance.
        """
        rows, skipped, seconds = [], [], 0.0
        totals = self._empty()
        for part in self._all(EVALUATED, source.names):
            rows += part.rows
            skipped += part.skipped
            seconds += part.seconds
            for name, statistics in totals.items():
                statistics.update(part.features[name])
        if not rows:
            raise InputError(f"none of the {len(source.names)} images could be used: {': '.join(skipped[0])}")
        metrics = summary(rows)
        notes = []
        if totals:
            assert reference is not None, "metrics of two sets need a reference"
            expected, skipped_there = self._reference(reference, checksum)
            skipped += [entry for entry in skipped_there if entry not in skipped]
            for name, statistics in totals.items():
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    distance = frechet_distance(statistics, expected[name])
                notes += [f"{name}: {warning.message}" for warning in caught]
                metrics[name] = {"value": distance, "standard_error": None, "images": statistics.count}
        wanted = self._protocol.count
        if len(rows) < wanted:
            notes.append(f"the protocol has {wanted} images, {len(rows)} were measured: not comparable with other sets")
        results = {
            "images": len(rows),
            "skipped": skipped,
            "metrics": metrics,
            "seconds_an_image": seconds / len(rows) if seconds else None,
            "warnings": list(dict.fromkeys(notes)),
        }
        return results, rows

    def remove_parts(self) -> None:
        """Delete the partial results."""
        self._parts.remove()

    def _reference(self, reference: ImageSet, checksum: str) -> tuple[dict[str, FeatureStatistics], list[list[str]]]:
        """Return the reference's statistics, from the cache or from partial results, which are then cached."""
        paths = self._cached(checksum)
        if all(path.exists() for path in paths.values()):
            return {name: FeatureStatistics.load(path) for name, path in paths.items()}, []
        expected, skipped = self._empty(), []
        for part in self._all(REFERENCE, reference.names):
            skipped += part.skipped
            for name, statistics in expected.items():
                statistics.update(part.features[name])
        self._cache.mkdir(parents=True, exist_ok=True)
        for name, statistics in expected.items():
            statistics.save(paths[name])
        return expected, skipped

    def _cached(self, checksum: str) -> dict[str, pathlib.Path]:
        """Return the file of a reference set's statistics for each distance, named by a checksum of their inputs."""
        protocol = self._protocol
        paths = {}
        for name, patch in protocol.feature_sets.items():
            key = checksums.of_facts(
                distance=name,
                weights=self._metrics.feature_weights,
                images=checksum,
                size=[protocol.high_res, protocol.high_res_filter, protocol.enlarge],
                patch=patch and [*patch, protocol.seed],
            )
            paths[name] = self._cache / f"{name}-{key[:32]}.npz"
        return paths

    def _empty(self) -> dict[str, FeatureStatistics]:
        return {name: FeatureStatistics(self._metrics.dimensions) for name in self._protocol.feature_sets}

    def _all(self, kind: str, names: list[str]) -> Iterator[PartialResult]:
        return (self._parts.read(kind, number) for number in range(_batches(names, self._protocol.batch_size)))


def _one_batch(source: ImageSource, measure: Callable, loaded: Iterator[tuple[int, str, Any]]) -> PartialResult:
    usable, skipped = [], []
    for _, name, content in loaded:
        if isinstance(content, UnusablePhoto):
            skipped.append([name, str(content)])
        else:
            usable.append((name, content))
    if not usable:
        return PartialResult([], skipped, 0.0, measure([], Batch([], None, 0.0)).features)
    names, contents = map(list, zip(*usable, strict=True))
    return measure(names, source.batch(names, contents))._replace(skipped=skipped)


def _batches(names: list[str], size: int) -> int:
    return -(-len(names) // size)
