"""One evaluation from its images to its numbers: batches, parts on disk, cached statistics of the reference."""

import itertools
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from fmboost_jax.data.threads import in_order
from fmboost_jax.errors import InputError
from fmboost_jax.evaluation import checksums
from fmboost_jax.evaluation.collection import Collection
from fmboost_jax.evaluation.measures import Measures
from fmboost_jax.evaluation.parts import Part, Parts
from fmboost_jax.evaluation.protocol import Protocol
from fmboost_jax.evaluation.report import summary
from fmboost_jax.evaluation.subjects import Batch, Folder, Subject, load_quietly
from fmboost_jax.images.photos import UnusablePhoto
from fmboost_jax.metrics.frechet import FeatureStatistics, frechet_distance

EVALUATED, REFERENCE = "images", "reference"


class Session:
    """The work of one evaluation, shared among processes by batches.

    Args:
        protocol: what to measure, and how.
        measures: the metrics.
        parts: where the results of batches lie.
        cache: folder of the reference sets' statistics.
        process_index: this process does batches process_index, process_index + process_count, ….
        process_count: processes that share the work.
    """

    def __init__(
        self,
        protocol: Protocol,
        measures: Measures,
        parts: Parts,
        cache: pathlib.Path,
        *,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self._protocol, self._measures, self._parts, self._cache = protocol, measures, parts, cache
        self._process_index, self._process_count = process_index, process_count

    def evaluate(self, subject: Subject, captions: dict[str, str]) -> None:
        """Do this process's batches of the images, those that are not there yet."""

        def act(names: list[str], batch: Batch) -> Part:
            rows = self._measures.rows(names, batch.images, batch.originals, captions)
            return Part(rows, [], batch.seconds, self._measures.features(names, batch.images))

        self._work(EVALUATED, subject, act)

    def prepare_reference(self, reference: Collection, checksum: str) -> None:
        """Do this process's batches of the reference's features, unless the cache has their statistics."""
        if any(not path.exists() for path in self._cached(checksum).values()):

            def act(names: list[str], batch: Batch) -> Part:
                return Part([], [], 0.0, self._measures.features(names, batch.images))

            self._work(REFERENCE, Folder(reference), act)

    def _work(self, kind: str, subject: Subject, act: Callable[[list[str], Batch], Part]) -> None:
        size = self._protocol.batch_size
        own = range(self._process_index, _batches(subject.names, size), self._process_count)
        missing = [number for number in own if not self._parts.has(kind, number)]
        names = [(number, name) for number in missing for name in subject.names[number * size : (number + 1) * size]]
        total = sum(len(subject.names[number * size : (number + 1) * size]) for number in own)
        loaded = in_order(lambda item: (item[0], *load_quietly(subject, item[1])), names, self._protocol.num_threads)
        bar = tqdm(total=total, initial=total - len(names), desc=kind, unit="image", dynamic_ncols=True)
        with bar:
            for number, group in itertools.groupby(loaded, lambda item: item[0]):
                part = _one_batch(subject, act, group)
                self._parts.write(kind, number, part)
                bar.update(len(subject.names[number * size : (number + 1) * size]))

    def unfinished(self, subject: Subject, reference: Collection | None, checksum: str) -> int:
        """How many batches other processes have still to do."""
        wanted = [(EVALUATED, number) for number in range(_batches(subject.names, self._protocol.batch_size))]
        if reference is not None and any(not path.exists() for path in self._cached(checksum).values()):
            count = _batches(reference.names, self._protocol.batch_size)
            wanted += [(REFERENCE, number) for number in range(count)]
        return sum(not self._parts.has(*part) for part in wanted)

    def results(self, subject: Subject, reference: Collection | None, checksum: str) -> tuple[dict, list[dict]]:
        """The numbers of all batches: the results, and a row an image.

        Raises:
            InputError: not a single image could be used, or too few for a distance.
        """
        rows, skipped, seconds = [], [], 0.0
        found = self._empty()
        for part in self._all(EVALUATED, subject.names):
            rows += part.rows
            skipped += part.skipped
            seconds += part.seconds
            for name, statistics in found.items():
                statistics.update(part.features[name])
        if not rows:
            raise InputError(f"none of the {len(subject.names)} images could be used: {': '.join(skipped[0])}")
        metrics = summary(rows)
        told = []
        if found:
            assert reference is not None, "the commands ask for a reference where a metric compares two sets"
            expected, skipped_there = self._reference(reference, checksum)
            skipped += [entry for entry in skipped_there if entry not in skipped]
            for name, statistics in found.items():
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    distance = frechet_distance(statistics, expected[name])
                told += [f"{name}: {warning.message}" for warning in caught]
                metrics[name] = {"value": distance, "standard_error": None, "images": statistics.count}
        wanted = self._protocol.count
        if len(rows) < wanted:
            told.append(f"the protocol asks for {wanted} images, {len(rows)} were measured: compare with no other set")
        results = {
            "images": len(rows),
            "skipped": skipped,
            "metrics": metrics,
            "seconds_an_image": seconds / len(rows) if seconds else None,
            "warnings": list(dict.fromkeys(told)),
        }
        return results, rows

    def remove_parts(self) -> None:
        """Delete the results of batches, once the whole's are written."""
        self._parts.remove()

    def _reference(self, reference: Collection, checksum: str) -> tuple[dict[str, FeatureStatistics], list[list[str]]]:
        """The reference's statistics, from the cache or from its parts, which then go into the cache."""
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
        """Where the statistics of a reference set lie, for each distance: the name is of all that they depend on."""
        protocol = self._protocol
        paths = {}
        for name, patch in protocol.feature_sets.items():
            key = checksums.of_facts(
                distance=name,
                weights=self._measures.feature_weights,
                images=checksum,
                size=[protocol.high_res, protocol.high_res_filter, protocol.enlarge],
                patch=patch and [*patch, protocol.seed],
            )
            paths[name] = self._cache / f"{name}-{key[:32]}.npz"
        return paths

    def _empty(self) -> dict[str, FeatureStatistics]:
        return {name: FeatureStatistics(self._measures.dimensions) for name in self._protocol.feature_sets}

    def _all(self, kind: str, names: list[str]) -> Iterator[Part]:
        return (self._parts.read(kind, number) for number in range(_batches(names, self._protocol.batch_size)))


def _one_batch(subject: Subject, act: Callable, loaded: Iterator[tuple[int, str, Any]]) -> Part:
    usable, skipped = [], []
    for _, name, content in loaded:
        if isinstance(content, UnusablePhoto):
            skipped.append([name, str(content)])
        else:
            usable.append((name, content))
    if not usable:
        return Part([], skipped, 0.0, act([], Batch([], None, 0.0)).features)
    names, contents = map(list, zip(*usable, strict=True))
    return act(names, subject.batch(names, contents))._replace(skipped=skipped)


def _batches(names: list[str], size: int) -> int:
    return -(-len(names) // size)
