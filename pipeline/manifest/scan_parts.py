"""What scans have found so far, kept in parts beside the manifest, so that no file is decoded twice.

A part is a gzip file of JSON lines, published whole while the scan goes on: a header with all that decides about results
beside the files, then a line a file with its path, its stamp, the digest of its bytes and its result. A part with another header,
or a damaged one, is not used. A result is used again without a look at the file when its stamp is the same, else when its bytes
are. What was found of files that are gone stays until a recheck, as they may come back: a disk was not mounted. Parts are no output: they may be deleted at any time, and the next scan decodes every file.
"""

import gzip
import json
import logging
import re
import time
import zlib
from collections.abc import Iterator, Sequence

import msgspec

from mert_foundry.pipeline.manifest.examine import Examined
from mert_foundry.pipeline.manifest.rows import Reject, Track, parse_lines
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.documents import first_difference

FOLDER = "scan"
SUFFIX = ".jsonl.gz"
NAME = re.compile(r"[0-9]{6,}\.jsonl\.gz")  # other files in the folder are somebody else's
RECHECKING = "recheck"  # a file that is there from the beginning of a recheck to its end
MOST_PARTS, MOST_LINES = 64, 100_000  # that are not put together; of a part, when they are
# A part is published when this share of the time so far has passed since the last one, within bounds in seconds.
SHARE, SHORTEST, LONGEST = 0.1, 1.0, 30.0


class Kept(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A line of a part: the result of a file, which lasts for as long as the file has this stamp, or these bytes.

    stamp: empty when the file had none. sha256: that of a reject's file, where it was read; a track has its own.
    """

    stamp: str
    track: Track | None = None
    reject: Reject | None = None
    sha256: str = ""

    def __post_init__(self) -> None:
        if (self.track is None) == (self.reject is None):
            raise ValueError("a line needs a track or a reject, and not both")

    @property
    def digest(self) -> str:
        return self.track.sha256 if self.track else self.sha256

    @property
    def result(self) -> Track | Reject:
        result = self.track or self.reject
        assert result is not None, "one of them is written"
        return result


class ScanParts:
    """The parts in the manifest folder `out`. One scan at a time may write them.

    Args:
        version: what decides about results beside the files, as `result_version` has it.
        recheck: use those parts alone that a recheck has left which was killed.

    Attributes:
        stale: why nothing of the parts that are there is used, as `key value, now it is value`; else empty.
    """

    def __init__(self, out: str, version: dict, recheck: bool = False):
        self.folder = files.join(out, FOLDER)
        self.version = version
        self.stale = ""
        self._known: dict[str, Kept] = {}
        self._fresh: list[Kept] = []
        self._used: list[str] = []  # names of parts
        self._useless: list[str] = []
        self._num_lines = 0  # of used parts
        self._clock = _Clock()
        files.sweep_temporary(self.folder)
        if recheck:
            self._begin_recheck()
        self._load()

    def find(self, path: str, stamp: str | None) -> Track | Reject | None:
        """The result of a file with this stamp, if it is known."""
        kept = self._known.get(path)
        return kept.result if kept and kept.stamp == stamp else None

    def find_bytes(self, path: str) -> tuple[str, Track | Reject] | None:
        """SHA-256 of a file as it was, and what was found of it then, if both are known."""
        kept = self._known.get(path)
        return (kept.digest, kept.result) if kept and kept.digest else None

    def add(self, stamp: str | None, examined: Examined) -> None:
        """Keep a result, if it lasts and can be found again; publishes a part when it is time for one."""
        result = examined.result
        if examined.is_lasting and (stamp or examined.sha256):
            if isinstance(result, Track):
                self._fresh.append(Kept(stamp or "", track=result))
            else:
                self._fresh.append(Kept(stamp or "", reject=result, sha256=examined.sha256))
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
        if self._fresh:
            self._write(self._fresh)
            self._known.update((kept.result.path, kept) for kept in self._fresh)
            self._fresh = []

    def finish(self) -> None:
        """Remove parts of no use, and put the others together when they are many, or half of their lines are of no use."""
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
                version, lines = self._read(name)
            except (ValueError, EOFError, RecursionError, zlib.error, gzip.BadGzipFile):  # damaged
                self._useless.append(name)
                continue
            if version != self.version:
                self._useless.append(name)
                stale = first_difference(version, self.version) or stale
                continue
            self._used.append(name)
            self._num_lines += len(lines)
            self._known.update((kept.result.path, kept) for kept in lines)  # those of later parts last
        self.stale = "" if self._used else stale

    def _read(self, name: str) -> tuple[dict, list[Kept]]:
        """The version of a part, and its lines if it is ours. Raises one of the errors of `_load` for damage."""
        location = files.join(self.folder, name)
        header, _, lines = gzip.decompress(files.read_bytes(location)).partition(b"\n")
        version = json.loads(header)
        if not isinstance(version, dict):
            raise ValueError(f"{location}: no header")
        if version != self.version:
            return version, []
        return version, parse_lines(f"{location}: line", 2, lines, Kept)

    def _write(self, lines: Sequence[Kept]) -> None:
        numbers = (int(name.removesuffix(SUFFIX)) for name in (*self._used, *self._useless))
        name = f"{max(numbers, default=0) + 1:06d}{SUFFIX}"
        content = b"\n".join(json.dumps(line).encode() for line in (self.version, *map(msgspec.to_builtins, lines)))
        files.publish_bytes(files.join(self.folder, name), gzip.compress(content, compresslevel=1))
        self._used.append(name)
        self._num_lines += len(lines)


def _slices(items: Sequence[Kept], count: int) -> Iterator[Sequence[Kept]]:
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
