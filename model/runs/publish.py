"""Local folders that are there whole or not at all, as `pipeline/storage/files.py` has it for files."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mert_foundry.pipeline.storage.files import move_into_place, sync

TEMPORARY_PREFIX = ".partial-"


@contextmanager
def publish_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder to write to, and make it `target` when the block ends well; on an error, remove it.

    `target` must not exist, or be an empty folder. A kill leaves a folder `.partial-<name>`; the next call for
    the same target, or `remove_leftovers`, removes it. The error of a full disk gets a note with the space that was
    left.
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
            sync(path)
        move_into_place(temporary, target)
    except BaseException as error:
        number = system_error(error)
        if number in (errno.ENOSPC, errno.EDQUOT):  # measured before what was written is removed
            free = shutil.disk_usage(target.parent).free // 1_000_000
            error.add_note(f"{os.strerror(number)}: {free} MB were free in {target.parent}")
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def system_error(error: BaseException) -> int | None:
    """The number (errno) of what the operating system refused, in an error or one that it came from; None if it refused
    nothing.

    torch hides it behind an error of its own; safetensors, written in Rust, has it in its text.
    """
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError) and behind.errno is not None:
            return behind.errno
        if in_text := re.search(r"\(os error (\d+)\)", str(behind)):
            return int(in_text[1])
        behind = behind.__cause__ or behind.__context__
    return None


def retire_folder(target: Path) -> None:
    """Remove a published folder so that a kill on the way leaves no incomplete folder under its name."""
    temporary = target.parent / (TEMPORARY_PREFIX + target.name)
    shutil.rmtree(temporary, ignore_errors=True)
    os.replace(target, temporary)
    shutil.rmtree(temporary)


def remove_leftovers(parent: Path) -> list[Path]:
    """Remove what killed writes and removals left in `parent`; returns the folders that would have been published."""
    leftovers = list(parent.glob(TEMPORARY_PREFIX + "*"))
    for path in leftovers:
        shutil.rmtree(path)
    return [parent / path.name.removeprefix(TEMPORARY_PREFIX) for path in leftovers]
