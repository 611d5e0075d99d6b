"""What each global batch is made of: rows of all sets as their weights have it, from each set the next examples of its
order.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mert_foundry.pipeline.stream.row_schedule import RowSchedule
from mert_foundry.pipeline.stream.sample_order import Place
from mert_foundry.pipeline.stream.set_source import SetSource


class Mark(NamedTuple):
    """Where the stream is after a batch: rows so far; for each set the examples consumed, and the
    shards passed over.
    """

    rows: int
    consumed: tuple[int, ...]
    bad_shards: tuple[list[str], ...]


Plan = tuple[Mark, range, list[Place]]  # of one rank: the mark, its rows in the global batch, places to fill them from


class GlobalBatches:
    """Plans of global batches of `batch_size` rows, which here are visits to examples.

    Args:
        sources: a set each.
        schedule: of which set each row is.
        phase_start: the row of the run at which the schedule begins.
    """

    def __init__(self, sources: Sequence[SetSource], schedule: RowSchedule, phase_start: int, batch_size: int) -> None:
        self._sources = sources
        self._schedule = schedule
        self._phase_start = phase_start
        self._batch_size = batch_size

    def after(self, mark: Mark, rows: range) -> Iterator[Plan]:
        """Batch after batch of one rank, from a mark on."""
        while True:
            sets = self._schedule.take(mark.rows - self._phase_start, self._batch_size)
            drawn, consumed = [], []
            for number, (source, before) in enumerate(zip(self._sources, mark.consumed)):
                first = sets[: rows.start].count(number)
                own = range(first, first + sets[rows.start : rows.stop].count(number))
                places, after = source.draw(before, sets.count(number), own)
                drawn.append(iter(places))
                consumed.append(after)
            bad_shards = tuple(source.bad.names for source in self._sources)
            mark = Mark(mark.rows + self._batch_size, tuple(consumed), bad_shards)
            yield mark, rows, [next(drawn[number]) for number in sets[rows.start : rows.stop]]
