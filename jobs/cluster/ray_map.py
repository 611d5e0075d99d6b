"""Work on many items on Ray: what `map_in_processes` does on one machine, on nodes that come and go."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from ray.exceptions import RayTaskError

from mert_foundry.jobs.cluster.ray_tasks import stream_on_ray
from mert_foundry.jobs.cluster.worker_processes import map_in_processes

Item = TypeVar("Item")
Result = TypeVar("Result")
# Items of a batch: one where they are few, so that all workers have some to the end, and no more than a minute or so of
# work, which is lost with a worker or with the job.
BATCHES, LARGEST_BATCH = 1000, 32


def map_on_ray(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    crashed: Callable[[Item], Result],
    lost: Callable[[Item, str], Result],
    *,
    address: str | None,
    wait: float,
    check: Callable[[], None] = lambda: None,
) -> Generator[Result, None, None]:
    """The result of each item, in the order in which they come; each process has a copy of `work`.

    Args:
        workers: processes; 0: one for each CPU, also of nodes that join later.
        crashed: gives the result of an item whose process dies twice when it is worked on alone.
        lost: gives the result of an item that could not be worked on, although its node was there, and the message.
        address: of a running cluster; `local`; None: RAY_ADDRESS, else local.
        wait: seconds to wait without any worker.
        check: called in each process at its start; raises when the machine is of no use.

    Raises as `stream_on_ray`, and what `work` raises.
    """
    if not items:
        return
    size = min(LARGEST_BATCH, -(-len(items) // BATCHES))
    batches = [Batch(start, items[start : start + size]) for start in range(0, len(items), size)]
    stream = stream_on_ray(
        batches, BatchWorker, (work, crashed, check), address=address, device="cpu", actors=workers, wait=wait
    )
    with closing(stream):
        for done in stream:
            if done.error is None:
                yield from done.result
            elif isinstance(done.error, RayTaskError) and not isinstance(done.error.cause, MemoryError):
                raise done.error.cause from done.error  # whose message is the traceback over there
            else:
                yield from (lost(item, done.failure) for item in done.task.items)


@dataclass(frozen=True)
class Batch:
    """Items that one worker does, from number `start` on. How long they are is not known."""

    start: int
    items: Sequence[Any]
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"items {self.start} to {self.start + len(self.items) - 1}"


class BatchWorker:
    """Does batches in a process of its own."""

    def __init__(self, work: Callable[[Any], Any], crashed: Callable[[Any], Any], check: Callable[[], None]):
        check()
        torch.set_num_threads(1)
        self._work = work
        self._crashed = crashed

    def run(self, batch: Batch) -> list[Any]:
        """The result of each item."""
        return [self._work(item) for item in batch.items]

    def run_carefully(self, batch: Batch) -> list[Any]:
        """As `run`, each item in a process that may die of it."""
        return list(map_in_processes(self._work, batch.items, 1, self._crashed))

    def seconds_done(self) -> float:
        """Not known."""
        return 0.0
