"""One shard and its record from the store to the folder, verified against the index."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mert_foundry.pipeline.cache.cache_folder import CacheFolder, Claim
from mert_foundry.pipeline.cache.fetch import fetch_object
from mert_foundry.pipeline.shards.index import ShardEntry, find_digest_fault
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.documents import file_sha256
from mert_foundry.pipeline.storage.patience import Patience

RANGES_AT_ONCE = 8
ATTEMPTS = 3  # to fetch a shard whose bytes are not those of the index, before it counts as corrupt in the store


class ShardFetcher:
    """Fetches shards of `source`, a folder in an object store, waiting for it up to `patience` seconds."""

    def __init__(self, source: str, folder: CacheFolder, patience: float) -> None:
        self._source = source
        self._folder = folder
        self._patience = Patience(patience)
        self._threads = ThreadPoolExecutor(RANGES_AT_ONCE, thread_name_prefix="fetch_range")

    def obtain(self, name: str, entry: ShardEntry, claim: Claim) -> None:
        """Publish a shard under `name`: the copy of earlier processes if it is sound, else the shard as fetched.

        Or mark it as corrupt.

        Raises OSError when the store or the disk fails.
        """
        record = self._folder.record(name)
        try:
            if claim.is_unverified_copy and not find_copy_fault(entry, claim.path, record):
                self._folder.publish(name, claim.path, record.read_bytes())
            else:
                self._fetch(name, entry, claim.path)
        finally:
            claim.path.unlink(missing_ok=True)

    @property
    def patience(self) -> float:
        """Seconds that the store may be out of reach."""
        return self._patience.seconds

    @property
    def has_ended(self) -> bool:
        """Whether nothing is to be waited for any more."""
        return self._patience.has_ended

    def stop_waiting(self) -> None:
        """Let no request wait for the store any more."""
        self._patience.end()

    def close(self) -> None:
        """End the threads."""
        self.stop_waiting()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _fetch(self, name: str, entry: ShardEntry, partial: Path) -> None:
        fault = ""
        for _ in range(ATTEMPTS):
            record = self._patience.read(entry.record, lambda: files.read_bytes(files.join(self._source, entry.record)))
            fault = self._fetch_tar(entry, partial) or find_fault(entry, partial, record)
            if not fault:
                self._folder.publish(name, partial, record)
                return
        self._folder.mark_corrupt(name, fault)

    def _fetch_tar(self, entry: ShardEntry, partial: Path) -> str:
        """Write the tar; why it cannot be that of the index, empty when it can."""
        descriptor = os.open(partial, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, entry.filesize)  # a damaged copy of earlier processes may be longer
            location = files.join(self._source, entry.url)
            return fetch_object(location, entry.filesize, descriptor, self._threads, self._patience)
        finally:
            os.close(descriptor)


def find_copy_fault(entry: ShardEntry, tar: Path, record: Path) -> str:
    """How a copy on disk differs from what the index says; empty when it does not."""
    try:
        return find_fault(entry, tar, record.read_bytes())
    except OSError as error:  # the disk cannot read it, or another process has thrown it away
        return str(error)


def find_fault(entry: ShardEntry, tar: Path, record: bytes) -> str:
    """How tar and record differ from what the index says of them; empty when they do not."""
    if fault := find_digest_fault(entry, hashlib.sha256(record).hexdigest()):
        return f"{entry.record}: {fault}"
    size = tar.stat().st_size
    if size != entry.filesize:
        return f"{size} bytes, the index says {entry.filesize}"
    digest = file_sha256(tar)
    return "" if digest == entry.sha256 else f"SHA-256 {digest}, the index says {entry.sha256}"
