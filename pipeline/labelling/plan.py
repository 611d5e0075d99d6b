"""Manifest to shard tasks: which tracks go into which shard. Same manifest and settings, same plan."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.pipeline.audio.blocks import SILENCE_DBFS
from mert_foundry.pipeline.frames import (
    AUDIO_VERSION,
    HOP,
    SAMPLE_RATE,
    count_segments,
    resampled_length,
    seconds_to_frames,
    segment_lengths,
    whole_frames,
)
from mert_foundry.pipeline.manifest.rows import REST_SPLIT, Manifest, Track, first_hours
from mert_foundry.pipeline.manifest.shifted_track import semitones_of, shift_track
from mert_foundry.pipeline.shards.format import AudioMember
from mert_foundry.pipeline.shards.index import NO_COPIES, WHOLE_MANIFEST, Augment, Selection
from mert_foundry.pipeline.text.columns import TextColumns, check_columns


class SegmentConfig(BaseModel):
    """How tracks are cut and grouped into shards."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    segment_seconds: float = Field(default=30.0, gt=0, description="Length of an example, seconds")
    shortest_seconds: float = Field(
        default=5.0,
        gt=0,
        description="A shorter remainder of a track joins its last segment; a shorter track is dropped, whatever the"
        " manifest's min_seconds; seconds",
    )
    examples_per_shard: int = Field(default=128, gt=0, description="A shard is full from here on; tracks stay whole")
    drop_silent: bool = Field(
        default=True,
        description=f"Drop segments that are silent (peak below {SILENCE_DBFS:g} dB full scale) though their track is"
        " not",
    )
    audio: AudioMember = Field(default="flac", description="How audio is stored: flac, or pcm.npy for speed")


class ShardTask(BaseModel):
    """The unit of labelling: the tracks of one shard, in order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="Shard name, {split}-{nnnnnn}")
    tracks: list[Track] = Field(description="Tracks in the order of the shard")
    config: SegmentConfig = Field(description="How tracks are cut")
    text: TextColumns | None = Field(default=None, description="What the text of a track is made of; null: no text")

    def fingerprint(self) -> str:
        """SHA-256 over everything that decides the shard's examples, except the teachers and the tokenizer."""
        tracks = [_identity(track) for track in self.tracks]
        content = {
            "audio_version": AUDIO_VERSION,
            "name": self.name,
            "tracks": tracks,
            "config": self.config.model_dump(exclude={"examples_per_shard"}),
        }
        if self.text is not None:
            content["texts"] = [self.text.text_of(track) for track in self.tracks]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def seconds(self) -> float:
        """Audio seconds of all tracks."""
        return sum(track.seconds for track in self.tracks)


def plan_shards(
    manifest: Manifest,
    config: SegmentConfig,
    selection: Selection = WHOLE_MANIFEST,
    augment: Augment = NO_COPIES,
    text: TextColumns | None = None,
) -> list[ShardTask]:
    """Shards of every split, each of whole tracks, in an order that mixes folders.

    Raises as `choose_tracks`, and as `check_columns`.
    """
    if text is not None:
        check_columns(text, manifest.tracks)
    tasks = []
    for split, tracks in choose_tracks(manifest, selection, augment).items():
        for number, members in enumerate(_fill(tracks, config)):
            tasks.append(ShardTask(name=f"{split}-{number:06d}", tracks=members, config=config, text=text))
    return tasks


def choose_tracks(manifest: Manifest, selection: Selection, augment: Augment = NO_COPIES) -> dict[str, list[Track]]:
    """The tracks to label, by split, in the order of the shards; each of train with its copies behind it.

    Only train is copied: a validation loss is to be that of the music as it is, and comparable with and without copies.

    Limited hours are shared among the splits by their hours in the manifest. A split gives its tracks in the order of
    its shards until it has its share, so what a smaller limit takes is the beginning of what a larger one takes. Copies
    come on top of limited hours.

    Raises:
        ValueError: a split that the manifest does not have (those it has are named), or no track to copy.
    """
    chosen = _choose_originals(manifest, selection)
    if augment == NO_COPIES:
        return chosen
    if REST_SPLIT not in chosen:
        raise ValueError(
            f"augment: tracks of the split {REST_SPLIT} are copied, and only {', '.join(sorted(chosen))} are labelled"
        )
    copied = [[track, *(shift_track(track, each) for each in augment.semitones)] for track in chosen[REST_SPLIT]]
    return chosen | {REST_SPLIT: [track for tracks in copied for track in tracks]}


def _choose_originals(manifest: Manifest, selection: Selection) -> dict[str, list[Track]]:
    by_split: dict[str, list[Track]] = {}
    for track in sorted(manifest.tracks, key=_mixing_order):
        by_split.setdefault(track.split, []).append(track)
    wanted = sorted(by_split) if selection.splits is None else selection.splits
    for split in wanted:
        if split not in by_split:
            raise ValueError(f"splits: the manifest has no track in {split!r}, only in {', '.join(sorted(by_split))}")
    chosen = {split: by_split[split] for split in wanted}
    if selection.limit_hours is None:
        return chosen
    hours = {split: math.fsum(track.seconds for track in tracks) / 3600 for split, tracks in chosen.items()}
    return {
        split: first_hours(tracks, selection.limit_hours * hours[split] / math.fsum(hours.values()))
        for split, tracks in chosen.items()
    }


def planned_segments(track: Track, config: SegmentConfig) -> list[int]:
    """Frames of each segment the track will give; none when it is shorter than the shortest segment."""
    return cut(_num_frames(track), config)


def cut(num_frames: int, config: SegmentConfig) -> list[int]:
    """Frames of each segment of a track of `num_frames` frames."""
    return segment_lengths(num_frames, *_bounds(config))


def _num_frames(track: Track) -> int:
    return whole_frames(resampled_length(track.num_samples, track.sample_rate))


def _bounds(config: SegmentConfig) -> tuple[int, int]:
    """Frames of a segment, and of the shortest one."""
    segment = seconds_to_frames(config.segment_seconds)
    return segment, min(segment, seconds_to_frames(config.shortest_seconds))


def _fill(tracks: list[Track], config: SegmentConfig) -> list[list[Track]]:
    shards: list[list[Track]] = []
    room, bounds = 0, _bounds(config)
    for track in tracks:
        if room <= 0:
            shards.append([])
            room = config.examples_per_shard
        shards[-1].append(track)
        room -= count_segments(_num_frames(track), *bounds)
    return shards


def _mixing_order(track: Track) -> bytes:
    return hashlib.sha256(track.key.encode()).digest()


def _identity(track: Track) -> tuple[str | int, ...]:
    """What of a track decides its examples."""
    identity = track.key, track.audio_sha256, track.sample_rate, track.num_samples
    semitones = semitones_of(track)
    return (*identity, semitones) if semitones else identity


def segment_values(track: Track, lengths: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The values of the `SegmentInfo` of each segment of a track, in order; `lengths` are their frames."""
    start = 0
    for number, frames in enumerate(lengths):
        yield {
            "track": track.key,
            "segment": number,
            "segments": len(lengths),
            "start_sample": start * HOP,
            "num_samples": frames * HOP,
            "num_frames": frames,
            "audio_sha256": track.audio_sha256,
            "sample_rate": SAMPLE_RATE,
        }
        start += frames
