"""Tracks to rows of a feature store, and rows to parts: the unit of work, and of storage.

The rows of all tracks follow one another without gaps: a row is a frame, or a whole track when features are pooled.
A part is a fixed number of rows, so a long track may go on in the next part.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from pydantic import Field, JsonValue

from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE, resampled_length, whole_frames
from mert_foundry.pipeline.storage.documents import Document


class FilePlace(Document):
    """A track that is a file of its own."""

    row: dict[str, JsonValue] = Field(description="Its row of manifest.jsonl")


class ShardPlace(Document):
    """Where a track lies in a shard set."""

    shard: int = Field(ge=0, description="Number of the shard in the shard list")
    examples: tuple[int | None, ...] = Field(
        description="Numbers of its segments in the shard, in order; none of one that was dropped"
    )
    frames: tuple[int, ...] = Field(description="Target frames of each segment")
    audio: tuple[int | None, ...] = Field(
        description="CRC-32 of each segment's audio member, or of its tokens; none of one that was dropped"
    )


class ClipPlace(Document):
    """A stretch of a file."""

    path: str = Field(description="The file, relative to the root of the input")
    bytes: int | None = Field(description="Size of the file; null where it was not there")
    changed: str | None = Field(default=None, description="When the file changed last, as its file system says it")
    start: float = Field(ge=0, description="Seconds from the start of the file")
    end: float | None = Field(description="Seconds from the start of the file; null: its end")
    file_samples: int | None = Field(
        default=None, description="Samples of the file at 24 kHz, cut to whole hops, where they are known"
    )

    def first_sample(self, sample_rate: int) -> int:
        """Where the stretch begins in the file at a rate, Hz."""
        return round(self.start * sample_rate)

    def num_samples(self, sample_rate: int, file_samples: int | None) -> int | None:
        """Samples of the stretch, cut to whole hops of 320, in a file of so many samples at that rate, Hz.

        Without `file_samples`: as `end` says; None where there is no `end`.
        """
        stops = [file_samples, None if self.end is None else round(self.end * sample_rate)]
        known = [stop for stop in stops if stop is not None]
        return whole_frames(max(0, min(known) - self.first_sample(sample_rate))) * HOP if known else None


class SourceTrack(Document):
    """A track to take features of: a file, a stretch of one, or the segments of one in a shard."""

    key: str = Field(description="Stable id")
    num_samples: int | None = Field(
        ge=0, description="Samples at 24 kHz, cut to whole hops of 320; null: not known before it is decoded"
    )
    split: str = Field(description="Split it belongs to; empty where there is none")
    group: str = Field(description="What must not straddle splits; empty where it is not known")
    place: FilePlace | ShardPlace | ClipPlace = Field(description="Where its audio lies")

    @property
    def seconds(self) -> float:
        """Its length, seconds; 0 where it is not known."""
        return (self.num_samples or 0) / SAMPLE_RATE

    @property
    def source(self) -> str:
        """What is decoded for it: the same text for all stretches of a file."""
        return self.place.path if isinstance(self.place, ClipPlace) else self.key

    def samples_at(self, sample_rate: int) -> int | None:
        """Samples of the track at another rate, Hz, as `audio_at` of pipeline/audio/track_audio.py gives it."""
        if isinstance(self.place, ClipPlace):
            whole = self.place.file_samples
            return self.place.num_samples(sample_rate, None if whole is None else samples_at_rate(whole, sample_rate))
        return None if self.num_samples is None else samples_at_rate(self.num_samples, sample_rate)


def samples_at_rate(num_samples: int, sample_rate: int) -> int:
    """What so many samples at 24 kHz are at another rate, Hz, cut to whole hops of 320."""
    if sample_rate == SAMPLE_RATE:
        return num_samples
    return whole_frames(resampled_length(num_samples, SAMPLE_RATE, sample_rate)) * HOP


class TrackSpan(Document):
    """Frames [start, stop) of a track, which go to rows from `row` on of a part; pooled: all frames, to that row."""

    track: SourceTrack
    start: int = Field(ge=0, description="First frame of the track")
    stop: int | None = Field(ge=0, description="End of the frames of the track; null: all there are")
    row: int = Field(ge=0, description="Row within the part")


class Part(Document):
    """Rows [number * part_rows, number * part_rows + rows) of a store."""

    number: int = Field(ge=0, description="Number of the part, from 0")
    rows: int = Field(gt=0, description="Number of rows")
    spans: list[TrackSpan] = Field(description="What fills them, in order")
    seconds: float = Field(ge=0, description="Audio seconds, as far as they are known")

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"part {self.number}"


def tracks_digest(tracks: Sequence[SourceTrack]) -> str:
    """SHA-256 over all that is known of the tracks."""
    digest = hashlib.sha256()
    for track in tracks:
        digest.update(json.dumps(track.model_dump(), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def frame_offsets(lengths: Sequence[int]) -> np.ndarray:
    """First row of each track, and the number of rows: int64 `[tracks + 1]`."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def plan_frame_parts(
    tracks: Sequence[SourceTrack], lengths: Sequence[int], part_rows: int, frame_rate: float
) -> list[Part]:
    """Parts of `part_rows` frames; `lengths` are the frames of each track."""
    offsets = frame_offsets(lengths)

    def spans(first: int, stop: int) -> Iterator[TrackSpan]:
        track = int(np.searchsorted(offsets, first, side="right")) - 1
        while track < len(tracks) and offsets[track] < stop:
            offset = int(offsets[track])
            start, end = max(first, offset), min(stop, offset + lengths[track])
            if start < end:
                yield TrackSpan(track=tracks[track], start=start - offset, stop=end - offset, row=start - first)
            track += 1

    return _parts(int(offsets[-1]), part_rows, spans, frame_rate)


