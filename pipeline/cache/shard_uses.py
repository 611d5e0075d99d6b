"""Shards in the order of their use, by their number in the index and by their name in the cache folder."""

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

from mert_foundry.pipeline.shards.index import ShardEntry


class ShardOrder(Protocol):
    """The order in which shards are used: one window of shards after another.

    Windows are numbered through all epochs.
    """

    def shards_of(self, window: int) -> list[int]:
        """The shards of a window."""

    def next_window(self, shard: int, window: int) -> int:
        """The first window that holds a shard, not before `window`."""


class ShardUses:
    """The shards of a split, as the index lists them, and the order of their use."""

    def __init__(self, shards: Sequence[ShardEntry], order: ShardOrder) -> None:
        self.shards = shards
        self._order = order
        self._numbers = {self.name(number): number for number in range(len(shards))}

    def name(self, shard: int) -> str:
        """Name of a shard in the cache folder.

        It holds digests of tar and record, so shards that were labelled again get other names.
        """
        entry = self.shards[shard]
        return f"{entry.name}-{entry.sha256[:16]}-{entry.record_sha256[:16]}"

    def next_use(self, name: str, window: int) -> float:
        """The first window that needs a shard, not before `window`; infinite for a shard of another set."""
        number = self._numbers.get(name)
        return math.inf if number is None else self._order.next_window(number, window)

    def in_order(self, windows: range) -> Iterator[tuple[int, int]]:
        """All shards of some windows in the order of use, each with its window."""
        for window in windows:
            for shard in self._order.shards_of(window):
                yield window, shard

    def numbers(self, windows: range) -> set[int]:
        """Numbers of all shards of some windows."""
        return {shard for _, shard in self.in_order(windows)}

    def names(self, windows: range) -> set[str]:
        """Names of all shards of some windows."""
        return {self.name(shard) for shard in self.numbers(windows)}
