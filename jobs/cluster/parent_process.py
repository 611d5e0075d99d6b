"""A process that ends with the one that started it, however that one ends."""

import os
import threading
import time
from contextlib import suppress

import psutil

ENDS_WITH = "MERT_ENDS_WITH"  # in the environment: the process to end with


def end_with_parent() -> None:
    """Watch the process that the environment names, if it names one; this process ends within a second after it."""
    if ENDS_WITH in os.environ:
        end_with(int(os.environ[ENDS_WITH]))


def end_with(pid: int) -> None:
    """End this process within a second after another has gone, however that one ends."""
    threading.Thread(target=_watch, args=(pid,), daemon=True).start()


def _watch(pid: int) -> None:
    with suppress(psutil.NoSuchProcess):
        other = psutil.Process(pid)
        while other.is_running() and other.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.5)
    os._exit(1)
