"""A file that ends every process that opens it, as one that crashes its decoder does."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


@contextmanager
def killing_all_that_open(path: Path) -> Iterator[list[int]]:
    """SIGKILL for every process below this one that has the file open, as soon as it is seen; gives their ids."""
    killed: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            for process in psutil.Process().children(recursive=True):
                if process.pid not in killed and has_open(process.pid, path):
                    process.kill()
                    killed.append(process.pid)
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield killed
    finally:
        ended.set()
        watcher.join()


def has_open(process: int, path: Path) -> bool:
    try:
        folder = Path(f"/proc/{process}/fd")
        return any(os.readlink(descriptor) == str(path) for descriptor in folder.iterdir())
    except OSError:
        return False
