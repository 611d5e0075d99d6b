"""Work on many items in processes of their own, so that one that crashes its process costs nothing but itself."""

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from typing import Any, TypeVar

import torch

from mert_foundry.jobs.cluster.parent_process import end_with

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 4  # items in flight, for each process
TRIES = 2  # of an item alone: a process may also have been ended from outside
# Slow imports. Workers preload those that their parent has imported.
PRELOADED = ["mert_foundry.pipeline.manifest.scan", "mert_foundry.jobs.extraction.run", "torch._dynamo"]


def map_in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, crashed: Callable[[Item], Result]
) -> Iterator[Result]:
    """The result of each item, in order; that of `crashed` for an item whose process dies twice when it is worked on
    alone.

    `work` and the items must pass between processes. Each process has a copy of `work`, which may learn from item to
    item. What was in flight when a process died is done again, one by one.
    """
    workers = max(1, min(workers, len(items)))
    done = 0
    while done < len(items):
        try:
            for result in _ahead(work, items[done:], workers):
                yield result
                done += 1
        except BrokenProcessPool:
            for item in items[done : done + AHEAD * workers]:
                yield _alone(work, item, crashed)
                done += 1


def _ahead(work: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    with _pool(workers, work) as pool, _cancelling(pool):
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(_do, item))
            if len(waiting) >= AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _alone(work: Callable[[Item], Result], item: Item, crashed: Callable[[Item], Result]) -> Result:
    for _ in range(TRIES):
        with suppress(BrokenProcessPool), _pool(1, work) as pool:
            return pool.submit(_do, item).result()
    return crashed(item)


def _pool(workers: int, work: Callable[[Item], object]) -> ProcessPoolExecutor:
    # Forked from a server that has imported what takes seconds, and has no threads whose locks a fork would copy.
    context = get_context("forkserver")
    context.set_forkserver_preload([module for module in PRELOADED if module in sys.modules])
    return ProcessPoolExecutor(
        workers, mp_context=context, initializer=_prepare, initargs=(dict(os.environ), os.getpid(), work)
    )


@contextmanager
def _cancelling(pool: ProcessPoolExecutor) -> Iterator[None]:
    """On an interrupt, wait for what is at work alone."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


_work: Callable[[Any], Any]  # of this process, which `_prepare` is given


def _do(item: Any) -> Any:
    return _work(item)


def _prepare(environment: dict[str, str], parent: int, work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    end_with(parent)  # a child of the fork server would wait for ever
    os.environ.update(environment)  # the server may be older than a setting
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is for the parent to speak of
    torch.set_num_threads(1)  # there is a process for each core
