"""Endless batches: examples in their order, read and cropped by threads, each batch with its position.

    set of each row (RowSchedule) -> its next place (SampleOrder) -> crop of each -> rows of a batch, filled by threads -> (batch, position)

Global batch b is the stretch [b B, (b + 1) B) of the rows, the same for every world size
that divides B and any number of threads; rank r of W takes rows [r B / W, (r + 1) B / W) of it.
The position after a batch is one count of examples for each set; a batch may lie across the end of an epoch.

A batch is a dict, in the form the shards hold (the device converts):

    audio  int16 [b, T]        codes  uint16 [b, K, F]    cqt  float16 [b, F, bins]  (by target name)
    valid  bool [b, F]         False where an example shorter than the crop is padded with zeros
    key    list of b str       row    int64 [b], the row in the global batch
    present/{target}  bool [b, 1], of a target that a set of a mixture lacks: False where the row's set does, whose values are 0

and, where text is asked for, with n tokens in the longest text of this rank's rows, at least 1:

    tokens  int64 [b, n]       tokens_valid  bool [b, n]    False beyond the end of a text; in a row without text everywhere
"""

import resource
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Literal, NamedTuple, Self, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mert_foundry.pipeline.cache.shard_cache import CacheConfig, ShardCache, check_limit
from mert_foundry.pipeline.cache.shard_uses import ShardUses
from mert_foundry.pipeline.frames import HOP
from mert_foundry.pipeline.shards.index import ShardIndex
from mert_foundry.pipeline.shards.reader import ShardReader
from mert_foundry.pipeline.shards.record import ExampleEntry
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.stream.bad_shards import BadShards
from mert_foundry.pipeline.stream.batch_arrays import BatchArrays
from mert_foundry.pipeline.stream.crops import Crop, centre_crop, crop_frames, random_crop
from mert_foundry.pipeline.stream.global_batches import GlobalBatches, Mark
from mert_foundry.pipeline.stream.position import MixturePosition, begin, check_same, parse_position
from mert_foundry.pipeline.stream.row_schedule import RowSchedule
from mert_foundry.pipeline.stream.sample_order import ORDER_VERSION, Place, SampleOrder
from mert_foundry.pipeline.stream.set_mixture import SetMixture, ShardSet
from mert_foundry.pipeline.stream.set_source import OpenSet, SetSource

Batch = dict[str, torch.Tensor | list[str]]
PRESENT = "present/"  # before a target's name
ROWS_A_TASK = 4  # at most
OTHER_FILES = 256  # that a process may have open beside its shards: sockets, libraries, logs
# How often a row reopens its shard: another reader may put the damaged copy back.
REOPENINGS = 3

CropRule = Callable[[int, ExampleEntry], Crop]  # of the epoch and the example
Tag = TypeVar("Tag")


class StreamConfig(BaseModel):
    """How a stream reads; only `shuffle_window` must stay the same when a run is resumed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(gt=0, description="Examples in a global batch, over all ranks")
    crop_samples: int = Field(default=120_000, description="Samples taken of an example, a multiple of 320")
    shuffle_window: int = Field(
        default=16, ge=1, le=256, description="Shards whose examples are shuffled together, and kept open"
    )
    threads: int = Field(default=4, ge=1, description="Threads that read and decode")
    prefetch: int = Field(default=4, ge=1, description="Batches made ahead")
    patience: float = Field(
        default=600.0,
        ge=0.0,
        allow_inf_nan=False,
        description="Seconds that an object store may be out of reach, in one go, before the run ends",
    )
    cache: CacheConfig | None = Field(
        default=None, description="Where whole shards of an object store are kept for training; null: ranges are read"
    )
    on_bad_shard: Literal["stop", "skip"] = Field(
        default="stop",
        description="stop: a shard that is corrupt in the object store ends the run; skip, with stream.cache and on one node: it is left"
        " out and listed",
    )

    @field_validator("crop_samples")
    @classmethod
    def _on_the_grid(cls, value: int) -> int:
        crop_frames(value)
        return value

    @model_validator(mode="after")
    def _whole_shards(self) -> "StreamConfig":
        if self.on_bad_shard == "skip" and self.cache is None:
            raise ValueError(
                "on_bad_shard: skip needs cache: only there are whole shards verified before they are used"
            )
        return self


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
            split, seed, window or order version, or a cache that is too small (naming both values); when text is asked for,
            sets of different tokenizers or without any.

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
        rows = _rank_rows(config.batch_size, rank, world_size)
        parts = [_OrderedSet(each, split, seed, config.shuffle_window) for each in mixture.sets]
        weights = mixture.weights
        start = begin(split, seed, config.shuffle_window, weights)
        self._start = start if position is None else _go_on(start, position, parts)
        self._digests = list(weights)
        _allow_open_files(parts, config.shuffle_window)
        mark = _mark_at(self._start, parts)
        schedule = RowSchedule(list(weights.values()))
        caches = []
        for cache in _open_caches(parts, schedule, config, mark):
            caches.append(cache)
            if cache:
                weakref.finalize(self, cache.close)  # its threads know nothing of this stream
        opened = [part.open(config, cache) for part, cache in zip(parts, caches)]
        self._sources = [
            part.source(number, each, config, mark.bad_shards[number], warns=rank == 0)
            for number, (part, each) in enumerate(zip(parts, opened))
        ]
        frames = crop_frames(config.crop_samples)
        self._loader = _Loader(opened, mixture, frames, config, partial(_random_crop_of, seed, frames), with_text)
        batches = GlobalBatches(self._sources, schedule, self._start.phases[-1].rows, config.batch_size)
        self._batches = self._loader.batches(batches.after(mark, rows))

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
    """This rank's endless batches of one set: its folder and its index, as `load_index` gives it. The rest is as in `MixtureStream`."""

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


