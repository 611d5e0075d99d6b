"""Which files lie below a root, and by what each of them counts as the same as before."""

import hashlib
import os
import stat
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fsspec import AbstractFileSystem

from mert_foundry.pipeline.manifest.examine import is_own_fault, reject_storage
from mert_foundry.pipeline.manifest.rows import Reject
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.patience import Patience

THREADS = 16  # folders that are listed at once: an object store takes 30 ms and more for each
# Seconds: a file that changed so shortly before it was listed may change again with the same time of change (2 s on
# FAT). Such a file has no stamp.
SETTLED = 2.0


@dataclass(frozen=True)
class FoundFiles:
    """The files below a root.

    stamps: by path relative to the root, sorted, what changes when the file does: the root, the file's size and its
    entity tag or time of change; for a local file its number (inode) and the time of its last change of any kind
    (ctime) too, which no program can set back. None where a file system tells neither, or the file has just changed.
    unlisted: folders that could not be listed.
    """

    stamps: dict[str, str | None]
    unlisted: list[Reject]


def list_files(root: str, patience: float = 0.0) -> FoundFiles:
    """All files below a root, a folder or fsspec URL. (fsspec's own walk leaves out without a word what it cannot
    list.)

    `patience` is how long the storage is asked again when it does not answer, seconds. Raises OSError when the root
    cannot be listed.
    """
    filesystem, top = files.open_filesystem(root)
    top = top.rstrip("/")
    origin = _origin(filesystem, top)
    stamps: dict[str, str | None] = {}
    unlisted: list[Reject] = []
    for folder, began, entries in _list_all(filesystem, top, Patience(patience)):
        if isinstance(entries, OSError):
            if folder == top:
                raise entries
            # Not the folder's own fault: nobody knows how many files are in there.
            detail = reject_storage(folder, entries).detail
            reject = Reject(path=folder[len(top) + 1 :], reason="unreachable", detail=f"cannot be listed: {detail}")
            unlisted.append(reject)
        else:
            files_here = (entry for entry in entries if entry["type"] != "directory")
            stamps.update(
                (entry["name"].rstrip("/")[len(top) + 1 :], _stamp(entry, began, origin)) for entry in files_here
            )
    return FoundFiles(dict(sorted(stamps.items())), sorted(unlisted, key=lambda reject: reject.path))


def stamp_files(root: str, paths: Iterable[str], patience: float) -> FoundFiles:
    """Files of a list, as `list_files` has them; one that is not there has no stamp, and it shows when it is read."""
    filesystem, top = files.open_filesystem(root)
    waiting, origin = Patience(patience), _origin(filesystem, top.rstrip("/"))

    def stamp(path: str) -> str | None:
        location = files.join(top, path)

        def attempt() -> str | None:
            began = time.time()
            try:
                return _stamp(filesystem.info(location), began, origin)
            except FileNotFoundError:
                return None

        try:
            return waiting.read(location, attempt)
        except OSError:
            return None

    names = sorted(paths)
    try:
        with ThreadPoolExecutor(THREADS) as threads:
            return FoundFiles(dict(zip(names, threads.map(stamp, names))), [])
    finally:
        waiting.end()  # on an interrupt


def check_apart(out: str, root: str) -> None:
    """Raise ValueError when the output lies in the root."""
    filesystem, folder = files.open_filesystem(root)
    out_filesystem, place = files.open_filesystem(out)
    if out_filesystem == filesystem and f"{place.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/"):
        raise ValueError(f"out {out} lies in root {root}: the next scan would find its own files")


def check_folder(root: str, patience: float, name: str = "root") -> None:
    """Raise FileNotFoundError when a root is no folder, and OSError when that cannot be found out within `patience`
    seconds.

    `name` is the setting that names the root, for the message.
    """
    filesystem, path = files.open_filesystem(root)

    def is_folder() -> bool:  # as the file system's `isdir`, which takes every error for a no
        try:
            return bool(filesystem.info(path)["type"] == "directory")
        except (FileNotFoundError, NotADirectoryError):
            return False

    if not Patience(patience).read(root, is_folder):
        raise FileNotFoundError(f"{name} {root}: no such folder")


def _list_all(
    filesystem: AbstractFileSystem, top: str, waiting: Patience
) -> Iterator[tuple[str, float, list[dict[str, Any]] | OSError]]:
    """Every folder from the top on, with the time when its listing began and its entries, or why it has none."""

    def entries_of(folder: str) -> tuple[float, list[dict[str, Any]] | OSError]:
        began = time.time()

        def attempt() -> list[dict[str, Any]] | OSError:
            nonlocal began
            began = time.time()
            try:
                return list(filesystem.ls(folder or "/", detail=True))
            except OSError as error:
                if not is_own_fault(error, filesystem):
                    raise
                return error

        try:
            entries = waiting.read(folder, attempt)
        except OSError as error:
            return began, error
        return began, entries

    folders = [top]
    try:
        with ThreadPoolExecutor(THREADS) as threads:
            while folders:
                inner: list[str] = []
                for folder, (began, entries) in zip(folders, threads.map(entries_of, folders)):
                    yield folder, began, entries
                    if not isinstance(entries, OSError):
                        paths = (entry["name"].rstrip("/") for entry in entries if entry["type"] == "directory")
                        inner += [path for path in paths if path != folder]
                folders = inner
    finally:
        waiting.end()  # on an interrupt


def _origin(filesystem: AbstractFileSystem, top: str) -> str:
    """A short name of a root: another folder may hold files of the same names, sizes and times."""
    return hashlib.sha256(filesystem.unstrip_protocol(top).encode(errors="surrogateescape")).hexdigest()[:16]


def _stamp(entry: dict[str, Any], began: float, origin: str) -> str | None:
    """The stamp of a file, by what its file system lists; `began` is when that was asked for, seconds."""
    if "ino" in entry:
        return _local_stamp(entry, began, origin)
    if entry["type"] != "file":
        return None
    tag = entry.get("ETag") or entry.get("etag")
    if tag is None:
        times = (entry.get(name) for name in ("mtime", "LastModified", "last_modified"))
        tag = next((time for time in times if time is not None), None)
        if isinstance(tag, float) and tag > began - SETTLED:
            return None
    return None if tag is None else f"{origin} {entry.get('size')} {tag}"


def _local_stamp(entry: dict[str, Any], began: float, origin: str) -> str | None:
    try:
        found = os.stat(
            entry["name"]
        )  # what is listed rounds the times, has a link's own, and may lack the last change
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode) or found.st_ctime > began - SETTLED:
        return None
    return f"{origin} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"
