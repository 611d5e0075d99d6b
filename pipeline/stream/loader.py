"""Fills batches: the crops of visits to examples are read by threads, right into the rows of a batch."""

import logging
from collections import defaultdict, deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import count
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from mert_foundry.pipeline.frames import HOP
from mert_foundry.pipeline.shards.reader import AUDIO, Cut
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.stream.batch_arrays import BatchArrays
from mert_foundry.pipeline.stream.crops import CropRule, Piece
from mert_foundry.pipeline.stream.sample_order import Place
from mert_foundry.pipeline.stream.set_mixture import SetMixture
from mert_foundry.pipeline.stream.set_source import OpenSet

Batch = dict[str, torch.Tensor | list[str]]
Arrays = Mapping[str, np.ndarray]
PRESENT = "present/"  # before a target's name
WARN_EVERY = 60.0  # seconds that a batch is waited for
ROWS_A_TASK = 4  # at most, but for those of one visit
# How often a visit reopens its shard: another reader may put the damaged copy back.
REOPENINGS = 3

Tag = TypeVar("Tag")


class FilledRow(NamedTuple):
    """What a row of a batch has beside its place in the arrays: `tokens` `[n]` as stored, where its set has text and it
    is asked for.
    """

    key: str
    tokens: np.ndarray | None