def plan_track_parts(
    tracks: Sequence[SourceTrack], lengths: Sequence[int | None], part_rows: int, frame_rate: float
) -> list[Part]:
    """Parts of `part_rows` tracks; `lengths` are the frames of each track, None where they are not known."""

    def spans(first: int, stop: int) -> Iterator[TrackSpan]:
        for number in range(first, stop):
            yield TrackSpan(track=tracks[number], start=0, stop=lengths[number], row=number - first)

    return _parts(len(tracks), part_rows, spans, frame_rate)


def _parts(
    rows: int, part_rows: int, spans: Callable[[int, int], Iterator[TrackSpan]], frame_rate: float
) -> list[Part]:
    parts = []
    for number, first in enumerate(range(0, rows, part_rows)):
        stop = min(first + part_rows, rows)
        held = list(spans(first, stop))
        seconds = sum((span.stop or span.start) - span.start for span in held) / frame_rate
        parts.append(Part(number=number, rows=stop - first, spans=held, seconds=seconds))
    return parts


class StoreLayout(Document):
    """Names, shapes and storage of the feature arrays."""

    arrays: tuple[str, ...] = Field(description="Names of the arrays")
    row: Literal["frame", "track"] = Field(description="What a row is")
    rows: int = Field(gt=0, description="Rows in all")
    layers: tuple[int, ...] = Field(description="Hidden states that are kept")
    width: int = Field(gt=0, description="Features of a layer")
    dtype: Literal["float16", "float32"] = Field(description="As stored")
    part_rows: int = Field(gt=0, description="Rows of a part, a multiple of chunk_rows")
    chunk_rows: int = Field(gt=0, description="Rows of a chunk")

    @property
    def num_parts(self) -> int:
        """Parts that the rows make."""
        return -(-self.rows // self.part_rows)

    def empty_part(self, rows: int) -> dict[str, np.ndarray]:
        """Arrays for the rows of a part, all NaN."""
        return {name: np.full((rows, len(self.layers), self.width), np.nan, self.dtype) for name in self.arrays}
