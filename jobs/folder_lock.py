"""One process at a time in an output folder, for as long as it lives, however it ends."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path, work: str) -> Iterator[None]:
    """Hold a local folder; `work` says in the error what the other process is doing there.

    Raises:
        ValueError: another process holds it, such as a rank that outlived its launcher.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{folder}: another process is {work} in this folder") from error
        yield
