"""Load items in threads a little ahead of the one that is worked on."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def read_ahead(items: Iterable[Item], load: Callable[[Item], Loaded], threads: int) -> Iterator[tuple[Item, Loaded]]:
    """Each item with what `load` makes of it, in order; at most `threads` wait. An error of `load` is raised in its turn."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[Item, Future[Loaded]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(load, item)))
                if len(waiting) > threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
