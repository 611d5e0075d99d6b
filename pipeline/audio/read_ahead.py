"""Load items in threads ahead of their use."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def read_ahead(
    items: Iterable[Item], load: Callable[[Item], Loaded], threads: int
) -> Generator[tuple[Item, Loaded], None, None]:
    """Each item with the result of `load`, in order; at most `threads` results wait.

    An error of `load`, or of `items`, is raised in its turn, after all that came before it.
    """

    def pair(item: Item) -> tuple[Item, Loaded]:
        return item, load(item)

    source, waiting = iter(items), deque[Future[tuple[Item, Loaded]]]()
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            try:
                waiting.extend(pool.submit(pair, item) for item in islice(source, threads + 1 - len(waiting)))
            except Exception as error:
                waiting.append(_failed(error))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        waiting.clear()  # a traceback may keep this frame, and results hold open files


def _failed(error: Exception) -> Future:
    future: Future = Future()
    future.set_exception(error)
    return future