class _OrderedSet:
    """The shards of one set in a split, and their order."""

    def __init__(self, shard_set: ShardSet, split: str, seed: int, window: int) -> None:
        self.set = shard_set
        self.digest = shard_set.digest
        self.shards = shard_set.index.shards(split)
        self.order = SampleOrder([shard.nsamples for shard in self.shards], seed, window)
        self.order_name = f"{self.digest} {split} {ORDER_VERSION} {seed} {window}"

    def open(self, config: StreamConfig, cache: ShardCache | None) -> OpenSet:
        """Its reader, from the cache if there is one."""
        find_copy = cache.wait_for if cache else None
        # Around the border of two windows, shards of both are read.
        reader = ShardReader(
            self.set.folder, self.set.index, self.shards, 2 * config.shuffle_window, config.patience, find_copy
        )
        return OpenSet(self.set.folder, self.set.index.targets, reader, cache)

    def source(
        self, number: int, opened: OpenSet, config: StreamConfig, bad_shards: list[str], warns: bool
    ) -> SetSource:
        """Where its examples come from; with a cache, corrupt shards are passed over if the config says so."""
        skips = config.on_bad_shard == "skip"
        bad = BadShards(self.shards, opened.cache if skips else None, bad_shards, warns)
        return SetSource(number, opened, self.order, bad)


def _go_on(start: MixturePosition, position: dict, parts: Sequence[_OrderedSet]) -> MixturePosition:
    """A stored position, from which on the weights of `start` hold. Raises ValueError when it does not fit."""
    before = parse_position(position, {part.digest: part.order.epoch_size for part in parts})
    check_same(before, start)
    return before.enter_phase(start.phases[-1].weights)


def _mark_at(position: MixturePosition, parts: Sequence[_OrderedSet]) -> Mark:
    """The same place as the plans of batches have it."""
    places = [position.sets[part.digest] for part in parts]
    consumed = [place.consumed(part.order.epoch_size) for part, place in zip(parts, places)]
    return Mark(position.rows, tuple(consumed), tuple(place.bad_shards for place in places))


def _open_caches(
    parts: Sequence[_OrderedSet], schedule: RowSchedule, config: StreamConfig, mark: Mark
) -> Iterator[ShardCache | None]:
    """The cache of each set, already fetching, all in one folder; none for a folder of this machine, which is read in place.

    A cache does not know when shards of another set are needed. With room for all, none is evicted for another set; with less, two
    sets would delete each other's read-ahead without end.
    Raises ValueError.
    """
    if config.cache is None:
        yield from [None] * len(parts)
        return
    remote = [part for part in parts if not files.is_local(part.set.folder)]
    for part in parts:
        if part not in remote and config.on_bad_shard == "skip":
            raise ValueError(
                f"{part.set.folder}: stream.on_bad_shard is skip, but shards of this machine are read in place"
            )
    # A rank may be a batch ahead of the others, and makes `prefetch` ahead of that.
    ahead = schedule.most_rows((config.prefetch + 2) * config.batch_size)
    needed = {part.digest: part.order.most_shards(rows) for part, rows in zip(parts, ahead)}
    if len(remote) > 1:
        _check_room_for_all(config.cache, remote)
    check_limit(config.cache, [(part.shards, needed[part.digest]) for part in remote], config.shuffle_window)
    for part, consumed in zip(parts, mark.consumed):
        yield _open_cache(part, config, config.cache, consumed) if part in remote else None


