"""Load items in threads a little ahead of the one that is worked on."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def read_ahead(items: Iterable[Item], load: Callable[[Item], Loaded], threads: int) -> Iterator[tuple[Item, Loaded]]:
    """Each item with what `load` makes of it, in order; at most `threads` wait. An error of `load` is raised in its turn."""
    source, waiting = iter(items), deque[tuple[Item, Future[Loaded]]]()
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            waiting.extend((item, pool.submit(load, item)) for item in islice(source, threads + 1 - len(waiting)))
            if not waiting:
                return
            item, future = waiting.popleft()
            yield item, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
