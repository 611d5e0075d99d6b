"""Local folders and files that are there whole or not at all: written under a temporary name, synced, renamed.

The only place of model/ that does so. `pipeline/storage/files.py` is that of pipeline/, which model/ does not import; it also
writes to object stores.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".partial-"


@contextmanager
def publish_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder to write to, and make it `target` when the block ends well; on an error, remove it.

    `target` must not exist, or be an empty folder. After a kill a folder `.partial-<name>` stays behind; the next
    call for the same target, or `remove_leftovers`, removes it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / (TEMPORARY_PREFIX + target.name)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.iterdir():
            # safetensors makes files that only their owner can read.
            path.chmod(path.stat().st_mode | (temporary.stat().st_mode & 0o444))
            _sync(path)
        _replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def publish_file(target: Path, content: bytes) -> None:
    """Write a file whole or not at all; its folder is made if it is not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(TEMPORARY_PREFIX + target.name)
    temporary.write_bytes(content)
    _replace(temporary, target)


def retire_folder(target: Path) -> None:
    """Remove a published folder such that a kill half-way leaves no incomplete folder under its name."""
    temporary = target.parent / (TEMPORARY_PREFIX + target.name)
    shutil.rmtree(temporary, ignore_errors=True)
    os.replace(target, temporary)
    shutil.rmtree(temporary)


def remove_leftovers(parent: Path) -> None:
    """Remove what killed writes left in `parent`."""
    for path in parent.glob(TEMPORARY_PREFIX + "*"):
        shutil.rmtree(path)


def _replace(temporary: Path, target: Path) -> None:
    _sync(temporary)
    os.replace(temporary, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
