"""What each global batch is made of: examples in their order, with or without those of shards that are corrupt."""

import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
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
    """The shards of a split that were found to be corrupt in the store so far.

    Args:
        shards: all shards of the split.
        cache: it verifies them; None: bad shards are not looked for.
        names: the bad shards that were found before.
        warns: whether this process logs a warning for each new one.
    """

    def __init__(
        self, shards: Sequence[ShardEntry], cache: ShardCache | None, names: Sequence[str], warns: bool
    ) -> None:
        self._shards = shards
        self._cache = cache
        self._warns = warns
        self.names = sorted(names)
        # This is asked for every example; once an epoch is enough, as a shard is read once an epoch.
        self.has = lru_cache(maxsize=1024)(self._find)

    @property
    def are_looked_for(self) -> bool:
        """Whether bad shards are looked for, so that their examples can be passed over."""
        return self._cache is not None

    def _find(self, epoch: int, shard: int) -> bool:
        """Whether a shard is corrupt in an epoch. Waits for it; raises OSError when the store fails."""
        assert self._cache is not None, "bad shards are looked for"
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
    """Plans of global batches of `batch_size` examples; opens the windows of shards in the cache, if there is one."""

    def __init__(self, order: SampleOrder, batch_size: int, cache: ShardCache | None) -> None:
        self._order = order
        self._batch_size = batch_size
        self._cache = cache

    def after(self, consumed: int, rows: range, bad: BadShards) -> Iterator[Plan]:
        """The batches of one rank, from a position on.

        Where bad shards are looked for, their examples are missing, and the examples after them move up, on all ranks alike: every
        rank waits for all shards of a global batch, so that all ranks know which of them are bad.
        """
        while True:
            if bad.are_looked_for:
                consumed, batch = self._take_sound(consumed, bad)
                places = batch[rows.start : rows.stop]
            else:
                self._open_windows(consumed + self._batch_size)
                places = self._order.take(consumed + rows.start, len(rows))
                consumed += self._batch_size
            yield Mark(consumed, bad.names), rows, places

    def _take_sound(self, consumed: int, bad: BadShards) -> tuple[int, list[Place]]:
        """The position after a global batch that begins at `consumed`, and its places, none of them in a bad shard."""
        places: list[Place] = []
        last_found = consumed
        while len(places) < self._batch_size:
            missing = self._batch_size - len(places)
            self._open_windows(consumed + missing)
            found = [place for place in self._order.take(consumed, missing) if not bad.has(place.epoch, place.shard)]
            places += found
            consumed += missing
            last_found = consumed if found else last_found
            if consumed - last_found > self._order.epoch_size:
                raise ValueError(f"all {len(bad.names)} shards with examples are corrupt in the store")
        return consumed, places

    def _open_windows(self, end: int) -> None:
        """Open the windows of shards before position `end` in the cache."""
        if self._cache:
            self._cache.open_windows(self._order.window_of(end - 1))
