"""What a run has drawn, from the positions it kept and the indexes of its sets: no example is read.

Between two positions the rows follow from the order: a phase says where each set began and with which weights, the
schedule says which set each row comes from, and the set's sample order which example that is. So the examples of any
step can be named, and each position can be checked against what it must be.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from mert_foundry.pipeline.stream.position import (
    MixturePosition,
    OtherSetsError,
    Phase,
    SetPosition,
    check_same,
    parse_position,
)
from mert_foundry.pipeline.stream.row_schedule import RowSchedule
from mert_foundry.pipeline.stream.sample_order import ORDER_VERSION, Place, SampleOrder
from mert_foundry.pipeline.stream.set_mixture import ShardSet


class KnownPosition(NamedTuple):
    """The position after a step."""

    step: int
    position: MixturePosition


class PastRow(NamedTuple):
    """A row of a step: the digest of its set, and the example."""

    digest: str
    place: Place


class PastRows:
    """The rows of a run.

    Args:
        sets: the sets that can be read now; others that the run had may be missing.
        positions: stored positions by step.
        sizes: (step, rows) in rising steps from 1: from that step on a step has so many rows, as the run has it now. A
            row, as positions count them, is a visit to an example.

    known: the positions, but those of sets that are all missing. left_out: the steps of these; later positions tell
    their rows.

    Raises ValueError, naming the step, for what is no position, for positions that differ in seed, split, window or
    order version, and where all are of sets that are missing.
    """

    def __init__(
        self,
        sets: Sequence[ShardSet],
        positions: Mapping[int, Mapping[str, Any]],
        sizes: Sequence[tuple[int, int]],
    ) -> None:
        if not positions:
            raise ValueError("no position: neither a record of a training step nor a checkpoint")
        self.sets = {each.digest: each for each in sets}
        self.order = lru_cache(maxsize=None)(self._make_order)
        self.known: list[KnownPosition] = []
        self.left_out: list[int] = []
        for step in sorted(positions):
            try:
                self.known.append(KnownPosition(step, self._parse(step, positions[step])))
            except OtherSetsError:
                self.left_out.append(step)
        if not self.known:
            raise ValueError(
                f"none of {len(positions)} positions is of {', '.join(self._folders())}: index.json is another"
            )
        self.now = self.known[-1].position
        self._sizes = sizes

    def rows_of(self, step: int) -> range:
        """The rows of a step, counted from the start of the run.

        Raises ValueError for a step that no position comes after, and where the batch size cannot be told.
        """
        place = bisect_left([known.step for known in self.known], step)
        if step < 1 or place == len(self.known):
            raise ValueError(f"step {step}: positions are known of steps 1 to {self.known[-1].step}")
        before, steps, rows = self._stretch(place)
        if rows == self._scheduled_rows(before.step, before.step + steps):
            return range(*(before.rows + self._scheduled_rows(before.step, after) for after in (step - 1, step)))
        size = self._size_in(place)
        change = _Change(0, size, size) if size else self._find_change(place)
        if change is None:
            raise ValueError(
                f"step {step}: {rows} rows were drawn in the {steps} steps after step {before.step}, stream.batch_size"
                f" is {self._scheduled_size(step)}: it was changed among them, and nothing says where"
            )
        starts = [before.rows + change.rows_after(done) for done in (step - 1 - before.step, step - before.step)]
        return range(*starts)

    def _scheduled_size(self, step: int) -> int:
        """Rows of a step, if the settings of now held for it."""
        return [size for begin, size in self._sizes if begin <= step][-1]

    def _scheduled_rows(self, before: int, after: int) -> int:
        """Rows of the steps after step `before` up to step `after`, if the settings of now held for them."""
        ends = [begin - 1 for begin, _ in self._sizes[1:]] + [after]
        return sum(
            size * max(0, min(end, after) - max(begin - 1, before)) for (begin, size), end in zip(self._sizes, ends)
        )

    def places_of(self, step: int) -> list[PastRow]:
        """The examples of a step, in the order of its rows.

        Raises as `rows_of`, and ValueError for a set that is missing.
        """
        rows = self.rows_of(step)
        position = self.known[bisect_left([known.step for known in self.known], step)].position
        if any(place.bad_shards for place in position.sets.values()):
            raise ValueError(f"step {step}: corrupt shards were passed over by then, which moved the rows after them")
        phase = [phase for phase in position.phases if phase.rows <= rows.start][-1]
        digests, schedule = _schedule(phase)
        before = schedule.counts(rows.start - phase.rows)
        sets = schedule.take(rows.start - phase.rows, len(rows))
        drawn = [
            iter(self._take(digest, phase.sets[digest], done, sets.count(number)))
            for number, (digest, done) in enumerate(zip(digests, before))
        ]
        return [PastRow(digests[number], next(drawn[number])) for number in sets]

    def find_faults(self) -> Iterator[str]:
        """A line for each position that leaves out or repeats examples: not what the order makes of the ones before."""
        for place, known in enumerate(self.known):
            before, steps, rows = self._stretch(place)
            if rows < steps:
                yield f"step {known.step}: {rows} rows since step {before.step}, fewer than steps"
            phases = known.position.phases
            ends = [(phase.rows, phase.sets) for phase in phases[1:]] + [(known.position.rows, known.position.sets)]
            for phase, (end, sets) in zip(phases, ends):
                yield from (f"step {known.step}: {fault}" for fault in self._faults_of(phase, end, sets))

    def count_epochs(self, most: int) -> tuple[int, int]:
        """Count through the order of the epochs begun, the newest of each set first, of at most `most` examples
        together.

        Returns how many epochs and examples were counted. Raises ValueError naming set and epoch when one has an
        example twice or not at all.
        """
        epochs = examples = 0
        for digest in self.now.sets.keys() & self.sets.keys():
            place, size = self.now.sets[digest], self.order(digest).epoch_size
            for epoch in range(place.epoch - (place.offset == 0), -1, -1):
                if examples + size > most:
                    break
                if not self.order(digest).is_permutation(epoch):
                    raise ValueError(f"{self.sets[digest].folder}: epoch {epoch} does not have every example once")
                epochs, examples = epochs + 1, examples + size
        return epochs, examples

    def consumed(self, digest: str, place: SetPosition) -> int:
        """Examples of a set consumed, over all epochs."""
        return place.consumed(self.order(digest).epoch_size)

    def _stretch(self, place: int) -> tuple["_StepRows", int, int]:
        """Step and row count at the known position before this one, and the steps and rows between the two."""
        before = self.known[place - 1] if place else None
        mark = _StepRows(before.step, before.position.rows) if before else _StepRows(0, 0)
        after = self.known[place]
        return mark, after.step - mark.step, after.position.rows - mark.rows

    def _size_in(self, place: int) -> int | None:
        """Rows per step: the mean over the stretch; None where it cannot be trusted.

        It is trusted if the stretch is one step, if it equals today's batch size, or if a neighbouring stretch has the
        same mean.
        """
        before, steps, rows = self._stretch(place)
        if rows % steps:
            return None
        beside = [other for other in (place - 1, place + 1) if 0 <= other < len(self.known)]
        means = [rows / steps for _, steps, rows in map(self._stretch, beside)]
        size = rows // steps
        of_now = {self._scheduled_size(step) for step in (before.step + 1, before.step + steps)}
        return size if steps == 1 or of_now == {size} or size in means else None

    def _find_change(self, place: int) -> "_Change | None":
        """Where the batch size of a stretch became that of the stretch after it, if that was changed once; None where
        it cannot be told.
        """
        last = place + 1 == len(self.known)
        former = self._size_in(place - 1) if place else None
        later = self._scheduled_size(self.known[place].step) if last else self._size_in(place + 1)
        if former is None or later is None or former == later:
            return None
        _, steps, rows = self._stretch(place)
        # rows = former * done + later * (steps - done)
        done, remainder = divmod(rows - later * steps, former - later)
        return _Change(done, former, later) if not remainder and 0 < done < steps else None

    def _faults_of(self, phase: Phase, end: int, sets: Mapping[str, SetPosition]) -> Iterator[str]:
        digests, schedule = _schedule(phase)
        for digest, count in zip(digests, schedule.counts(end - phase.rows)):
            if digest not in self.sets:
                continue
            drawn = self.consumed(digest, sets[digest]) - self.consumed(digest, phase.sets[digest])
            # Those passed over are consumed too.
            if drawn != count and not (drawn > count and sets[digest].bad_shards):
                yield f"{self.sets[digest].folder}: {drawn} examples consumed, {count} rows drawn"

    def _take(self, digest: str, start: SetPosition, done: int, count: int) -> list[Place]:
        if not count:
            return []
        if digest not in self.sets:
            raise ValueError(f"the set with index.json of SHA-256 {digest} is not among {', '.join(self._folders())}")
        return self.order(digest).take(self.consumed(digest, start) + done, count)

    def _folders(self) -> list[str]:
        return [each.folder for each in self.sets.values()]

    def _make_order(self, digest: str) -> SampleOrder:
        shards = self.sets[digest].index.shards(self.now.split)
        return SampleOrder([shard.nsamples for shard in shards], self.now.seed, self.now.shuffle_window)

    def _parse(self, step: int, document: Mapping[str, Any]) -> MixturePosition:
        split = document.get("split", "")
        sizes = {digest: each.num_examples(split) for digest, each in self.sets.items()}
        try:
            position = parse_position(document, {digest: size for digest, size in sizes.items() if size})
            check_same(position, self.known[0].position if self.known else position)
        except OtherSetsError:
            raise
        except ValueError as error:
            raise ValueError(f"step {step}: {error}") from error
        if position.order_version != ORDER_VERSION:
            raise ValueError(f"step {step}: order version {position.order_version}, this program has {ORDER_VERSION}")
        return position


class _StepRows(NamedTuple):
    step: int
    rows: int


class _Change(NamedTuple):
    """The rows of a step are `former` for so many steps of a stretch, and then `later`."""

    steps: int
    former: int
    later: int

    def rows_after(self, done: int) -> int:
        """Rows of the first `done` steps of the stretch."""
        return self.former * min(done, self.steps) + self.later * max(0, done - self.steps)


def _schedule(phase: Phase) -> tuple[list[str], RowSchedule]:
    """The sets of a phase in their order, and which of them each row comes from."""
    digests = sorted(phase.weights)
    return digests, RowSchedule([phase.weights[digest] for digest in digests])
