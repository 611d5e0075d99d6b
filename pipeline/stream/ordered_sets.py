"""The sets of a stream, each with its order, and what they are opened with: readers, caches, files."""

import resource
from collections.abc import Iterator, Sequence

from mert_foundry.pipeline.cache.shard_cache import CacheConfig, ShardCache, check_limit
from mert_foundry.pipeline.cache.shard_uses import ShardUses
from mert_foundry.pipeline.shards.reader import ShardReader
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.stream.bad_shards import BadShards
from mert_foundry.pipeline.stream.global_batches import Mark
from mert_foundry.pipeline.stream.row_schedule import RowSchedule
from mert_foundry.pipeline.stream.sample_order import ORDER_VERSION, SampleOrder
from mert_foundry.pipeline.stream.set_mixture import ShardSet
from mert_foundry.pipeline.stream.set_source import OpenSet, SetSource
from mert_foundry.pipeline.stream.stream_config import StreamConfig

OTHER_FILES = 256  # that a process may have open beside its shards: sockets, libraries, logs


class OrderedSet:
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
        index = self.set.index
        return OpenSet(self.set.folder, index.targets, index.segment_frames, reader, cache)

    def source(
        self, number: int, opened: OpenSet, config: StreamConfig, bad_shards: list[str], warns: bool
    ) -> SetSource:
        """Where its examples come from; with a cache, corrupt shards are passed over if the config says so."""
        skips = config.on_bad_shard == "skip"
        bad = BadShards(self.shards, opened.cache if skips else None, bad_shards, warns)
        return SetSource(number, opened, self.order, bad)


def open_caches(
    parts: Sequence[OrderedSet], schedule: RowSchedule, config: StreamConfig, mark: Mark
) -> Iterator[ShardCache | None]:
    """The cache of each set, already fetching, all in one folder; none for a folder of this machine, which is read in
    place.

    A cache does not know when shards of another set are needed. With room for all, none is evicted for another set;
    with less, two sets would delete each other's read-ahead without end.
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
    # A rank may be a batch ahead of the others, and makes `prefetch` ahead of that. The largest batch to come counts,
    # so that a cache too small for it is refused now, not days later.
    ahead = schedule.most_rows((config.prefetch + 2) * config.most_visits)
    needed = {part.digest: part.order.most_shards(rows) for part, rows in zip(parts, ahead)}
    if len(remote) > 1:
        _check_room_for_all(config.cache, remote)
    check_limit(config.cache, [(part.shards, needed[part.digest]) for part in remote], config.shuffle_window)
    for part, consumed in zip(parts, mark.consumed):
        yield _open_cache(part, config, config.cache, consumed) if part in remote else None


def _check_room_for_all(cache: CacheConfig, remote: Sequence[OrderedSet]) -> None:
    needed = sum(shard.filesize for part in remote for shard in part.shards)
    if needed > cache.bytes:
        raise ValueError(
            f"stream.cache.bytes is {int(cache.bytes)}, but the shards of {len(remote)} sets have {needed} bytes:"
            " several sets of an object store need a cache that holds all of them"
        )


def allow_open_files(parts: Sequence[OrderedSet], window: int) -> None:
    """Let this process open the shards of two windows of each set, and as much again as it may have open beside them.

    Raises ValueError naming both values when the machine does not allow it: else a run would end hours later.
    """
    shards = sum(min(2 * window, len(part.shards)) for part in parts)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = shards + OTHER_FILES
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ValueError(
            f"{len(parts)} sets with stream.shuffle_window {window} can have {shards} shards open at once, and this"
            f" process may open {hard} files (ulimit -n)"
        )
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _open_cache(part: OrderedSet, config: StreamConfig, cache: CacheConfig, consumed: int) -> ShardCache:
    uses, window = ShardUses(part.shards, part.order), part.order.window_of(consumed)
    return ShardCache(part.set.folder, uses, part.order_name, window, cache, config.patience)
