"""Endless batches: examples in their order, read and cropped by threads, each batch with its position.

    places (SampleOrder) -> crop of each -> rows of a batch, filled by threads -> (batch, position)

Global batch b is the stretch [b B, (b + 1) B) of the sample order, the same for every world size
that divides B and any number of threads; rank r of W takes rows [r B / W, (r + 1) B / W) of it.
The position after a batch is one count of examples; a batch may lie across the end of an epoch.

A batch is a dict, in the form the shards hold (the device converts):

    audio  int16 [b, T]        codes  uint16 [b, K, F]    cqt  float16 [b, F, bins]  (by target name)
    valid  bool [b, F]         False where an example shorter than the crop is padded with zeros
    key    list of b str       row    int64 [b], the row in the global batch
"""

import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mert_foundry.pipeline.cache.shard_cache import CacheConfig, ShardCache, check_limit
from mert_foundry.pipeline.cache.shard_uses import ShardUses
from mert_foundry.pipeline.frames import HOP
from mert_foundry.pipeline.shards.index import ShardEntry, ShardIndex
from mert_foundry.pipeline.shards.reader import ShardReader
from mert_foundry.pipeline.shards.record import ExampleEntry
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.documents import parse_values
from mert_foundry.pipeline.stream.batch_arrays import BatchArrays
from mert_foundry.pipeline.stream.crops import Crop, centre_crop, crop_frames, random_crop
from mert_foundry.pipeline.stream.global_batches import BadShards, GlobalBatches
from mert_foundry.pipeline.stream.sample_order import ORDER_VERSION, Place, SampleOrder

Batch = dict[str, torch.Tensor | list[str]]
ROWS_A_TASK = 4  # at most
# Of a shard for one row: another thread or process may have healed it, and one that opened it before may bring the old file back.
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


class StreamPosition(BaseModel):
    """Where a stream is: the examples before (epoch, offset) are consumed, on every rank."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    order_version: int = Field(description="Version of the sample order")
    index_digest: str = Field(description="SHA-256 of index.json")
    split: str = Field(description="Split")
    seed: int = Field(description="Seed of order and crops")
    shuffle_window: int = Field(description="Shards shuffled together")
    epoch: int = Field(ge=0, description="Epochs completed")
    offset: int = Field(ge=0, description="Examples consumed of the current epoch, those passed over included")
    bad_shards: list[str] = Field(default=[], description="Shards passed over so far, since they were corrupt")


class BatchStream:
    """This rank's endless batches: `for batch, position in stream`; a context manager.

    Args:
        folder: shard folder, a local path or fsspec URL.
        index: its index, as `load_index` gives it.
        split: split to read.
        config: sizes.
        seed: of order and crops.
        rank, world_size: this process among those that share each global batch.
        position: where to go on, as a former stream gave it; any world size, batch size and number
            of threads may follow it.

    Raises:
        ValueError: a batch size the world size does not divide, a position of another set,
            split, seed, window or order version, or a cache that is too small (naming both values).

    Iterating raises what the reader raises, naming shard and key, and closes the stream.
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
    ) -> None:
        shards = index.shards(split)
        rows = _rank_rows(config.batch_size, rank, world_size)
        self._order = SampleOrder([shard.nsamples for shard in shards], seed, config.shuffle_window)
        self._start = StreamPosition(
            order_version=ORDER_VERSION,
            index_digest=index.digest(),
            split=split,
            seed=seed,
            shuffle_window=config.shuffle_window,
            epoch=0,
            offset=0,
        )
        before = self._parse(position) if position is not None else self._start
        consumed = before.epoch * self._order.epoch_size + before.offset
        frames = crop_frames(config.crop_samples)
        self._cache = self._open_cache(folder, shards, config, consumed)
        find_copy = self._cache.wait_for if self._cache else None
        # Around the border of two windows, shards of both are read.
        reader = ShardReader(folder, index, shards, 2 * config.shuffle_window, config.patience, find_copy)
        crop = partial(_random_crop_of, seed, frames)
        self._loader = _Loader(reader, index, frames, config, crop, self._cache)
        batches = GlobalBatches(self._order, config.batch_size, self._cache)
        skips = config.on_bad_shard == "skip"
        bad = BadShards(shards, self._cache if skips else None, before.bad_shards, warns=rank == 0)
        self._batches = self._loader.batches(batches.after(consumed, rows, bad))

    def __iter__(self) -> "BatchStream":
        return self

    def __next__(self) -> tuple[Batch, dict]:
        try:
            batch, mark = next(self._batches)
        except StopIteration:
            raise RuntimeError("this stream is closed") from None
        except BaseException:
            self.close()
            raise
        if self._cache:
            self._loader.close_windows(self._order.window_of(mark.consumed))
        epoch, offset = divmod(mark.consumed, self._order.epoch_size)
        changes = {"epoch": epoch, "offset": offset, "bad_shards": mark.bad_shards}
        return batch, self._start.model_copy(update=changes).model_dump()

    def close(self) -> None:
        """End the threads; what was read ahead is dropped."""
        self._batches.close()
        self._loader.close()

    def __enter__(self) -> "BatchStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_cache(
        self, folder: str, shards: Sequence[ShardEntry], config: StreamConfig, consumed: int
    ) -> ShardCache | None:
        """The cache, already fetching; none for a folder of this machine, which is read in place. Raises ValueError."""
        if config.cache is None:
            return None
        if files.is_local(folder):
            if config.on_bad_shard == "skip":
                raise ValueError(f"{folder}: stream.on_bad_shard is skip, but shards of this machine are read in place")
            return None
        # A rank may be a batch ahead of the others, and makes `prefetch` ahead of that.
        at_work = self._order.most_shards((config.prefetch + 2) * config.batch_size)
        check_limit(config.cache, shards, at_work, config.shuffle_window)
        start = self._start
        name = f"{start.index_digest} {start.split} {start.order_version} {start.seed} {start.shuffle_window}"
        uses, window = ShardUses(shards, self._order), self._order.window_of(consumed)
        cache = ShardCache(folder, uses, name, window, config.cache, config.patience)
        weakref.finalize(self, cache.close)  # its threads know nothing of this stream
        return cache

    def _parse(self, position: dict) -> StreamPosition:
        """A position that must belong to this stream."""
        given = parse_values("stream position", position, StreamPosition)
        for field in ("order_version", "index_digest", "split", "seed", "shuffle_window"):
            theirs, ours = getattr(given, field), getattr(self._start, field)
            if theirs != ours:
                raise ValueError(f"stream position: {field} {theirs} does not fit this stream's {ours}")
        if given.offset >= self._order.epoch_size:
            raise ValueError(f"stream position: offset {given.offset} in an epoch of {self._order.epoch_size} examples")
        return given


