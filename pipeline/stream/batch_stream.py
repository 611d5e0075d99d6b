"""Endless batches: examples in their order, read and cropped by threads, each batch with its position.

    set of each visit (RowSchedule) -> its next place (SampleOrder) -> its crops -> rows of a batch, filled by threads
    -> (batch, position)

A visit is to one example, and gives one crop, or `crops_per_visit`, which are rows that follow one another in the same
batch. Positions, schedule and order count visits; what they call a row is a visit.
Global batch b is the stretch [b B, (b + 1) B) of the rows, the same for every world size
that divides B and any number of threads; rank r of W takes rows [r B / W, (r + 1) B / W) of it.
The position after a batch is one count of examples for each set; a batch may lie across the end of an epoch.

A batch is a dict, in the form the shards hold (the device converts):

    audio  int16 [b, T]        not in sets of text alone
    codes  uint16 [b, K, F]    cqt  float16 [b, F, bins]  (by target name)
    valid  bool [b, F]         False where there is less than a crop, and the row is padded with zeros
    key    list of b str, of the example visited, with +n for its further crops
    row    int64 [b], the row in the global batch
    present/{target}  bool [b, 1], of a target that a set of a mixture lacks: False where the row's set does, whose
                      values are 0

and, where text is asked for, with n tokens in the longest text of this rank's rows, at least 1:

    tokens  int64 [b, n]       tokens_valid  bool [b, n]    False beyond the end of a text; in a row without text
    everywhere
"""

import weakref
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Self

from mert_foundry.pipeline.shards.index import ShardIndex
from mert_foundry.pipeline.shards.reader import ShardReader
from mert_foundry.pipeline.stream.crops import CropRule, crop_frames
from mert_foundry.pipeline.stream.global_batches import GlobalBatches, Mark
from mert_foundry.pipeline.stream.loader import Batch, Loader
from mert_foundry.pipeline.stream.ordered_sets import OrderedSet, allow_open_files, open_caches
from mert_foundry.pipeline.stream.position import MixturePosition, begin, check_same, parse_position
from mert_foundry.pipeline.stream.row_schedule import RowSchedule
from mert_foundry.pipeline.stream.sample_order import Place
from mert_foundry.pipeline.stream.set_mixture import SetMixture, ShardSet
from mert_foundry.pipeline.stream.set_source import OpenSet
from mert_foundry.pipeline.stream.stream_config import StreamConfig


class MixtureStream:
    """This rank's endless batches of a mixture of sets: `for batch, position in stream`; a context manager.

    Args:
        mixture: the sets and their weights.
        split: split to read; each set must have it.
        config: sizes.
        seed: of order and crops.
        rank, world_size: this process among those that share each global batch.
        position: where to go on, as a former stream gave it; any world size, batch size and number
            of threads may follow it, and other weights or further sets, which hold from there on.
        with_text: whether batches have the tokens of the text.

    Raises:
        ValueError: a batch size the world size does not divide, a position of other sets only, of another
            split, seed, window or order version, or a cache that is too small (naming both values); when text is asked
            for, sets of different tokenizers or without any.

    Iterating raises what the reader raises, naming shard and key, and closes the stream.
    """

    def __init__(
        self,
        mixture: SetMixture,
        split: str,
        config: StreamConfig,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        position: dict | None = None,
        with_text: bool = False,
    ) -> None:
        visits = _rank_visits(config, rank, world_size)
        parts = [OrderedSet(each, split, seed, config.shuffle_window) for each in mixture.sets]
        weights = mixture.weights
        start = begin(split, seed, config.shuffle_window, weights)
        self._start = start if position is None else _go_on(start, position, parts)
        self._digests = list(weights)
        allow_open_files(parts, config.shuffle_window)
        mark = _mark_at(self._start, parts)
        schedule = RowSchedule(list(weights.values()))
        caches = []
        for cache in open_caches(parts, schedule, config, mark):
            caches.append(cache)
            if cache:
                weakref.finalize(self, cache.close)  # its threads know nothing of this stream
        opened = [part.open(config, cache) for part, cache in zip(parts, caches)]
        self._sources = [
            part.source(number, each, config, mark.bad_shards[number], warns=rank == 0)
            for number, (part, each) in enumerate(zip(parts, opened))
        ]
        rule = CropRule(crop_frames(config.crop_samples), config.crops_per_visit, seed)
        self._loader = Loader(opened, mixture, rule, config.threads, config.prefetch, with_text)
        batches = GlobalBatches(self._sources, schedule, self._start.phases[-1].rows, config.visits)
        self._batches = self._loader.batches(batches.after(mark, visits))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Batch, dict]:
        try:
            batch, mark = next(self._batches)
        except StopIteration:
            raise RuntimeError("this stream is closed") from None
        except BaseException:
            self.close()
            raise
        places = {}
        for digest, source, consumed, bad in zip(self._digests, self._sources, mark.consumed, mark.bad_shards):
            source.close_windows(consumed)
            places[digest] = source.position(consumed, bad)
        changes = {"rows": mark.rows, "sets": {**self._start.sets, **places}}
        return batch, self._start.model_copy(update=changes).document()

    def close(self) -> None:
        """End the threads; what was read ahead is dropped."""
        self._batches.close()
        self._loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BatchStream(MixtureStream):
    """This rank's endless batches of one set: its folder and its index, as `load_index` gives it.

    The rest is as in `MixtureStream`.
    """

    def __init__(
        self,
        folder: str,
        index: ShardIndex,
        split: str,
        config: StreamConfig,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        position: dict | None = None,
        with_text: bool = False,
    ) -> None:
        mixture = SetMixture([ShardSet(folder, index)])
        super().__init__(mixture, split, config, seed, rank, world_size, position, with_text)


