"""The record of one shard, `{split}-{nnnnnn}.json`: written after its tar, and the mark that it is whole."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from pydantic import Field, JsonValue, model_validator

from mert_foundry.pipeline.frames import FRAME_RATE
from mert_foundry.pipeline.shards.format import KEY_PATTERN, SHA256_PATTERN, AudioMember, SegmentInfo
from mert_foundry.pipeline.shards.statistics import Partial
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.shards.text import OF_TEXT, TextSpec, find_other_tokenizer
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.documents import Document, json_bytes, parse_model

SCHEMA_VERSION = 1
NAME_PATTERN = r"^[a-z][a-z0-9]*-[0-9]{6}"  # a plain file name: no path leaves the shard folder
REASON_PATTERN = r"^[a-z_]+$"


class DroppedTrack(Document):
    """A track of the plan that gave no example."""

    track: str = Field(description="Track key of the manifest, or of a copy")
    reason: str = Field(pattern=REASON_PATTERN, description="Short reason, counted in `dropped`")
    detail: str = Field(description="The error in one line")
    segments: int = Field(ge=0, description="Segments the plan expected of it")


class DroppedSegment(SegmentInfo):
    """A segment that gave no example, of a track that gave others; its samples were zero for the teachers."""

    reason: str = Field(pattern=REASON_PATTERN, description="Short reason, counted in `dropped`")
    detail: str = Field(description="Both values in one line")


class ExampleEntry(Document):
    """Where one example lies in its tar."""

    key: str = Field(pattern=KEY_PATTERN, description="Example key, {track}-{segment:05d}")
    num_frames: int = Field(gt=0, description="Target frames, 75 per second")
    members: dict[str, tuple[int, int, int]] = Field(
        description="Member suffix to [offset of the data in the tar (bytes), size (bytes), CRC-32 of the data]"
    )

    @property
    def track(self) -> str:
        """Key of the track this is a segment of."""
        return self.key.rpartition("-")[0]

    @property
    def segment(self) -> int:
        """Its number among the segments of the track, those dropped included."""
        return int(self.key.rpartition("-")[2])


class ShardRecord(Document):
    """What a finished shard holds and where it came from."""

    schema_version: int = Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION, description="Form of this record")
    url: str = Field(pattern=NAME_PATTERN + r"\.tar$", description="File name of the tar, beside the record")
    split: str = Field(description="Split of all its tracks")
    examples: int = Field(ge=0, description="Number of examples")
    num_frames: int = Field(ge=0, description="Target frames in all examples")
    seconds: float = Field(ge=0, description="Audio seconds in all examples")
    bytes: int = Field(gt=0, description="Size of the tar")
    sha256: str = Field(pattern=SHA256_PATTERN, description="SHA-256 of the tar")
    audio_member: AudioMember | None = Field(description="How audio is stored; null: there is none, text alone")
    dropped: dict[str, int] = Field(description="Segments dropped, by reason")
    dropped_tracks: list[DroppedTrack] = Field(description="Every track dropped, in the order of the plan")
    dropped_segments: list[DroppedSegment] = Field(
        default=[], description="Every segment dropped of the other tracks, in the order of the plan"
    )
    plan_fingerprint: str = Field(description="Fingerprint of the shard's part of the plan")
    teachers: dict[str, str] = Field(
        description="Target name to teacher fingerprint; text.tokens: that of the tokenizer"
    )
    backend: dict[str, JsonValue] = Field(description="What computed the labels; never read by this project's code")
    statistics: dict[str, Partial] = Field(description="Sums per target")
    members: list[ExampleEntry] = Field(description="The examples, in the order of the tar")

    @property
    def name(self) -> str:
        """Shard name, `{split}-{nnnnnn}`."""
        return self.url.removesuffix(".tar")

    def track_frames(self) -> dict[str, int]:
        """Target frames of each track that has an example, those of its dropped segments included."""
        frames = dict.fromkeys((entry.track for entry in self.members), 0)
        segments: list[ExampleEntry | DroppedSegment] = [*self.members, *self.dropped_segments]
        for segment in segments:
            if segment.track in frames:
                frames[segment.track] += segment.num_frames
        return frames

    @model_validator(mode="after")
    def _agree(self) -> "ShardRecord":
        num_frames = sum(entry.num_frames for entry in self.members)
        dropped = count_dropped(self.dropped_tracks, self.dropped_segments)
        if self.dropped != dropped:
            raise ValueError(f"dropped {self.dropped}, dropped_tracks and dropped_segments say {dropped}")
        pairs = {
            "examples": (self.examples, len(self.members)),
            "num_frames": (self.num_frames, num_frames),
            "seconds": (self.seconds, num_frames / FRAME_RATE),
            "split": (self.split, self.name.rpartition("-")[0]),
        }
        for field, (stated, found) in pairs.items():
            if stated != found:
                raise ValueError(f"{field} {stated}, the members and name say {found}")
        return self


def count_dropped(tracks: Iterable[DroppedTrack], segments: Iterable[DroppedSegment]) -> dict[str, int]:
    """Segments dropped, by reason."""
    counts: Counter[str] = Counter()
    for track in tracks:
        counts[track.reason] += track.segments
    for segment in segments:
        counts[segment.reason] += 1
    return dict(counts)


def encode_record(record: ShardRecord) -> bytes:
    """The content of the record's file."""
    return json_bytes(record.model_dump(mode="json"))


class Labelled(Protocol):
    """A record, or the sums of many."""

    @property
    def teachers(self) -> Mapping[str, str]: ...

    @property
    def audio_member(self) -> str | None: ...


def find_misfits(
    record: Labelled, specs: Sequence[TargetSpec], audio_member: AudioMember | None, text: TextSpec | None = None
) -> Iterator[str]:
    """How a shard differs from one with these targets, this audio member and this text, a line for each difference."""
    yield from find_other_teachers({name: found for name, found in record.teachers.items() if name != OF_TEXT}, specs)
    if other := find_other_tokenizer(record.teachers, text):
        yield other
    if record.audio_member != audio_member:
        yield f"audio stored as {record.audio_member}, expected {audio_member}"


def find_other_teachers(labelled: Mapping[str, str], specs: Sequence[TargetSpec]) -> Iterator[str]:
    """The targets that other teachers made (`labelled`: name to fingerprint) than those of the specs, a
    line for each.
    """
    for spec in specs:
        found = labelled.get(spec.name)
        if found != spec.fingerprint:
            yield f"target {spec.name} was labelled by teacher {found}, this teacher is {spec.fingerprint}"
    extra = sorted(set(labelled) - {spec.name for spec in specs})
    if extra:
        yield f"targets {extra} are in the shards, none of these teachers makes them"


def load_record(folder: str, name: str) -> ShardRecord:
    """The record of shard `name` in `folder`.

    Raises FileNotFoundError when there is none, ValueError naming the file when it is not a record
    of this shard.
    """
    location = files.join(folder, f"{name}.json")
    return parse_record(location, files.read_bytes(location), name)


def parse_record(location: str, content: bytes, name: str) -> ShardRecord:
    """The record of shard `name`, of the content of a file, wherever it lies. Raises ValueError naming `location`."""
    record = parse_model(location, content, ShardRecord)
    if record.name != name:
        raise ValueError(f"{location}: is the record of {record.name}")
    return record
