"""Time by stage where stages are nested streams: each second counts for the innermost stage alone."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


class StageClock:
    """`seconds` holds the time spent in each stage, without that of the stages inside it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._stage: str | None = None
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a `with` block for a stage."""
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def follow(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """Pass items through; the time it takes to make each counts for a stage."""
        source = iter(items)
        while True:
            with self.stage(name):
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item

    def _switch(self, name: str | None) -> str | None:
        now = time.perf_counter()
        if self._stage is not None:
            self.seconds[self._stage] += now - self._since
        outer, self._stage, self._since = self._stage, name, now
        return outer
