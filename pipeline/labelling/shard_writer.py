"""Examples to one tar shard and its record; both appear whole or not at all, the record last.

The tar goes to a temporary name as the examples come, so memory holds a few examples at a time: they are encoded
in threads, so that what makes them, a GPU perhaps, does not wait. Its bytes depend on the examples alone: owner, mode
and time are fixed (WebDataset's TarWriter).
"""

import hashlib
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import webdataset

from mert_foundry.pipeline.audio.read_ahead import read_ahead
from mert_foundry.pipeline.frames import FRAME_RATE
from mert_foundry.pipeline.shards.format import AudioMember, Example, check_specs, encode_example
from mert_foundry.pipeline.shards.record import (
    NAME_PATTERN,
    SCHEMA_VERSION,
    DroppedSegment,
    DroppedTrack,
    ExampleEntry,
    ShardRecord,
    count_dropped,
    encode_record,
)
from mert_foundry.pipeline.shards.set_statistics import empty_statistics, measure_example
from mert_foundry.pipeline.shards.statistics import Partial, merge
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.shards.text import OF_TEXT, TextSpec
from mert_foundry.pipeline.storage import files

BLOCK = 512  # bytes of a tar block and of a USTAR header
# Beside the one thread that makes the examples and writes the tar; four encode faster than a fast GPU labels.
ENCODING_THREADS = 4

Outcome = Example | DroppedSegment | DroppedTrack  # of a segment, or of a whole track


def write_shard(
    folder: str,
    name: str,
    outcomes: Iterable[Outcome],
    specs: Sequence[TargetSpec],
    *,
    audio_member: AudioMember | None,
    plan_fingerprint: str,
    backend: Mapping[str, object],
    text: TextSpec | None = None,
) -> ShardRecord:
    """Write `{name}.tar` and then `{name}.json` into `folder`.

    An old record of that name goes first: a tar never stands beside a record of another one. With
    no examples the tar is empty but valid.

    Args:
        folder: local path or fsspec URL.
        name: `{split}-{nnnnnn}`.
        outcomes: examples, and the segments and tracks that gave none, in the order of the plan.

    Raises:
        ValueError: a bad name, spec or example (naming key and both values), or a key seen twice.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(f"shard name {name!r} is not of the form split-000000")
    check_specs(specs, text)
    record_location = files.join(folder, f"{name}.json")
    contents = _Contents(specs, text)
    with files.publishing(files.join(folder, f"{name}.tar")) as temporary:
        file = _write_tar(temporary, outcomes, audio_member, contents)
        files.remove(record_location)
    made = {"audio_member": audio_member, "plan_fingerprint": plan_fingerprint, "backend": dict(backend)}
    record = contents.describe(name, file, **made)
    files.publish_bytes(record_location, encode_record(record))
    return record


def _write_tar(
    path: Path, outcomes: Iterable[Outcome], audio_member: AudioMember | None, contents: "_Contents"
) -> "_HashedFile":
    """Encode in threads and write in order; `contents` follows. Returns the file, closed."""
    encode = partial(_encode, contents.specs, audio_member, contents.text)
    with open(path, "wb") as stream, closing(read_ahead(outcomes, encode, ENCODING_THREADS)) as results:
        file = _HashedFile(stream)
        with webdataset.TarWriter(file, encoder=False, user="mert", group="mert", mode=0o444, mtime=0) as tar:
            for outcome, encoded in results:
                if isinstance(outcome, DroppedTrack):
                    contents.dropped_tracks.append(outcome)
                elif isinstance(outcome, DroppedSegment):
                    contents.dropped_segments.append(outcome)
                else:
                    assert encoded is not None, "what is not dropped is encoded"
                    contents.add(outcome, encoded, tar)
    return file


@dataclass(frozen=True)
class _Encoded:
    """An example as bytes by member suffix, and the statistics of its targets."""

    members: Mapping[str, bytes]
    statistics: Mapping[str, Partial]


def _encode(
    specs: Sequence[TargetSpec], audio_member: AudioMember | None, text: TextSpec | None, outcome: Outcome
) -> _Encoded | None:
    """None for what was dropped. Called in threads; raises ValueError as `encode_example`."""
    if not isinstance(outcome, Example):
        return None
    members = encode_example(outcome, specs, audio_member, text)
    return _Encoded(members, measure_example(outcome, specs, text))


class _Contents:
    """What has gone into a tar so far: all the record will say about it."""

    def __init__(self, specs: Sequence[TargetSpec], text: TextSpec | None) -> None:
        self.specs = specs
        self.text = text
        self.offset = 0
        self.keys: set[str] = set()
        self.entries: list[ExampleEntry] = []
        self.dropped_tracks: list[DroppedTrack] = []
        self.dropped_segments: list[DroppedSegment] = []
        self.statistics = empty_statistics(specs, text)

    def add(self, example: Example, encoded: _Encoded, tar: webdataset.TarWriter) -> None:
        if example.key in self.keys:
            raise ValueError(f"example key {example.key} comes twice in one shard")
        tar.write({"__key__": example.key, **encoded.members})
        spans = self._locate(encoded.members)
        assert self.offset == tar.tarstream.offset, "the tar library laid members out in another way"
        self.keys.add(example.key)
        self.entries.append(ExampleEntry(key=example.key, num_frames=example.info.num_frames, members=spans))
        for name, statistics in encoded.statistics.items():
            self.statistics[name] = merge(self.statistics[name], statistics)

    def describe(self, name: str, file: "_HashedFile", **made: Any) -> ShardRecord:
        """The record of the shard `name`, written to `file`; `made`: how, beside the contents."""
        num_frames = sum(entry.num_frames for entry in self.entries)
        return ShardRecord(
            schema_version=SCHEMA_VERSION,
            url=f"{name}.tar",
            split=name.rpartition("-")[0],
            bytes=file.size,
            sha256=file.digest.hexdigest(),
            teachers={spec.name: spec.fingerprint for spec in self.specs}
            | ({OF_TEXT: self.text.fingerprint} if self.text else {}),
            examples=len(self.entries),
            num_frames=num_frames,
            seconds=num_frames / FRAME_RATE,
            dropped=count_dropped(self.dropped_tracks, self.dropped_segments),
            dropped_tracks=self.dropped_tracks,
            dropped_segments=self.dropped_segments,
            statistics=self.statistics,
            members=self.entries,
            **made,
        )

    def _locate(self, members: Mapping[str, bytes]) -> dict[str, tuple[int, int, int]]:
        """Offset, size and CRC-32 of members that follow what is there."""
        spans = {}
        for suffix, data in members.items():
            spans[suffix] = (self.offset + BLOCK, len(data), zlib.crc32(data))
            self.offset += BLOCK + -(-len(data) // BLOCK) * BLOCK
        return spans


class _HashedFile:
    """A file to write to that keeps the SHA-256 and the size of what went through."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)
