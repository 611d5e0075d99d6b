"""Where files live: a local path or any fsspec URL (`s3://`, `gs://`, `memory://`).

Publishing is all or nothing: locally a file is written under a temporary name, synced and
renamed; an object store makes a finished upload visible at once. A name that exists is whole.
"""

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

# Error numbers of faults that lie in the file itself; other such faults have exception classes of their own.
FAULTS_OF_A_FILE = {errno.ELOOP, errno.ENAMETOOLONG, errno.ENODEV, errno.ENXIO}
# Of a disk that takes no more, which Python names no file for.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Under which key file systems tell when a file was written: local, S3, Google, memory.
WRITTEN_AT = ("mtime", "LastModified", "updated", "created")


def open_filesystem(location: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a location and the path in it, without a cache of listings: other processes write too."""
    return url_to_fs(location, use_listings_cache=False)


def is_local(location: str) -> bool:
    """True when `location` names a path of this machine rather than a remote URL."""
    return isinstance(open_filesystem(location)[0], LocalFileSystem)


def local_path(location: str) -> Path:
    """The path of a local location (`file://` is stripped); raises ValueError for a remote one."""
    filesystem, path = open_filesystem(location)
    if not isinstance(filesystem, LocalFileSystem):
        raise ValueError(f"{location}: a local folder is needed here, not a {filesystem.protocol} URL")
    return Path(path)


def absolute(location: str) -> str:
    """The location for processes with another working folder: a local path from the root on, a remote one as it is."""
    return str(local_path(location)) if is_local(location) else location


def join(location: str, *names: str) -> str:
    """Append path components to a location."""
    return "/".join([location.rstrip("/") or "/", *names])


def exists(location: str) -> bool:
    """True when a file or folder is there."""
    filesystem, path = open_filesystem(location)
    return filesystem.exists(path)


def size(location: str) -> int:
    """Size in bytes. Raises FileNotFoundError."""
    filesystem, path = open_filesystem(location)
    return filesystem.size(path)


def list_names(folder: str) -> list[str]:
    """Sorted names of the files right in a folder; empty when the folder does not exist."""
    return sorted(list_sizes(folder))


def list_sizes(folder: str) -> dict[str, int]:
    """Bytes of the files right in a folder, by name, from one listing; empty when the folder does not exist."""
    return {name: entry["size"] for name, entry in _list_entries(folder)}


def list_times(folder: str) -> dict[str, float]:
    """When the files right in a folder were last written, in seconds since 1970, as `list_sizes`; without those of
    which it is not known.
    """
    times = {}
    for name, entry in _list_entries(folder):
        written = next((entry[key] for key in WRITTEN_AT if entry.get(key) is not None), None)
        if isinstance(written, str):
            written = datetime.fromisoformat(written)
        if written is not None:
            times[name] = written.timestamp() if isinstance(written, datetime) else float(written)
    return times


def _list_entries(folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    filesystem, path = open_filesystem(folder)
    try:
        entries = filesystem.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return
    own = path.strip("/")  # of a file, its own entry is listed
    for entry in entries:
        name = entry["name"].rstrip("/")
        if entry["type"] == "file" and name.strip("/") != own:
            yield name.rsplit("/", 1)[-1], entry


def read_bytes(location: str) -> bytes:
    """The whole content of a file. Raises FileNotFoundError naming it."""
    filesystem, path = open_filesystem(location)
    return filesystem.cat_file(path)


def read_start(location: str, count: int) -> bytes:
    """The first `count` bytes of a file, or all there are, without reading the rest. Raises FileNotFoundError."""
    filesystem, path = open_filesystem(location)
    if not filesystem.size(path):  # of which an object store can give no range
        return b""
    return filesystem.cat_file(path, start=0, end=count)


def remove(location: str) -> None:
    """Delete one file; a missing one is fine."""
    filesystem, path = open_filesystem(location)
    if filesystem.exists(path):
        filesystem.rm_file(path)


def publish_bytes(location: str, content: bytes) -> None:
    """Make `content` visible under `location` whole or not at all."""
    with publishing(location) as temporary:
        temporary.write_bytes(content)


@contextmanager
def publishing(location: str) -> Iterator[Path]:
    """Give a local path to write to; on a clean exit the file appears under `location`, whole.

    On an error nothing appears and the temporary file is removed; that of a full disk names the file. A killed process
    leaves a file whose name begins with a dot, which `sweep_temporary` deletes.
    """
    filesystem, path = open_filesystem(location)
    if isinstance(filesystem, LocalFileSystem):
        folder = Path(path).parent
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{Path(path).name}.{uuid.uuid4().hex}.tmp"
        try:
            yield temporary
            move_into_place(temporary, Path(path))
        except OSError as error:
            if error.errno in FULL and error.filename is None:
                error.filename = path
            raise
        finally:
            temporary.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory(prefix="mert-") as scratch:
        temporary = Path(scratch) / path.rsplit("/", 1)[-1]
        yield temporary
        filesystem.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        filesystem.put_file(str(temporary), path)


def move_into_place(temporary: Path, target: Path) -> None:
    """Give a local file or folder its name in the same folder once its bytes are on the disk, in place of what had the
    name.
    """
    sync(temporary)
    os.replace(temporary, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Return when a local file, or the list of names of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_temporary(folder: str) -> None:
    """Delete what killed writers left in a local folder. Call it when no writer is at work there."""
    if is_local(folder):
        for leftover in local_path(folder).glob(".*.tmp"):
            leftover.unlink()


@contextmanager
def local_copy(folder: str, name: str) -> Iterator[Path]:
    """A local path with the content of the file `name` of a folder: the file itself, or a temporary download.

    `name` may hold any characters, also such as mean something in a URL (`::`).
    """
    filesystem, path = open_filesystem(folder)
    path = join(path, name)
    if isinstance(filesystem, LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="mert-") as temporary:
        copy = Path(temporary) / path.rsplit("/", 1)[-1]
        with filesystem.open(path, "rb") as source, open(copy, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        yield copy


def is_fault_of_file(error: Exception) -> bool:
    """Whether an error lies in the file itself, such as a link to itself, and not in the storage that holds it."""
    own = FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError
    return isinstance(error, own) or getattr(error, "errno", None) in FAULTS_OF_A_FILE
