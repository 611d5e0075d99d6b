"""What scans have found so far, in parts beside the manifest, so that no file is decoded twice.

A part is a gzip file as in known_files.py, published while the scan goes on. What was found of files that are gone
stays until a recheck, as they may come back: a disk was not mounted. Parts are no output: they may be deleted at any
time, and the next scan decodes every file.
"""

import logging
import re
import time
from collections.abc import Iterator, Sequence

from mert_foundry.pipeline.manifest.examine import Examined
from mert_foundry.pipeline.manifest.known_files import DAMAGE, KnownFile, KnownFiles, read_known, write_known
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.documents import first_difference

FOLDER = "scan"
SUFFIX = ".jsonl.gz"
NAME = re.compile(r"[0-9]{6,}\.jsonl\.gz")  # other files in the folder are somebody else's
RECHECKING = "recheck"  # a file that is there from the beginning of a recheck to its end
MOST_PARTS, MOST_LINES = 64, 100_000  # that are not put together; of a part, when they are
# A part is published when this share of the time so far has passed since the last one, within bounds in seconds.
SHARE, SHORTEST, LONGEST = 0.1, 1.0, 30.0


class ScanParts(KnownFiles):
    """The parts in the manifest folder `out`. One scan at a time may write them.

    Args:
        version: what decides about results beside the files, as `result_version` has it.
        recheck: use those parts alone that a recheck has left which was killed.

    Attributes:
        stale: why nothing of the parts that are there is used, as `key value, now it is value`; else empty.
    """

    def __init__(self, out: str, version: dict, recheck: bool = False):
        super().__init__(version)
        self.folder = files.join(out, FOLDER)
        self.stale = ""
        self._used: list[str] = []  # names of parts
        self._useless: list[str] = []
        self._num_lines = 0  # of used parts
        self._clock = _Clock()
        files.sweep_temporary(self.folder)
        if recheck:
            self._begin_recheck()
        self._load()

    def add(self, stamp: str | None, examined: Examined) -> None:
        """Note a result, if it lasts and can be found again; publishes a part when it is time for one."""
        super().add(stamp, examined)
        if self._clock.is_due():
            try:
                self.publish()
            except OSError as error:  # it goes into the next part
                logging.getLogger(__name__).warning(
                    f"{self.folder}: no part could be written, the scan goes on: {error}"
                )

    def publish(self) -> None:
        """Write what no part has yet."""
        self._clock.restart()
        super().publish()

    def finish(self) -> None:
        """Remove parts of no use, and put the others together when they are many, or half of their
        lines are of no use.
        """
        self.publish()
        wanted = list(self._known.values())
        if len(self._used) > MOST_PARTS + len(wanted) // MOST_LINES or self._num_lines > 2 * len(wanted):
            self._useless, self._used, self._num_lines = self._useless + self._used, [], 0
            for lines in _slices(wanted, MOST_LINES):
                self._write(lines)
        for name in [*self._useless, RECHECKING]:
            files.remove(files.join(self.folder, name))
        self._useless = []

    def _begin_recheck(self) -> None:
        marker = files.join(self.folder, RECHECKING)
        if not files.exists(marker):
            for name in self._list():
                files.remove(files.join(self.folder, name))
            files.publish_bytes(marker, b"")  # after the removal: what lies beside it was found by the recheck

    def _list(self) -> list[str]:
        names = (name for name in files.list_names(self.folder) if NAME.fullmatch(name))
        return sorted(names, key=lambda name: int(name.removesuffix(SUFFIX)))

    def _load(self) -> None:
        stale = ""
        for name in self._list():
            try:
                version, lines = read_known(files.join(self.folder, name), self.version)
            except DAMAGE:
                self._useless.append(name)
                continue
            if version != self.version:
                self._useless.append(name)
                stale = first_difference(version, self.version) or stale
                continue
            self._used.append(name)
            self._num_lines += len(lines)
            self._remember(lines)  # those of later parts last
        self.stale = "" if self._used else stale

    def _write(self, lines: Sequence[KnownFile]) -> None:
        numbers = (int(name.removesuffix(SUFFIX)) for name in (*self._used, *self._useless))
        name = f"{max(numbers, default=0) + 1:06d}{SUFFIX}"
        write_known(files.join(self.folder, name), self.version, lines)
        self._used.append(name)
        self._num_lines += len(lines)


def _slices(items: Sequence[KnownFile], count: int) -> Iterator[Sequence[KnownFile]]:
    """Slices of `count` items, the last one shorter."""
    return (items[start : start + count] for start in range(0, len(items), count))


class _Clock:
    """When a scan is to publish a part: a kill costs a tenth of what was done, and half a minute at most."""

    def __init__(self) -> None:
        self.begun = self.published = time.monotonic()

    def is_due(self) -> bool:
        now = time.monotonic()
        return now - self.published >= min(LONGEST, max(SHORTEST, SHARE * (now - self.begun)))

    def restart(self) -> None:
        self.published = time.monotonic()
