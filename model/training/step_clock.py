"""How long the parts of a step take: what the host does by its own clock, what a GPU does by events in its queue, which
nothing waits for.

wait        for the next batch of the stream
prepare     masks, and the batch's way to the device
forward, backward
exchange    with other ranks: sums, and under DDP the wait for gradients after this rank has its own. A sharded model
            exchanges
            weights within forward and backward, where it cannot be told apart
optimizer   gradient clipping and AdamW
save        the copy of a checkpoint, and the wait for the write before

On a GPU the host prepares the next batch meanwhile, so the parts can add up to more than a step.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

PARTS = ("wait", "prepare", "forward", "backward", "exchange", "optimizer", "save")
OF_THE_RANK = ("wait", "prepare", "forward", "backward", "optimizer")  # parts that other ranks do not delay


@dataclass(frozen=True)
class _Span:
    """A part whose end a GPU has yet to reach."""

    part: str
    begin: torch.cuda.Event
    end: torch.cuda.Event


class StepClock:
    """Seconds of each part since the last `take`."""

    def __init__(self, device: torch.device):
        self._has_queue = device.type == "cuda"
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._under_way: deque[_Span] = deque()
        self._newest = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def host(self, part: str) -> Iterator[None]:
        """What the host does inside counts for a part."""
        begin = time.perf_counter()
        yield
        self._add(part, time.perf_counter() - begin)

    @contextmanager
    def device(self, part: str) -> Iterator[None]:
        """What the device is given inside counts for a part."""
        if not self._has_queue:
            with self.host(part):
                yield
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._under_way.append(_Span(part, begin, end))

    def move(self, source: str, target: str, seconds: float) -> None:
        """Seconds that were counted for one part belong to another."""
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    def take(self) -> dict[str, float]:
        """Seconds of each part since the last call; of a GPU's work, what is done."""
        self._look_at_queue()
        taken, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return taken

    def newest(self, part: str) -> float:
        """Seconds of the newest measurement of a part; 0 before the first."""
        self._look_at_queue()
        return self._newest[part]

    def _look_at_queue(self) -> None:
        while self._under_way and self._under_way[0].end.query():
            span = self._under_way.popleft()
            self._add(span.part, span.begin.elapsed_time(span.end) / 1000)

    def _add(self, part: str, seconds: float) -> None:
        self._seconds[part] += seconds
        self._newest[part] = seconds
