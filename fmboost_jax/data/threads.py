"""Functions that run in threads ahead of the consumer."""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor


def in_order(function: Callable, items: Iterable, num_threads: int) -> Iterator:
    """Apply a function in threads and yield results in order, at most two per thread ahead of the consumer."""
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        waiting = collections.deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def batched(items: Iterator, size: int) -> Iterator[list]:
    """Yield lists of `size` items; the last one may be shorter."""
    while batch := list(itertools.islice(items, size)):
        yield batch
