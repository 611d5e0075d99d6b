"""The folder of a shard cache, which the processes of one machine share, and what each of them needs there.

    {shard}.tar, .json             a shard and its record, whole and verified
    {shard}.kept, .json            the same from an earlier time when processes were at work here: to be verified again
    {shard}.bad                    why the shard is corrupt in the store, as found since the first of them started
    .{shard}.{owner}.tmp           being fetched by a process, at its full size from the start
    .{owner}.lock, .{owner}.needs  a process: locked for as long as it lives; what it uses, and how far it is
    .cache_lock                    held for each decision, so that decisions come one after another

{shard} is the name of the shard, then 16 hexadecimal digits each of the SHA-256 of its tar and of its record.
Whoever takes a process's lock knows that it has gone, and removes what it left. Other files are not touched.
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

from mert_foundry.pipeline.cache.eviction import Kept, choose_evictions
from mert_foundry.pipeline.cache.stall import Progress
from mert_foundry.pipeline.storage.documents import Document, json_bytes, parse_model

NAME = r"([a-z][a-z0-9]*-[0-9]{6}-[0-9a-f]{16}-[0-9a-f]{16})"
SHARD = re.compile(NAME + r"\.(tar|kept|json|bad)")
PARTIAL = re.compile(rf"\.{NAME}\.[0-9a-f]{{32}}\.tmp")
OWNER = re.compile(r"\.([0-9a-f]{32})\.lock")
LOCK_POLL = 0.01  # seconds; a decision takes less


class NotNow(Enum):
    """Why a shard cannot be fetched by this process at this moment."""

    FETCHED = "it was fetched, or is being fetched"
    NO_ROOM = "there is no room"


class Needs(Document):
    """What a process needs of the folder."""

    order: str = Field(description="Names the order in which shards are used; windows of the same order compare")
    window: int = Field(ge=0, description="Number of the earliest window of shards that is at work")
    in_use: list[str] = Field(description="Shards that must stay")


class Claim(NamedTuple):
    """A file that only this process works at until it is published or deleted."""

    path: Path
    is_kept: bool  # it holds what an earlier time left, else nothing yet


class Identity(NamedTuple):
    """A file: its inode, whose number may come again after it is deleted, and when it was last written to (ns)."""

    inode: int
    written: int


NextUse = Callable[[str, int], float]  # the window that needs a shard next, from that window on


class CacheFolder:
    """This process's place in a cache folder.

    Args:
        folder: local; made when it is not there.
        limit: bytes that all tars there may take together.
        needs: what this process needs at first.
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
        """Where the verified tar of a shard is, or would be."""
        return self._folder / f"{shard}.tar"

    def record(self, shard: str) -> Path:
        """Where its record is."""
        return self._folder / f"{shard}.json"

    def fault(self, shard: str) -> str:
        """Why a shard is corrupt in the store; empty when it is not known to be."""
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
        """A file of `size` bytes to fetch a shard to that is needed in `window`; what is needed later makes room.

        Raises OSError when the disk is full.
        """
        partial = self._folder / f".{shard}.{self._owner}.tmp"
        with self._decision():
            if self.tar(shard).exists() or self.fault(shard) or self._is_being_fetched(shard):
                return NotNow.FETCHED
            kept = self._folder / f"{shard}.kept"
            if kept.exists():
                os.replace(kept, partial)
                return Claim(partial, is_kept=True)
            if not self._make_room(size, window, next_use):
                return NotNow.NO_ROOM
            self._allocate(partial, size)
            return Claim(partial, is_kept=False)

    def progress_elsewhere(self, shard: str) -> Progress | None:
        """How far another process has fetched a shard, if one is at it."""
        for name, path in self._partials():
            if name == shard and not path.name.endswith(f".{self._owner}.tmp"):
                try:
                    return Progress(path, path.stat().st_mtime_ns)
                except FileNotFoundError:  # published, or given up
                    return None
        return None

    def shrink(self, next_use: NextUse) -> None:
        """Delete what an earlier, larger limit let in."""
        with self._decision():
            self._make_room(0, -1, next_use)

    def publish(self, shard: str, partial: Path, record: bytes) -> None:
        """Give what was fetched and verified its name. Not synced: the next start verifies it again."""
        with self._decision():
            self._write(self.record(shard), record)
            os.replace(partial, self.tar(shard))

    def identity(self, shard: str) -> Identity | None:
        """Which file the tar of a shard is now; none when there is none."""
        try:
            found = self.tar(shard).stat()
        except FileNotFoundError:
            return None
        return Identity(found.st_ino, found.st_mtime_ns)

    def discard(self, shard: str, identity: Identity) -> bool:
        """Throw a shard away if its tar still is that file; whether it was."""
        with self._decision():
            if self.identity(shard) != identity:
                return False
            self._remove(shard)
            return True

    def mark_corrupt(self, shard: str, fault: str) -> None:
        """Let all processes know that a shard is corrupt in the store."""
        self._write(self._folder / f"{shard}.bad", fault.encode())

    def close(self) -> None:
        """This process needs nothing any more. It may be called again."""
        if not self._alive.is_locked:
            return
        with self._decision():
            self._remove_owner(self._owner)
            self._alive.release()

    def _is_being_fetched(self, shard: str) -> bool:
        """Whether a process that lives fetches a shard; what one has left that was killed goes."""
        if not self._has_partial(shard):
            return False
        self._sweep()
        return self._has_partial(shard)

    def _has_partial(self, shard: str) -> bool:
        return any(name == shard for name, _ in self._partials())

    def _make_room(self, size: int, window: int, next_use: NextUse) -> bool:
        """Delete what is needed later than `window`, until `size` bytes fit; whether they do."""
        others = self._sweep()
        # What the slowest process needs next counts: one that is ahead must not delete what the others still wait for.
        base = min([self._needs.window, *(need.window for need in others if need.order == self._needs.order)])
        kept = {name: Kept(path.stat().st_size, next_use(name, base)) for name, path in self._tars()}
        fetched = sum(path.stat().st_size for _, path in self._partials())
        free = self._limit - fetched - sum(tar.size for tar in kept.values())
        in_use = {name for need in [self._needs, *others] for name in need.in_use}
        evicted = choose_evictions(kept, in_use, free, size, window)
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
        """Remove what processes left that have gone; the needs of the others."""
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
        """As the first process: verify all tars again, and ask the store again for what was corrupt there."""
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