def validation_batches(
    folder: str, index: ShardIndex, split: str, config: StreamConfig, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """One pass over a split in the order of its shards, centre crops, every example once.

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
    reader = ShardReader(folder, index, shards, patience=config.patience)
    loader = _Loader(reader, index, frames, config, lambda _, entry: centre_crop(entry.num_frames, frames))
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


class _Loader:
    """Fills batches in threads, in order, `prefetch` ahead of the consumer."""

    def __init__(
        self,
        reader: ShardReader,
        index: ShardIndex,
        frames: int,
        config: StreamConfig,
        crop: CropRule,
        cache: ShardCache | None = None,
    ) -> None:
        self._reader = reader
        self._cache = cache
        self._specs = index.targets
        self._frames = frames
        self._crop = crop
        self._arrays = BatchArrays(
            {spec.name: (spec.shape(frames), spec.dtype) for spec in index.targets}
            | {"audio": ((HOP * frames,), "int16"), "valid": ((frames,), "bool")}
        )
        self._prefetch = config.prefetch
        self._thread_count = config.threads
        self._threads = ThreadPoolExecutor(config.threads, thread_name_prefix="batch_stream")

    def batches(self, plans: Iterable[tuple[Tag, range, list[Place]]]) -> Generator[tuple[Batch, Tag], None, None]:
        """For each plan (tag, rows in the global batch, places to fill them from): its batch and tag."""
        pending: deque[tuple[Tag, range, dict[str, np.ndarray], list[Future[list[str]]]]] = deque()
        for tag, rows, places in plans:
            arrays = self._arrays.take(len(rows))
            pending.append((tag, rows, arrays, self._submit(arrays, places)))
            if len(pending) > self._prefetch:
                yield _finish(*pending.popleft())
        while pending:
            yield _finish(*pending.popleft())

    def close_windows(self, window: int) -> None:
        """Close the files of all windows of shards before this one, then let the cache delete their copies."""
        assert self._cache is not None, "without copies there is nothing to delete"
        self._reader.keep_only(self._cache.open_shards(window))
        self._cache.close_windows(window)

    def close(self) -> None:
        if self._cache:
            self._cache.stop_waiting()
        self._reader.stop_waiting()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._reader.close()
        if self._cache:
            self._cache.close()

    def _submit(self, arrays: dict[str, np.ndarray], places: list[Place]) -> list[Future[list[str]]]:
        """Have threads fill a batch, several rows a task, as handing over a task costs as much as filling a row's codes."""
        rows = min(ROWS_A_TASK, max(1, len(places) * self._prefetch // self._thread_count))
        return [
            self._threads.submit(self._fill, arrays, start, places[start : start + rows])
            for start in range(0, len(places), rows)
        ]

    def _fill(self, arrays: dict[str, np.ndarray], start: int, places: list[Place]) -> list[str]:
        """Fill the rows of a batch from `start` on; returns the examples' keys."""
        return [self._fill_sound_row(arrays, start + number, place) for number, place in enumerate(places)]

    def _fill_sound_row(self, arrays: dict[str, np.ndarray], slot: int, place: Place) -> str:
        """Fill a row, from a new copy of the shard if the one at hand turns out to be damaged."""
        for _ in range(REOPENINGS):
            try:
                return self._fill_row(arrays, slot, place)
            except (OSError, ValueError):
                if self._cache is None or not self._cache.discard_damaged(place.shard):
                    raise
            self._reader.close_shard(place.shard)
        return self._fill_row(arrays, slot, place)

    def _fill_row(self, arrays: dict[str, np.ndarray], slot: int, place: Place) -> str:
        """Read one row, right into the batch; what is beyond a short example is zero."""
        entry = self._reader.entries(place.shard)[place.example]
        crop = self._crop(place.epoch, entry)
        row = {name: array[slot] for name, array in arrays.items()}
        if crop.num_frames < self._frames:
            for array in row.values():
                array[:] = 0
        row["valid"][: crop.num_frames] = True
        out = {spec.name: _first_frames(row[spec.name], spec, crop.num_frames) for spec in self._specs}
        out["audio"] = row["audio"][: HOP * crop.num_frames]
        self._reader.read(place.shard, place.example, *crop, out)
        return entry.key


def _first_frames(target: np.ndarray, spec: TargetSpec, count: int) -> np.ndarray:
    return target[:count] if spec.frame_axis == 0 else target[:, :count]


def _finish(
    tag: Tag, rows: range, arrays: dict[str, np.ndarray], futures: list[Future[list[str]]]
) -> tuple[Batch, Tag]:
    keys = [key for future in futures for key in future.result()]
    batch: Batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {**batch, "row": torch.arange(rows.start, rows.stop), "key": keys}, tag