def _check_room_for_all(cache: CacheConfig, remote: Sequence[_OrderedSet]) -> None:
    needed = sum(shard.filesize for part in remote for shard in part.shards)
    if needed > cache.bytes:
        raise ValueError(
            f"stream.cache.bytes is {int(cache.bytes)}, but the shards of {len(remote)} sets have {needed} bytes:"
            " several sets of an object store need a cache that holds all of them"
        )


def _allow_open_files(parts: Sequence[_OrderedSet], window: int) -> None:
    """Let this process open the shards of two windows of each set, and as much again as it may have open beside them.

    Raises ValueError naming both values when the machine does not allow it: else a run would end hours later.
    """
    shards = sum(min(2 * window, len(part.shards)) for part in parts)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = shards + OTHER_FILES
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ValueError(
            f"{len(parts)} sets with stream.shuffle_window {window} can have {shards} shards open at once, and this process may"
            f" open {hard} files (ulimit -n)"
        )
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _open_cache(part: _OrderedSet, config: StreamConfig, cache: CacheConfig, consumed: int) -> ShardCache:
    uses, window = ShardUses(part.shards, part.order), part.order.window_of(consumed)
    return ShardCache(part.set.folder, uses, part.order_name, window, cache, config.patience)


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
    """One pass over a split in the order of its shards, centre crops, every example once; with the targets of `mixture`, if given.

    Global batches are cut and shared as in `BatchStream`; the last may be smaller, so a rank may
    get a smaller last batch, or one batch less than another: sum over ranks, do not pair batches.
    """
    shards = index.shards(split)
    rows = _rank_rows(config.batch_size, rank, world_size)
    frames = crop_frames(config.crop_samples)
    places = (Place(0, shard, number) for shard, entry in enumerate(shards) for number in range(entry.nsamples))
    global_batches = iter(lambda: list(islice(places, config.batch_size)), [])
    shares = (batch[rows.start : rows.stop] for batch in global_batches)
    plans = ((None, rows[: len(share)], share) for share in shares if share)
    opened = OpenSet(folder, index.targets, ShardReader(folder, index, shards, patience=config.patience))
    mixture = mixture or SetMixture([ShardSet(folder, index)])
    loader = _Loader(
        [opened], mixture, frames, config, lambda _, entry: centre_crop(entry.num_frames, frames), with_text
    )
    try:
        for batch, _ in loader.batches(plans):
            yield batch
    finally:
        loader.close()


def _random_crop_of(seed: int, frames: int, epoch: int, entry: ExampleEntry) -> Crop:
    return random_crop(seed, epoch, entry.key, entry.num_frames, frames)


