"""The folder of a shard cache. The processes of one machine share it.

    {shard}.tar, .json             A shard and its record, complete and verified.
    {shard}.kept, .json            A shard that earlier processes left behind. It must be verified again before it is
                                   used.
    {shard}.bad                    Why the shard is corrupt in the store. The first process to start later deletes it.
    .{shard}.{owner}.tmp           A shard that a process is fetching. The file has its full size from the start.
    .{owner}.lock                  One process, which holds this lock for as long as it lives.
    .{owner}.needs                 The shards that this process uses, and the window of shards that it has reached.
    .cache_lock                    A process holds this lock while it decides what to fetch or delete: one decides at a
                                   time.

{shard} is the name of the shard, then the first 16 hexadecimal digits of the SHA-256 of its tar, then those of its
record. A process that can take another process's lock knows that the other has ended, and removes the files of the
other. Files with other names are never touched.
"""

import os
import re
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout
from pydantic import Field

from mert_foundry.pipeline.cache.eviction import CachedShard, choose_evictions
from mert_foundry.pipeline.cache.stall import Progress
from mert_foundry.pipeline.storage.documents import Document, json_bytes, parse_model

NAME = r"([a-z][a-z0-9]*-[0-9]{6}-[0-9a-f]{16}-[0-9a-f]{16})"
SHARD = re.compile(NAME + r"\.(tar|kept|json|bad)")
PARTIAL = re.compile(rf"\.{NAME}\.[0-9a-f]{{32}}\.tmp")
OWNER = re.compile(r"\.([0-9a-f]{32})\.lock")
LOCK_POLL = 0.01  # seconds; a decision takes less
BEFORE_ALL_WINDOWS = -1  # every shard is needed later


class NotNow(Enum):
    """Why this process cannot fetch a shard at this moment."""

    FETCHED = "a process has fetched it, or is fetching it"
    NO_ROOM = "there is no room"


class Needs(Document):
    """Which shards a process needs in the folder."""

    order: str = Field(
        description="Name of the order in which shards are used; window numbers of one order can be compared"
    )
    window: int = Field(ge=0, description="Number of the earliest window of shards that the process still reads")
    in_use: list[str] = Field(description="Shards that must stay")


class Claim(NamedTuple):
    """A file that this process alone may write, until it publishes or deletes it."""

    path: Path
    is_unverified_copy: bool  # it holds the shard as earlier processes left it; else it is empty


class Identity(NamedTuple):
    """Which file this is.

    An inode's number is used again after the file is deleted, so the time of the last write (ns) belongs to it.
    """

    inode: int
    written: int


NextUse = Callable[[str, int], float]  # the window that needs a shard next, from that window on


