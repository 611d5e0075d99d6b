"""The shards of an object store that this process reads: threads fetch them ahead of their use, readers wait for them.

    open windows and the next ones -> threads verify the copy on disk, else fetch -> folder -> readers wait for a shard

A window is open while its shards are read. The processes of one machine use the shards in the same order, so what one
of them fetches serves all.
"""

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ByteSize, ConfigDict, Field

from mert_foundry.pipeline.cache.cache_folder import CacheFolder, Needs, NotNow
from mert_foundry.pipeline.cache.shard_fetcher import ShardFetcher, find_copy_fault
from mert_foundry.pipeline.cache.shard_uses import ShardUses
from mert_foundry.pipeline.cache.stall import Stall
from mert_foundry.pipeline.shards.index import ShardEntry
from mert_foundry.pipeline.storage import files

READ_AHEAD = 2  # windows beyond the open ones
SHARDS_AT_ONCE = 2  # fetched by one process
POLL = 0.1  # seconds, to see what other processes have done
# Seconds that a needed shard waits for room: processes of two runs could keep each other waiting for ever.
ROOM_PATIENCE = 600.0


class CacheConfig(BaseModel):
    """Where shards of an object store are kept for a while."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = Field(min_length=1, description="Folder on a disk of this machine, shared by the ranks there")
    bytes: ByteSize = Field(gt=0, description="What tars may take there, such as 500GB; records come on top, under 1 %")


def check_limit(config: CacheConfig, sets: Sequence[tuple[Sequence[ShardEntry], int]], window: int) -> None:
    """Raise ValueError naming both values when the shards at work can be larger than the limit.

    `sets`: the shards of each set, and how many of them may be at work at once.
    """
    sizes = [size for shards, most in sets for size in sorted((each.filesize for each in shards), reverse=True)[:most]]
    if sum(sizes) > config.bytes:
        raise ValueError(
            f"stream.cache.bytes is {int(config.bytes)}, but {sum(sizes)} bytes are needed: with a shuffle window of"
            f" {window} shards and the batches made ahead, {len(sizes)} shards can be at work at once"
        )


class ShardCache:
    """Fetches shards ahead, in threads, until it is closed.

    Args:
        source: shard folder in an object store, an fsspec URL.
        uses: the shards and the order in which they are used.
        order: names that order; processes that give the same name use the same shards in the same order.
        window: at which this process begins.
        config: folder and limit.
        patience: seconds that the store may be out of reach.
    """

    def __init__(
        self, source: str, uses: ShardUses, order: str, window: int, config: CacheConfig, patience: float
    ) -> None:
        self._uses = uses
        self._windows = range(window, window + 1)  # the open ones
        needs = Needs(order=order, window=window, in_use=sorted(uses.names(self._windows)))
        self._folder = CacheFolder(files.local_path(config.folder), config.bytes, needs)
        self._folder.shrink(uses.next_use)
        self._fetcher = ShardFetcher(source, self._folder, patience)
        self._changed = threading.Condition()
        self._failures: dict[int, Exception] = {}  # by shard
        self._without_room: dict[int, float] = {}  # since when
        self._disk_error: Exception | None = None  # that keeps threads from looking for shards
        self._workers = [threading.Thread(target=self._work, daemon=True) for _ in range(SHARDS_AT_ONCE)]
        for worker in self._workers:
            worker.start()

    def open_windows(self, window: int) -> None:
        """Open the windows up to this one."""
        if window >= self._windows.stop:
            self._set_windows(range(self._windows.start, window + 1))

    def open_shards(self, window: int) -> set[int]:
        """The shards of open windows, from a window on."""
        return self._uses.numbers(range(window, self._windows.stop))

    def close_windows(self, window: int) -> None:
        """Close the windows before this one, whose files no reader has open: their shards may be deleted."""
        if window > self._windows.start:
            self._set_windows(range(window, max(window + 1, self._windows.stop)))

    def wait_for(self, shard: int) -> tuple[Path, Path]:
        """Tar and record of a shard of an open window, once they are on this machine.

        Raises:
            OSError: the store, or the disk, failed, or another process that fetches the shard has stopped.
            ValueError: the shard is corrupt in the store; names it and both values.
        """
        name = self._uses.name(shard)
        stall = Stall(self._uses.shards[shard].url, self._fetcher.patience)
        with self._changed:
            self._failures.pop(shard, None)  # it is tried again, since it is needed now
            self._disk_error = None
            self._changed.notify_all()
            while not self._folder.tar(name).exists():
                self._raise_failure(shard, name)
                self._look_elsewhere(shard, name, stall)
                self._changed.wait(POLL)
        return self._folder.tar(name), self._folder.record(name)

    def find_fault(self, shard: int) -> str:
        """Why a shard of an open window is corrupt in the store; empty if it is not.

        Waits for it. Raises OSError as `wait_for`.
        """
        try:
            self.wait_for(shard)
        except ValueError as error:
            return str(error)
        return ""

    def discard_damaged(self, shard: int) -> bool:
        """Throw away the copy of a shard if it is damaged; whether a reader that met damage may open the shard anew.

        Another reader may have done so before: then the copy is sound, while the file of this reader is the deleted
        one.
        """
        name = self._uses.name(shard)
        tar = self._folder.tar(name)
        identity = self._folder.identity(name)  # before it is read: what comes meanwhile is not thrown away
        if identity and (fault := find_copy_fault(self._uses.shards[shard], tar, self._folder.record(name))):
            if self._folder.discard(name, identity):
                logging.getLogger(__name__).warning(f"{tar}: damaged on this disk, fetched anew: {fault}")
        if self._fetcher.has_ended:
            return False
        return tar.exists() or not (shard in self._failures or self._folder.fault(name))

    def stop_waiting(self) -> None:
        """Let nobody wait any more, in whatever thread."""
        self._fetcher.stop_waiting()
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """End the threads. What is in the folder stays there for the next process."""
        self.stop_waiting()
        for worker in self._workers:
            worker.join()
        self._fetcher.close()
        self._folder.close()

    def _set_windows(self, windows: range) -> None:
        with self._changed:
            self._windows = windows
            self._folder.need(windows.start, self._uses.names(windows))
            self._changed.notify_all()

    def _raise_failure(self, shard: int, name: str) -> None:
        """Raise what keeps a shard from coming."""
        url = self._uses.shards[shard].url
        if fault := self._folder.fault(name):
            raise ValueError(f"{url}: corrupt in the store: {fault}")
        if shard in self._failures:
            raise self._failures[shard]
        if self._fetcher.has_ended:
            raise OSError(f"{url}: the stream is closed")
        if self._disk_error is not None:
            raise OSError(f"{url}: the cache folder failed: {self._disk_error}") from self._disk_error
        if not any(worker.is_alive() for worker in self._workers):
            raise OSError(f"{url}: the threads that fetch shards have ended")
        if time.monotonic() - self._without_room.get(shard, time.monotonic()) > ROOM_PATIENCE:
            raise OSError(f"{url}: no room for {ROOM_PATIENCE:.0f} s in the cache: other processes use all of it")

    def _look_elsewhere(self, shard: int, name: str, stall: Stall) -> None:
        """Raise OSError, and keep it, when another process that fetches a shard has stopped."""
        try:
            stall.look(self._folder.progress_elsewhere(name))
        except OSError as error:
            self._failures[shard] = error
            raise

    def _work(self) -> None:
        while not self._fetcher.has_ended:
            try:
                has_advanced = self._advance()
            except OSError as error:  # of the disk; it may pass
                self._tell_of_disk(error)
                has_advanced = False
            if not has_advanced:
                with self._changed:
                    self._changed.wait(POLL)

    def _tell_of_disk(self, error: Exception) -> None:
        """Keep an error for those who wait, and say once that it is there."""
        with self._changed:
            if self._disk_error is None:
                logging.getLogger(__name__).warning(f"the cache folder failed, tried again: {error}")
            self._disk_error = error

    def _advance(self) -> bool:
        """Bring the first shard here that is not, and that can be had now; whether there was one."""
        windows = self._windows
        for window, shard in self._uses.in_order(range(windows.start, windows.stop + READ_AHEAD)):
            if shard in self._failures:
                continue
            found = self._try(window, shard, self._uses.name(shard))
            if found is not NotNow.FETCHED:
                return found is None
        return False

    def _try(self, window: int, shard: int, name: str) -> NotNow | None:
        """Bring a shard here, or keep the reason why not for who waits for it; else why this is not the moment."""
        entry = self._uses.shards[shard]
        try:
            if self._folder.tar(name).exists() or self._folder.fault(name):
                return NotNow.FETCHED
            claim = self._folder.claim(name, entry.filesize, window, self._uses.next_use)
            if claim is NotNow.NO_ROOM:
                self._without_room.setdefault(shard, time.monotonic())
            if isinstance(claim, NotNow):
                return claim
            self._without_room.pop(shard, None)
            self._fetcher.obtain(name, entry, claim)
        except Exception as error:
            with self._changed:
                self._failures[shard] = error
        with self._changed:
            self._changed.notify_all()
        return None
