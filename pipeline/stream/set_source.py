"""One set of a stream: its order, its reader and its cache, from which the next examples are drawn."""

from collections.abc import Sequence
from typing import NamedTuple

from mert_foundry.pipeline.cache.shard_cache import ShardCache
from mert_foundry.pipeline.shards.reader import ShardReader
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.stream.bad_shards import BadShards
from mert_foundry.pipeline.stream.position import SetPosition
from mert_foundry.pipeline.stream.sample_order import Place, SampleOrder


class OpenSet(NamedTuple):
    """What examples of one set are read with: its folder, its targets, frames of a whole segment, a reader of its
    shards, and the cache that this one reads from.
    """

    folder: str
    specs: Sequence[TargetSpec]
    segment_frames: int
    reader: ShardReader
    cache: ShardCache | None = None


class SetSource:
    """Draws the examples of one set in their order. Opens the windows of shards in its cache, if there is one.

    Args:
        number: of the set in its mixture; places have it.
        opened: its reader and cache.
        order: of its examples.
        bad: its bad shards.
    """

    def __init__(self, number: int, opened: OpenSet, order: SampleOrder, bad: BadShards) -> None:
        self._number = number
        self._open = opened
        self._order = order
        self.bad = bad

    def draw(self, consumed: int, count: int, own: range) -> tuple[list[Place], int]:
        """Of the next `count` examples those of this rank, and what is consumed after all of them.

        Where bad shards are looked for, their examples are missing, and the examples after them move up, on all ranks
        alike: every rank waits for all shards of a global batch, so that all ranks know which of them are bad. Raises
        ValueError when all are.
        """
        if self.bad.are_looked_for:
            places, consumed = self._draw_sound(consumed, count)
            return places[own.start : own.stop], consumed
        if count:
            self._open_windows(consumed + count)
        return self._take(consumed + own.start, len(own)), consumed + count

    def close_windows(self, consumed: int) -> None:
        """Close the files of all windows of shards before this position, then let the cache delete their copies."""
        if cache := self._open.cache:
            window = self._order.window_of(consumed)
            self._open.reader.keep_only(cache.open_shards(window))
            cache.close_windows(window)

    def position(self, consumed: int, bad_shards: list[str]) -> SetPosition:
        """What a checkpoint says of this set."""
        return SetPosition.at(consumed, self._order.epoch_size, bad_shards)

    def _draw_sound(self, consumed: int, count: int) -> tuple[list[Place], int]:
        places: list[Place] = []
        last_found = consumed
        while len(places) < count:
            missing = count - len(places)
            self._open_windows(consumed + missing)
            found = [place for place in self._take(consumed, missing) if not self.bad.has(place.epoch, place.shard)]
            places += found
            consumed += missing
            last_found = consumed if found else last_found
            if consumed - last_found > self._order.epoch_size:
                raise ValueError(
                    f"{self._open.folder}: all {len(self.bad.names)} shards with examples are corrupt in the store"
                )
        return places, consumed

    def _take(self, start: int, count: int) -> list[Place]:
        places = self._order.take(start, count)
        return [place._replace(set_number=self._number) for place in places] if self._number else places

    def _open_windows(self, end: int) -> None:
        if self._open.cache:
            self._open.cache.open_windows(self._order.window_of(end - 1))
