"""What scans have found of files, so that no file is decoded twice.

A result is used again without a look at the file when its stamp is the same, else when its bytes are. Results lie in
gzip files of JSON lines: a header with all that decides about results beside the files, then a line a file with its
path, its stamp, the digest of its bytes and its result. A gzip file with another header, or a damaged one, is not used.
"""

import gzip
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import msgspec

from mert_foundry.pipeline.manifest.examine import Examined
from mert_foundry.pipeline.manifest.rows import Reject, Track, parse_lines
from mert_foundry.pipeline.storage import files

DAMAGE = (ValueError, EOFError, RecursionError, zlib.error, gzip.BadGzipFile)  # what `read_known` raises for damage


class KnownFile(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The result of a file, which holds for as long as the file has this stamp, or these bytes.

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


class KnownFiles(ABC):
    """What was found of files, by path: before, and in this scan.

    Args:
        version: what decides about results beside the files, as `result_version` has it.
    """

    def __init__(self, version: dict):
        self.version = version
        self._known: dict[str, KnownFile] = {}
        self._unpublished: list[KnownFile] = []

    def find(self, path: str, stamp: str | None) -> Track | Reject | None:
        """The result of a file with this stamp, if it is known."""
        known = self._known.get(path)
        return known.result if known and known.stamp == stamp else None

    def find_bytes(self, path: str) -> tuple[str, Track | Reject] | None:
        """SHA-256 of a file as it was, and what was found of it then, if both are known."""
        known = self._known.get(path)
        return (known.digest, known.result) if known and known.digest else None

    def add(self, stamp: str | None, examined: Examined) -> None:
        """Note a result, if it lasts and can be found again."""
        result = examined.result
        if not examined.is_lasting or not (stamp or examined.sha256):
            return
        if isinstance(result, Track):
            self._unpublished.append(KnownFile(stamp or "", track=result))
        else:
            self._unpublished.append(KnownFile(stamp or "", reject=result, sha256=examined.sha256))

    def publish(self) -> None:
        """Write what was added since the last time; what cannot be written is tried again the next time."""
        if self._unpublished:
            self._remember(self._unpublished)
            self._write(self._unpublished)
            self._unpublished = []

    @abstractmethod
    def _write(self, lines: Sequence[KnownFile]) -> None:
        """Write these lines, which are remembered already."""

    def _remember(self, lines: Iterable[KnownFile]) -> None:
        self._known.update((known.result.path, known) for known in lines)


def read_known(location: str, version: dict) -> tuple[dict, list[KnownFile]]:
    """The version of a file of results, and its lines if it is this one.

    Raises FileNotFoundError, or one of DAMAGE.
    """
    header, _, lines = gzip.decompress(files.read_bytes(location)).partition(b"\n")
    found = json.loads(header)
    if not isinstance(found, dict):
        raise ValueError(f"{location}: no header")
    return found, parse_lines(f"{location}: line", 2, lines, KnownFile) if found == version else []


def write_known(location: str, version: dict, lines: Iterable[KnownFile]) -> None:
    """Publish a file of results."""
    content = b"\n".join(json.dumps(line).encode() for line in (version, *map(msgspec.to_builtins, lines)))
    files.publish_bytes(location, gzip.compress(content, compresslevel=1))
