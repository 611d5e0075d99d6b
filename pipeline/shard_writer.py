"""Examples to one tar shard and its record; both appear whole or not at all, the record last.

The tar goes to a temporary name as the examples come, so memory holds one example at a time. Its
bytes depend on the examples alone: owner, mode and time are fixed (WebDataset's TarWriter).
"""

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import BinaryIO

import webdataset

from pipeline import storage
from pipeline.frames import FRAME_RATE
from pipeline.shard_format import AudioMember, Example, check_specs, encode_example
from pipeline.shard_record import NAME_PATTERN, SCHEMA_VERSION, DroppedTrack, ExampleEntry, ShardRecord
from pipeline.target_statistics import empty, measure, merge
from pipeline.teacher import TargetSpec

BLOCK = 512  # bytes of a tar block and of a USTAR header


def write_shard(
    folder: str,
    name: str,
    outcomes: Iterable[Example | DroppedTrack],
    specs: Sequence[TargetSpec],
    *,
    audio_member: AudioMember,
    plan_fingerprint: str,
    backend: Mapping[str, object],
) -> ShardRecord:
    """Write `{name}.tar` and then `{name}.json` into `folder`.

    An old record of that name goes first: a tar never stands beside a record of another one. With
    no examples the tar is empty but valid.

    Args:
        folder: local path or fsspec URL.
        name: `{split}-{nnnnnn}`.
        outcomes: examples, and the tracks that gave none, in the order of the plan.

    Raises:
        ValueError: a bad name, spec or example (naming key and both values), or a key seen twice.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(f"shard name {name!r} is not of the form split-000000")
    check_specs(specs)
    record_location = storage.join(folder, f"{name}.json")
    shard = _Contents(specs, audio_member)
    with storage.publishing(storage.join(folder, f"{name}.tar")) as temporary:
        with open(temporary, "wb") as stream:
            file = _HashedFile(stream)
            with webdataset.TarWriter(file, encoder=False, user="mert", group="mert", mode=0o444, mtime=0) as tar:
                for outcome in outcomes:
                    shard.add(outcome, tar)
        storage.remove(record_location)
    num_frames = sum(entry.num_frames for entry in shard.entries)
    record = ShardRecord(
        schema_version=SCHEMA_VERSION,
        url=f"{name}.tar",
        split=name.rpartition("-")[0],
        examples=len(shard.entries),
        num_frames=num_frames,
        seconds=num_frames / FRAME_RATE,
        bytes=file.size,
        sha256=file.digest.hexdigest(),
        audio_member=audio_member,
        dropped=_count_dropped(shard.dropped),
        dropped_tracks=shard.dropped,
        plan_fingerprint=plan_fingerprint,
        teachers={spec.name: spec.fingerprint for spec in specs},
        backend=dict(backend),
        statistics=shard.statistics,
        members=shard.entries,
    )
    storage.publish_bytes(record_location, storage.json_bytes(record.model_dump(mode="json")))
    return record


class _Contents:
    """What has gone into a tar so far: all the record will say about it."""

    def __init__(self, specs: Sequence[TargetSpec], audio_member: AudioMember) -> None:
        self.specs = specs
        self.audio_member = audio_member
        self.offset = 0
        self.keys: set[str] = set()
        self.entries: list[ExampleEntry] = []
        self.dropped: list[DroppedTrack] = []
        self.statistics = {spec.name: empty(spec) for spec in specs}

    def add(self, outcome: Example | DroppedTrack, tar: webdataset.TarWriter) -> None:
        if isinstance(outcome, DroppedTrack):
            self.dropped.append(outcome)
            return
        if outcome.key in self.keys:
            raise ValueError(f"example key {outcome.key} comes twice in one shard")
        members = encode_example(outcome, self.specs, self.audio_member)
        tar.write({"__key__": outcome.key, **members})
        spans = self._locate(members)
        assert self.offset == tar.tarstream.offset, "the tar library laid members out in another way"
        self.keys.add(outcome.key)
        self.entries.append(ExampleEntry(key=outcome.key, num_frames=outcome.info.num_frames, members=spans))
        for spec in self.specs:
            partial = measure(spec, outcome.targets[spec.name])
            self.statistics[spec.name] = merge(self.statistics[spec.name], partial)

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


def _count_dropped(tracks: Iterable[DroppedTrack]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for track in tracks:
        counts[track.reason] += track.segments
    return dict(counts)
