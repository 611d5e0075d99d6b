"""What resuming and the index must know of finished shards, of many shards in one document: a hundredth of their
records.

Counts of codes are added up, which is exact in any order. Sums of values are kept by shard, so that the index adds them
in the order of the shards, whatever order they were finished in.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from mert_foundry.pipeline.shards.record import NAME_PATTERN, ShardRecord, encode_record
from mert_foundry.pipeline.shards.statistics import ContinuousSums, DiscreteCounts

FORM_VERSION = 1
STORED = np.dtype("<f8")


class ShardState(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One finished shard; `sums` by continuous target: float64 [3 + 2 bins], count, minimum, maximum, sums, sums of
    squares.
    """

    name: Annotated[str, Meta(pattern=NAME_PATTERN + "$")]
    tar_bytes: int
    sha256: str
    record_bytes: int
    record_sha256: str
    examples: int
    num_frames: int
    plan_fingerprint: str
    dropped: dict[str, int]
    sums: dict[str, bytes]


class _Stored(msgspec.Struct, forbid_unknown_fields=True):
    """The document; `counts` by discrete target: [codebooks][entries]."""

    form_version: int
    teachers: dict[str, str]
    audio_member: str | None
    counts: dict[str, list[list[int]]]
    shards: list[ShardState]


@dataclass(frozen=True)
class RecordSums:
    """Finished shards with the same teachers and audio member; `counts` int64 [codebooks, entries] by discrete target,
    of all.
    """

    teachers: Mapping[str, str]
    audio_member: str | None
    counts: Mapping[str, np.ndarray]
    shards: list[ShardState]

    @property
    def likeness(self) -> tuple:
        """What shards must have in common to be joined."""
        shapes = sorted((name, counts.shape) for name, counts in self.counts.items())
        return tuple(sorted(self.teachers.items())), self.audio_member, tuple(shapes)

    def to_bytes(self) -> bytes:
        """The document."""
        counts = {name: array.tolist() for name, array in self.counts.items()}
        stored = _Stored(FORM_VERSION, dict(self.teachers), self.audio_member, counts, self.shards)
        return msgspec.json.encode(stored, order="sorted")


def parse_sums(location: str, content: bytes) -> RecordSums:
    """What `to_bytes` wrote. Raises ValueError naming `location`, also for another version of the form."""
    try:
        stored = msgspec.json.decode(content, type=_Stored)
        if stored.form_version != FORM_VERSION:
            raise ValueError(f"form_version {stored.form_version}, this is version {FORM_VERSION}")
        counts = {name: np.array(levels, np.int64) for name, levels in stored.counts.items()}
    except ValueError as error:
        raise ValueError(f"{location}: {error}") from error
    return RecordSums(stored.teachers, stored.audio_member, counts, stored.shards)


def summarise_record(record: ShardRecord, content: bytes | None = None) -> RecordSums:
    """What is kept of one record; `content` of its file, where that was read."""
    content = encode_record(record) if content is None else content
    counts, sums = {}, {}
    for name, partial in record.statistics.items():
        if isinstance(partial, DiscreteCounts):
            counts[name] = np.array(partial.counts, np.int64)
        else:
            sums[name] = _pack(partial)
    state = ShardState(
        name=record.name,
        tar_bytes=record.bytes,
        sha256=record.sha256,
        record_bytes=len(content),
        record_sha256=hashlib.sha256(content).hexdigest(),
        examples=record.examples,
        num_frames=record.num_frames,
        plan_fingerprint=record.plan_fingerprint,
        dropped=record.dropped,
        sums=sums,
    )
    return RecordSums(record.teachers, record.audio_member, counts, [state])


def join_sums(parts: Iterable[RecordSums]) -> RecordSums:
    """All of at least one, in the order of their names; they have the same likeness."""
    first, *others = parts
    counts = {name: array.copy() for name, array in first.counts.items()}
    shards = list(first.shards)
    for part in others:
        shards += part.shards
        for name, array in part.counts.items():
            counts[name] += array
    return RecordSums(first.teachers, first.audio_member, counts, sorted(shards, key=lambda state: state.name))


def add_sums(rows: Iterable[bytes]) -> ContinuousSums:
    """The sums of at least one shard, added one after the other as `statistics.merge` adds them."""
    total = np.zeros(0)
    smallest, largest = np.inf, -np.inf
    for content in rows:
        row = np.frombuffer(content, STORED)
        if not len(total):
            total = np.zeros(len(row) - 2)
        total[0] += row[0]
        total[1:] += row[3:]
        if row[0]:
            smallest, largest = min(smallest, row[1]), max(largest, row[2])
    count, bins = int(total[0]), len(total) // 2
    return ContinuousSums(
        count=count,
        minimum=float(smallest) if count else None,
        maximum=float(largest) if count else None,
        sum=total[1 : 1 + bins].tolist(),
        sum_of_squares=total[1 + bins :].tolist(),
    )


def _pack(partial: ContinuousSums) -> bytes:
    ends = [np.nan if end is None else end for end in (partial.minimum, partial.maximum)]
    return np.array([partial.count, *ends, *partial.sum, *partial.sum_of_squares], STORED).tobytes()