def _go_on(start: MixturePosition, position: dict, parts: Sequence[OrderedSet]) -> MixturePosition:
    """A stored position, from which on the weights of `start` hold. Raises ValueError when it does not fit."""
    before = parse_position(position, {part.digest: part.order.epoch_size for part in parts})
    check_same(before, start)
    return before.enter_phase(start.phases[-1].weights)


def _mark_at(position: MixturePosition, parts: Sequence[OrderedSet]) -> Mark:
    """The same place as the plans of batches have it."""
    places = [position.sets[part.digest] for part in parts]
    consumed = [place.consumed(part.order.epoch_size) for part, place in zip(parts, places)]
    return Mark(position.rows, tuple(consumed), tuple(place.bad_shards for place in places))


def validation_batches(
    folder: str,
    index: ShardIndex,
    split: str,
    config: StreamConfig,
    rank: int = 0,
    world_size: int = 1,
    mixture: SetMixture | None = None,
    with_text: bool = False,
) -> Iterator[Batch]:
    """One pass over a split in the order of its shards, centre crops, every example once; with the targets of
    `mixture`, if given.

    Global batches are cut and shared as in `BatchStream`; the last may be smaller, so a rank may
    get a smaller last batch, or one batch less than another: sum over ranks, do not pair batches.
    """
    shards = index.shards(split)
    rows = _rank_rows(config.batch_size, rank, world_size)
    places = (Place(0, shard, number) for shard, entry in enumerate(shards) for number in range(entry.nsamples))
    global_batches = iter(lambda: list(islice(places, config.batch_size)), [])
    shares = (batch[rows.start : rows.stop] for batch in global_batches)
    plans = ((None, rows[: len(share)], share) for share in shares if share)
    reader = ShardReader(folder, index, shards, patience=config.patience)
    opened = OpenSet(folder, index.targets, index.segment_frames, reader)
    mixture = mixture or SetMixture([ShardSet(folder, index)])
    rule = CropRule(crop_frames(config.crop_samples))
    loader = Loader([opened], mixture, rule, config.threads, config.prefetch, with_text)
    try:
        for batch, _ in loader.batches(plans):
            yield batch
    finally:
        loader.close()


def _rank_visits(config: StreamConfig, rank: int, world_size: int) -> range:
    """The visits of a global batch that belong to `rank`."""
    rows = _rank_rows(config.batch_size, rank, world_size)
    if len(rows) % config.crops_per_visit:
        raise ValueError(
            f"batch size {config.batch_size} gives each of {world_size} ranks {len(rows)} rows, no multiple of"
            f" crops_per_visit {config.crops_per_visit}"
        )
    return range(rows.start // config.crops_per_visit, rows.stop // config.crops_per_visit)


def _rank_rows(batch_size: int, rank: int, world_size: int) -> range:
    """The rows of a global batch that belong to `rank`."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not within a world of {world_size}")
    share, remainder = divmod(batch_size, world_size)
    if remainder:
        raise ValueError(f"batch size {batch_size} is not a multiple of the world size {world_size}")
    return range(rank * share, (rank + 1) * share)