def _rank_rows(batch_size: int, rank: int, world_size: int) -> range:
    """The rows of a global batch that belong to `rank`."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not within a world of {world_size}")
    share, remainder = divmod(batch_size, world_size)
    if remainder:
        raise ValueError(f"batch size {batch_size} is not a multiple of the world size {world_size}")
    return range(rank * share, (rank + 1) * share)


class _FilledRow(NamedTuple):
    """What a row of a batch has beside its place in the arrays: `tokens` `[n]` as stored, where its set has text and it is asked for."""

    key: str
    tokens: np.ndarray | None


class _Loader:
    """Fills batches in threads, in order, `prefetch` ahead of the consumer."""

    def __init__(
        self,
        sets: Sequence[OpenSet],
        mixture: SetMixture,
        frames: int,
        config: StreamConfig,
        crop: CropRule,
        with_text: bool = False,
    ) -> None:
        if with_text and mixture.text is None:
            raise ValueError(f"text is asked for, there is none in {', '.join(each.folder for each in mixture.sets)}")
        self._with_text = with_text
        self._sets = sets
        self._partial = [
            (spec.name, PRESENT + spec.name) for spec in mixture.targets if spec.name in mixture.partial_targets
        ]
        self._frames = frames
        self._crop = crop
        self._arrays = BatchArrays(
            {spec.name: (spec.shape(frames), spec.dtype) for spec in mixture.targets}
            | {PRESENT + name: ((1,), "bool") for name in sorted(mixture.partial_targets)}
            | {"audio": ((HOP * frames,), "int16"), "valid": ((frames,), "bool")}
        )
        self._prefetch = config.prefetch
        self._thread_count = config.threads
        self._threads = ThreadPoolExecutor(config.threads, thread_name_prefix="batch_stream")

    def batches(self, plans: Iterable[tuple[Tag, range, list[Place]]]) -> Generator[tuple[Batch, Tag], None, None]:
        """For each plan (tag, rows in the global batch, places to fill them from): its batch and tag."""
        pending: deque[tuple[Tag, range, dict[str, np.ndarray], list[Future[list[_FilledRow]]]]] = deque()
        for tag, rows, places in plans:
            arrays = self._arrays.take(len(rows))
            pending.append((tag, rows, arrays, self._submit(arrays, places)))
            if len(pending) > self._prefetch:
                yield self._finish(*pending.popleft())
        while pending:
            yield self._finish(*pending.popleft())

    def close(self) -> None:
        for opened in self._sets:
            if opened.cache:
                opened.cache.stop_waiting()
            opened.reader.stop_waiting()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for opened in self._sets:
            opened.reader.close()
            if opened.cache:
                opened.cache.close()

    def _submit(self, arrays: dict[str, np.ndarray], places: list[Place]) -> list[Future[list[_FilledRow]]]:
        """Have threads fill a batch, several rows a task, as handing over a task costs as much as filling a row's codes."""
        rows = min(ROWS_A_TASK, max(1, len(places) * self._prefetch // self._thread_count))
        return [
            self._threads.submit(self._fill, arrays, start, places[start : start + rows])
            for start in range(0, len(places), rows)
        ]

    def _fill(self, arrays: dict[str, np.ndarray], start: int, places: list[Place]) -> list[_FilledRow]:
        """Fill the rows of a batch from `start` on; returns what is not in the arrays."""
        return [self._fill_sound_row(arrays, start + number, place) for number, place in enumerate(places)]

    def _fill_sound_row(self, arrays: dict[str, np.ndarray], slot: int, place: Place) -> _FilledRow:
        """Fill a row, from a new copy of the shard if the one at hand turns out to be damaged."""
        opened = self._sets[place.set_number]
        for _ in range(REOPENINGS):
            try:
                return self._fill_row(arrays, slot, place)
            except (OSError, ValueError):
                if opened.cache is None or not opened.cache.discard_damaged(place.shard):
                    raise
            opened.reader.close_shard(place.shard)
        return self._fill_row(arrays, slot, place)

    def _fill_row(self, arrays: dict[str, np.ndarray], slot: int, place: Place) -> _FilledRow:
        """Read one row, right into the batch; what is beyond a short example is zero."""
        opened = self._sets[place.set_number]
        entry = opened.reader.entries(place.shard)[place.example]
        crop = self._crop(place.epoch, entry)
        row = {name: array[slot] for name, array in arrays.items()}
        if crop.num_frames < self._frames:
            for array in row.values():
                array[:] = 0
        row["valid"][: crop.num_frames] = True
        for name, present in self._partial:
            row[present][:] = any(spec.name == name for spec in opened.specs)
            if not row[present]:
                row[name][:] = 0
        out = {spec.name: _first_frames(row[spec.name], spec, crop.num_frames) for spec in opened.specs}
        out["audio"] = row["audio"][: HOP * crop.num_frames]
        clip = opened.reader.read(place.shard, place.example, *crop, out, self._with_text)
        return _FilledRow(entry.key, clip.tokens)

    def _finish(
        self, tag: Tag, rows: range, arrays: dict[str, np.ndarray], futures: list[Future[list[_FilledRow]]]
    ) -> tuple[Batch, Tag]:
        filled = [row for future in futures for row in future.result()]
        batch: Batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        batch |= {"row": torch.arange(rows.start, rows.stop), "key": [row.key for row in filled]}
        return batch | (_pad_tokens(filled) if self._with_text else {}), tag


def _first_frames(target: np.ndarray, spec: TargetSpec, count: int) -> np.ndarray:
    return target[:count] if spec.frame_axis == 0 else target[:, :count]


def _pad_tokens(rows: Sequence[_FilledRow]) -> Batch:
    """The tokens of rows, padded with 0 to the longest of them."""
    longest = max((len(row.tokens) for row in rows if row.tokens is not None), default=0)
    tokens = np.zeros((len(rows), max(1, longest)), np.int64)
    valid = np.zeros(tokens.shape, np.bool_)
    for slot, row in enumerate(rows):
        if row.tokens is not None:
            tokens[slot, : len(row.tokens)] = row.tokens
            valid[slot, : len(row.tokens)] = True
    return {"tokens": torch.from_numpy(tokens), "tokens_valid": torch.from_numpy(valid)}
