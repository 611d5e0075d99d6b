"""Whether another process that fetches a shard still writes to it: one that is stopped, but lives, keeps its claim."""

import logging
import time
from pathlib import Path
from typing import NamedTuple

WARN_AFTER = 30.0  # seconds
SLACK = 120.0  # seconds beyond patience: the last request before it ends, and the SHA-256 of the whole


class Progress(NamedTuple):
    """A file to which another process fetches a shard, and when it was last written to (ns)."""

    path: Path
    written: int


class Stall:
    """One wait for a shard that another process may be fetching.

    Args:
        url: of the shard, for messages.
        patience: seconds that the other process may wait for the store.
    """

    def __init__(self, url: str, patience: float) -> None:
        self._url = url
        self._most = patience + SLACK
        self._seen: Progress | None = None
        self._since = 0.0
        self._warned = False

    def look(self, progress: Progress | None) -> None:
        """Compare with the last look. Raises OSError naming shard and file when nothing was written for too long."""
        if progress is None or progress != self._seen:
            self._seen, self._since, self._warned = progress, time.monotonic(), False
            return
        seconds = time.monotonic() - self._since
        message = (
            f"{self._url}: another process fetches it to {progress.path}, but has written nothing for {seconds:.0f} s"
        )
        if seconds > self._most:
            raise OSError(f"{message}: it may be stopped; end it")
        if seconds > WARN_AFTER and not self._warned:
            self._warned = True
            logging.getLogger(__name__).warning(f"{message}; waiting for {self._most:.0f} s at most")
