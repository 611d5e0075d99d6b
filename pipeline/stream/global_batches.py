"""What each global batch is made of: examples in their order, with or without those of shards that are corrupt."""

import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from typing import NamedTuple

from mert_foundry.pipeline.cache.shard_cache import ShardCache
from mert_foundry.pipeline.shards.index import ShardEntry
from mert_foundry.pipeline.stream.sample_order import Place, SampleOrder


class Mark(NamedTuple):
    """Where the stream is after a batch: examples consumed since the start, and the shards passed over so far."""

    consumed: int
    bad_shards: list[str]


Plan = tuple[Mark, range, list[Place]]  # of one rank: the mark, its rows in the global batch, places to fill them from


class BadShards:
    """The shards of a split that are corrupt in the store, as far as the stream has come.

    Args:
        shards: of the split.
        cache: which verifies them.
        names: those passed over before.
        warns: whether this process logs a warning for each.
    """

    def __init__(self, shards: Sequence[ShardEntry], cache: ShardCache, names: Sequence[str], warns: bool) -> None:
        self._shards = shards
        self._cache = cache
        self._warns = warns
        self.names = sorted(names)
        # Asked for every example; once an epoch is enough, as a shard is read once an epoch.
        self.has = lru_cache(maxsize=1024)(self._find)

    def _find(self, epoch: int, shard: int) -> bool:
        """Whether a shard is corrupt in an epoch. Waits for it; raises OSError when the store fails."""
        fault = self._cache.find_fault(shard)
        name = self._shards[shard].name
        if fault and name not in self.names:
            self.names = sorted([*self.names, name])
            if self._warns:
                logging.getLogger(__name__).warning(
                    f"passed over with its {self._shards[shard].nsamples} examples: {fault};"
                    f" {len(self.names)} of {len(self._shards)} shards so far"
                )
        return bool(fault)


class GlobalBatches:
    """Plans of global batches of `batch_size` examples; tells the cache, if there is one, which shards are at work."""

    def __init__(self, order: SampleOrder, batch_size: int, cache: ShardCache | None) -> None:
        self._order = order
        self._batch_size = batch_size
        self._cache = cache

    def after(self, consumed: int, rows: range, bad_shards: list[str]) -> Iterator[Plan]:
        """Batch after batch of one rank, from a position on, before which `bad_shards` were passed over."""
        for start in count(consumed, self._batch_size):
            self._reach(start + self._batch_size)
            places = self._order.take(start + rows.start, len(rows))
            yield Mark(start + self._batch_size, bad_shards), rows, places

    def without(self, bad: BadShards, consumed: int, rows: range) -> Iterator[Plan]:
        """The same without the examples of bad shards; those after them move up, on all ranks alike.

        Every rank waits for all shards of a global batch, so that all know which of them are bad.
        """
        last_found = consumed
        while True:
            places: list[Place] = []
            while len(places) < self._batch_size:
                missing = self._batch_size - len(places)
                self._reach(consumed + missing)
                found = self._order.take(consumed, missing)
                places += [place for place in found if not bad.has(place.epoch, place.shard)]
                consumed += missing
                last_found = consumed if len(places) > self._batch_size - missing else last_found
                if consumed - last_found > self._order.epoch_size:
                    raise ValueError(f"all {len(bad.names)} shards with examples are corrupt in the store")
            yield Mark(consumed, bad.names), rows, places[rows.start : rows.stop]

    def _reach(self, end: int) -> None:
        if self._cache:
            self._cache.reach(self._order.window_of(end - 1))