class CacheFolder:
    """A cache folder as one process uses it.

    Args:
        folder: local; it is made if there is none.
        limit: the most bytes that all tars in it may take together.
        needs: what this process needs when it starts.
    """

    def __init__(self, folder: Path, limit: int, needs: Needs) -> None:
        self._folder = folder
        self._limit = limit
        self._owner = uuid.uuid4().hex
        self._needs = needs
        folder.mkdir(parents=True, exist_ok=True)
        self._alive = FileLock(self._lock_of(self._owner), thread_local=False, fallback_to_soft=False)
        with self._decision():
            others = self._sweep()
            self._alive.acquire()
            self._write_needs()
            if not others:
                self._require_verification()

    def tar(self, shard: str) -> Path:
        """Location of the verified tar of a shard, whether it is there or not."""
        return self._folder / f"{shard}.tar"

    def record(self, shard: str) -> Path:
        """Location of the record of a shard, whether it is there or not."""
        return self._folder / f"{shard}.json"

    def fault(self, shard: str) -> str:
        """Why a shard is corrupt in the store; empty if nobody has found it corrupt."""
        try:
            return (self._folder / f"{shard}.bad").read_text()
        except FileNotFoundError:
            return ""

    def need(self, window: int, in_use: Collection[str]) -> None:
        """Tell all processes what this one needs from now on."""
        with self._decision():
            self._needs = self._needs.model_copy(update={"window": window, "in_use": sorted(in_use)})
            self._write_needs()

    def claim(self, shard: str, size: int, window: int, next_use: NextUse) -> Claim | NotNow:
        """Claim a file of `size` bytes, to fetch a shard to that is needed in `window`.

        Shards that are needed later make room for it.

        Raises OSError when the disk is full.
        """
        partial = self._folder / f".{shard}.{self._owner}.tmp"
        with self._decision():
            if self.tar(shard).exists() or self.fault(shard) or self._is_being_fetched(shard):
                return NotNow.FETCHED
            unverified = self._folder / f"{shard}.kept"
            if unverified.exists():
                os.replace(unverified, partial)
                return Claim(partial, is_unverified_copy=True)
            if not self._make_room(size, window, next_use):
                return NotNow.NO_ROOM
            self._allocate(partial, size)
            return Claim(partial, is_unverified_copy=False)

    def progress_elsewhere(self, shard: str) -> Progress | None:
        """How far another process has fetched a shard; None if no other process fetches it."""
        for name, path in self._partials():
            if name == shard and not path.name.endswith(f".{self._owner}.tmp"):
                try:
                    return Progress(path, path.stat().st_mtime_ns)
                except FileNotFoundError:  # published, or given up
                    return None
        return None

    def shrink(self, next_use: NextUse) -> None:
        """Delete shards until the rest fits the limit, which may have been larger before."""
        with self._decision():
            self._make_room(0, BEFORE_ALL_WINDOWS, next_use)

    def publish(self, shard: str, partial: Path, record: bytes) -> None:
        """Give a fetched and verified shard its name.

        It is not synced to the disk, since the next start verifies it again.
        """
        with self._decision():
            self._write(self.record(shard), record)
            os.replace(partial, self.tar(shard))

    def identity(self, shard: str) -> Identity | None:
        """Which file the tar of a shard is now; None if there is none."""
        try:
            found = self.tar(shard).stat()
        except FileNotFoundError:
            return None
        return Identity(found.st_ino, found.st_mtime_ns)

    def discard(self, shard: str, identity: Identity) -> bool:
        """Delete a shard if its tar is still that file; returns whether it was."""
        with self._decision():
            if self.identity(shard) != identity:
                return False
            self._remove(shard)
            return True

    def mark_corrupt(self, shard: str, fault: str) -> None:
        """Tell all processes that a shard is corrupt in the store."""
        self._write(self._folder / f"{shard}.bad", fault.encode())

    def close(self) -> None:
        """Say that this process needs nothing any more. Closing again does nothing."""
        if not self._alive.is_locked:
            return
        with self._decision():
            self._remove_owner(self._owner)
            self._alive.release()

    def _is_being_fetched(self, shard: str) -> bool:
        """Whether a living process fetches a shard. Files of processes that were killed are deleted first."""
        if not self._has_partial(shard):
            return False
        self._sweep()
        return self._has_partial(shard)

    def _has_partial(self, shard: str) -> bool:
        return any(name == shard for name, _ in self._partials())

    def _make_room(self, size: int, window: int, next_use: NextUse) -> bool:
        """Delete shards that are needed later than `window` until `size` bytes fit; returns whether they fit."""
        others = self._sweep()
        # The slowest process decides when a shard is needed next: one that is ahead must not delete what others still
        # wait for.
        slowest = min([self._needs.window, *(need.window for need in others if need.order == self._needs.order)])
        cached = {name: CachedShard(path.stat().st_size, next_use(name, slowest)) for name, path in self._tars()}
        fetched = sum(path.stat().st_size for _, path in self._partials())
        free = self._limit - fetched - sum(shard.size for shard in cached.values())
        in_use = {name for need in [self._needs, *others] for name in need.in_use}
        evicted = choose_evictions(cached, in_use, free, size, window)
        for name in evicted or ():
            self._remove(name)
        return evicted is not None

    @contextmanager
    def _decision(self) -> Iterator[None]:
        with FileLock(self._folder / ".cache_lock", fallback_to_soft=False, poll_interval=LOCK_POLL):
            yield

    def _lock_of(self, owner: str) -> Path:
        return self._folder / f".{owner}.lock"

    def _needs_of(self, owner: str) -> Path:
        return self._folder / f".{owner}.needs"

    def _write_needs(self) -> None:
        self._write(self._needs_of(self._owner), json_bytes(self._needs.model_dump()))

    def _write(self, path: Path, content: bytes) -> None:
        temporary = path.with_name(f".{path.name.lstrip('.')}.{self._owner}.new")
        temporary.write_bytes(content)
        os.replace(temporary, path)

    def _tars(self) -> Iterator[tuple[str, Path]]:
        for path in self._folder.iterdir():
            if (found := SHARD.fullmatch(path.name)) and found[2] in ("tar", "kept"):
                yield found[1], path

    def _partials(self) -> Iterator[tuple[str, Path]]:
        for path in self._folder.iterdir():
            if found := PARTIAL.fullmatch(path.name):
                yield found[1], path

    def _allocate(self, partial: Path, size: int) -> None:
        with open(partial, "wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                partial.unlink()
                raise OSError(f"{partial}: {size} bytes do not fit: {error.strerror}") from error

    def _remove(self, shard: str) -> None:
        for suffix in ("tar", "kept", "json"):
            (self._folder / f"{shard}.{suffix}").unlink(missing_ok=True)

    def _sweep(self) -> list[Needs]:
        """Remove the files of processes that have ended; returns the needs of the living ones, without this one."""
        living = []
        for path in list(self._folder.iterdir()):
            found = OWNER.fullmatch(path.name)
            if found is None or found[1] == self._owner:
                continue
            lock = FileLock(path, blocking=False, fallback_to_soft=False)
            try:
                lock.acquire()
            except Timeout:
                needs = self._needs_of(found[1])
                living.append(parse_model(str(needs), needs.read_bytes(), Needs))
                continue
            self._remove_owner(found[1])
            lock.release()
        return living

    def _remove_owner(self, owner: str) -> None:
        for path in list(self._folder.iterdir()):
            if path.name.startswith(".") and path.name.endswith((f".{owner}.tmp", f".{owner}.new")):
                path.unlink(missing_ok=True)
        self._needs_of(owner).unlink(missing_ok=True)
        self._lock_of(owner).unlink(missing_ok=True)

    def _require_verification(self) -> None:
        """Mark all tars as not verified, and forget which shards were corrupt in the store.

        For the first process that starts.
        """
        for path in list(self._folder.iterdir()):
            if not (found := SHARD.fullmatch(path.name)):
                continue
            if found[2] == "tar":
                os.replace(path, path.with_suffix(".kept"))
            if found[2] == "bad":
                path.unlink()
        for path in list(self._folder.iterdir()):
            found = SHARD.fullmatch(path.name)
            if found and found[2] == "json" and not path.with_suffix(".kept").exists():
                path.unlink()