class Loader:
    """Fills batches in threads, in order, `prefetch` ahead of the consumer.

    Args:
        sets: to read from, by their number in places.
        mixture: of these sets; it says which targets a batch has.
        rule: of crops.
        threads: how many.
        prefetch: batches made ahead.
        with_text: whether batches have the tokens of the rows' texts.

    Raises ValueError when text is asked for and no set has any.
    """

    def __init__(
        self,
        sets: Sequence[OpenSet],
        mixture: SetMixture,
        rule: CropRule,
        threads: int,
        prefetch: int,
        with_text: bool = False,
    ) -> None:
        if with_text and mixture.text is None:
            raise ValueError(f"text is asked for, there is none in {', '.join(each.folder for each in mixture.sets)}")
        self._with_text = with_text
        self._sets = sets
        self._partial = [spec.name for spec in mixture.targets if spec.name in mixture.partial_targets]
        self._rule = rule
        self._arrays = BatchArrays(
            {spec.name: (spec.shape(rule.frames), spec.dtype) for spec in mixture.targets}
            | {PRESENT + name: ((1,), "bool") for name in sorted(mixture.partial_targets)}
            | ({AUDIO: ((HOP * rule.frames,), "int16")} if mixture.has_audio else {})
            | {"valid": ((rule.frames,), "bool")}
        )
        self._prefetch = prefetch
        self._thread_count = threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="batch_stream")

    def batches(self, plans: Iterable[tuple[Tag, range, list[Place]]]) -> Generator[tuple[Batch, Tag], None, None]:
        """For each plan (tag, visits in the global batch, places to make them to): its batch and tag."""
        pending: deque[tuple[Tag, range, dict[str, np.ndarray], list[Future[list[FilledRow]]]]] = deque()
        for tag, visits, places in plans:
            rows = range(visits.start * self._rule.per_visit, visits.stop * self._rule.per_visit)
            arrays = self._arrays.take(len(rows))
            pending.append((tag, rows, arrays, self._submit(arrays, places)))
            if len(pending) > self._prefetch:
                yield self._finish(*pending.popleft())
        while pending:
            yield self._finish(*pending.popleft())

    def close(self) -> None:
        """End the threads, and let go of all files and caches."""
        for opened in self._sets:
            if opened.cache:
                opened.cache.stop_waiting()
            opened.reader.stop_waiting()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for opened in self._sets:
            opened.reader.close()
            if opened.cache:
                opened.cache.close()

    def _finish(
        self, tag: Tag, rows: range, arrays: dict[str, np.ndarray], futures: list[Future[list[FilledRow]]]
    ) -> tuple[Batch, Tag]:
        filled = [row for future in futures for row in self._wait_for(future)]
        batch: Batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        batch |= {"row": torch.arange(rows.start, rows.stop), "key": [row.key for row in filled]}
        return batch | (_pad_tokens(filled) if self._with_text else {}), tag

    def _wait_for(self, future: Future[list[FilledRow]]) -> list[FilledRow]:
        """The rows of a task.

        Says once a minute that it waits, unless a read does: the client of a store may bear a stall in silence.
        """
        for minutes in count(1):
            if wait([future], WARN_EVERY).done:
                break
            if not any(opened.reader.says_that_it_waits for opened in self._sets):
                logging.getLogger(__name__).warning(
                    f"waiting for the examples of a batch: {minutes * WARN_EVERY:.0f} s so far"
                )
        return future.result()

    def _submit(self, arrays: Arrays, places: list[Place]) -> list[Future[list[FilledRow]]]:
        """Have threads fill a batch, several rows a task, as handing over a task costs as much as filling a row's
        codes.
        """
        visits = max(1, ROWS_A_TASK // self._rule.per_visit)
        visits = min(visits, max(1, len(places) * self._prefetch // self._thread_count))
        return [
            self._threads.submit(self._fill, arrays, start, places[start : start + visits])
            for start in range(0, len(places), visits)
        ]

    def _fill(self, arrays: Arrays, start: int, places: list[Place]) -> list[FilledRow]:
        """Make the visits of a batch from number `start` on; returns what of their rows is not in the arrays."""
        first_rows = ((start + number) * self._rule.per_visit for number in range(len(places)))
        return [row for first, place in zip(first_rows, places) for row in self._visit_sound(arrays, first, place)]

    def _visit_sound(self, arrays: Arrays, first_row: int, place: Place) -> list[FilledRow]:
        """Make a visit, to a new copy of the shard if the one at hand turns out to be damaged."""
        opened = self._sets[place.set_number]
        for _ in range(REOPENINGS):
            try:
                return self._visit(arrays, first_row, place)
            except (OSError, ValueError):
                if opened.cache is None or not opened.cache.discard_damaged(place.shard):
                    raise
            opened.reader.close_shard(place.shard)
        return self._visit(arrays, first_row, place)

    def _visit(self, arrays: Arrays, first_row: int, place: Place) -> list[FilledRow]:
        """Fill the rows of a visit, each example that they need read once. All have the text of the example visited."""
        opened = self._sets[place.set_number]
        entries = opened.reader.entries(place.shard)
        crops = self._rule.visit(place.epoch, entries, place.example, opened.segment_frames)
        cuts: dict[int, list[Cut]] = defaultdict(list)
        for number, crop in enumerate(crops, first_row):
            row = {name: array[number] for name, array in arrays.items()}
            self._clear(row, crop.num_frames, opened.specs)
            for piece, arrays_of_piece in _parts(row, crop.pieces, opened.specs):
                cuts[piece.example].append(Cut(piece.start_frame, piece.num_frames, arrays_of_piece))
        for example, cuts_of_example in cuts.items():
            opened.reader.read_cuts(place.shard, example, cuts_of_example)
        tokens = opened.reader.read_tokens(place.shard, place.example) if self._with_text else None
        return [FilledRow(crop.key, tokens) for crop in crops]

    def _clear(self, row: Arrays, num_frames: int, specs: Sequence[TargetSpec]) -> None:
        """Say which frames of a row are valid and which targets it has; what it has not is zero."""
        if num_frames < self._rule.frames:
            for array in row.values():
                array[:] = 0
        row["valid"][:num_frames] = True
        for name in self._partial:
            present = any(spec.name == name for spec in specs)
            row[PRESENT + name][:] = present
            if not present:
                row[name][:] = 0


def _parts(row: Arrays, pieces: Iterable[Piece], specs: Sequence[TargetSpec]) -> Iterable[tuple[Piece, Arrays]]:
    """Each piece with the part of a row that it fills."""
    start = 0
    for piece in pieces:
        stop = start + piece.num_frames
        part = {
            spec.name: row[spec.name][start:stop] if spec.frame_axis == 0 else row[spec.name][:, start:stop]
            for spec in specs
        }
        if AUDIO in row:
            part[AUDIO] = row[AUDIO][HOP * start : HOP * stop]
        yield piece, part
        start = stop


def _pad_tokens(rows: Sequence[FilledRow]) -> Batch:
    """The tokens of rows, padded with 0 to the longest of them."""
    longest = max((len(row.tokens) for row in rows if row.tokens is not None), default=0)
    tokens = np.zeros((len(rows), max(1, longest)), np.int64)
    valid = np.zeros(tokens.shape, np.bool_)
    for number, row in enumerate(rows):
        if row.tokens is not None:
            tokens[number, : len(row.tokens)] = row.tokens
            valid[number, : len(row.tokens)] = True
    return {"tokens": torch.from_numpy(tokens), "tokens_valid": torch.from_numpy(valid)}
