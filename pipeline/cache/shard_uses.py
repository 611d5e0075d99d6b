"""Which shard is needed when, by number and by its name in the cache folder."""

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

from mert_foundry.pipeline.shards.index import ShardEntry


class ShardOrder(Protocol):
    """The order in which shards are used, in windows that are counted over all epochs."""

    def shards_of(self, window: int) -> list[int]:
        """The shards of a window."""

    def next_window(self, shard: int, window: int) -> int:
        """The first window, from `window` on, that has a shard."""


class ShardUses:
    """The shards of a split and the order of their use; `shards` are the entries of the index."""

    def __init__(self, shards: Sequence[ShardEntry], order: ShardOrder) -> None:
        self.shards = shards
        self._order = order
        self._numbers = {self.name(number): number for number in range(len(shards))}

    def name(self, shard: int) -> str:
        """The name of a shard in the folder, that of the content of tar and record: sets that are made anew do not meet."""
        entry = self.shards[shard]
        return f"{entry.name}-{entry.sha256[:16]}-{entry.record_sha256[:16]}"

    def next_use(self, name: str, window: int) -> float:
        """The window that needs a shard next, from `window` on; infinite for one of another set."""
        number = self._numbers.get(name)
        return math.inf if number is None else self._order.next_window(number, window)

    def in_order(self, windows: range) -> Iterator[tuple[int, int]]:
        """Each window and shard of some windows, in the order of use."""
        for window in windows:
            for shard in self._order.shards_of(window):
                yield window, shard

    def numbers(self, windows: range) -> set[int]:
        """The shards of some windows."""
        return {shard for _, shard in self.in_order(windows)}

    def names(self, windows: range) -> set[str]:
        """Their names."""
        return {self.name(shard) for shard in self.numbers(windows)}
