"""What a shard set holds, from index.json and the shards' records alone: no tar is opened.

Totals, statistics and drops are those of the index. Lengths, dropped tracks and segments, and the use of every code
come from the records; of a very large set an even share of the records is read, and `records_read` says how many.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field, JsonValue

from mert_foundry.pipeline.frames import FRAME_RATE
from mert_foundry.pipeline.inspection.difference import Difference, compare_settings, difference
from mert_foundry.pipeline.inspection.spread import Spread, spread
from mert_foundry.pipeline.manifest.shifted_track import split_key
from mert_foundry.pipeline.shards.companding import Companding
from mert_foundry.pipeline.shards.index import (
    Augment,
    Selection,
    ShardEntry,
    ShardIndex,
    SplitTotals,
    load_index,
    load_records,
)
from mert_foundry.pipeline.shards.record import DroppedSegment, DroppedTrack, ShardRecord
from mert_foundry.pipeline.shards.set_statistics import sum_records
from mert_foundry.pipeline.shards.statistics import DiscreteSummary, Partial, Summary
from mert_foundry.pipeline.shards.text import OF_TEXT, TEXT_MEMBER, TOKENS_MEMBER, TextSpec, count_tokens
from mert_foundry.pipeline.storage.documents import Document

MOST_RECORDS = 2000


class SplitSummary(Document):
    """One split."""

    shards: int = Field(description="Number of shards")
    examples: int = Field(description="Number of examples")
    hours: float | None = Field(description="Audio hours; null of text alone")
    tokens: int | None = Field(description="Tokens of text alone; null where there is audio")
    bytes: int = Field(description="Bytes of all tars")
    bytes_per_second: float | None = Field(description="Bytes of tar per audio second; null of text alone")


class TargetSummary(Document):
    """One target: what it is, who made it, statistics of its values."""

    name: str = Field(description="Member name: {key}.{name}.npy")
    kind: str = Field(description="discrete or continuous")
    dtype: str = Field(description="NumPy dtype in the shard")
    frame_rate: int = Field(description="Frames per second")
    size: int = Field(description="Codebooks (discrete) or bins (continuous)")
    codebook_size: int | None = Field(description="Entries per codebook; none if continuous")
    companding: Companding | None = Field(
        default=None, description="What the levels of a uint8 target mean; none otherwise"
    )
    teacher: dict[str, JsonValue] = Field(description="Settings of the teacher")
    fingerprint: str = Field(description="SHA-256 over the teacher's weights and settings")
    statistics: Summary = Field(
        description="Usage (0 to 1) and perplexity by codebook, or mean and standard deviation by bin"
    )


class TextSummary(Document):
    """The text of a set: what it is made of, how long it is, and how much of its vocabulary is used."""

    spec: TextSpec = Field(description="As in index.json")
    usage: float = Field(description="Share of the vocabulary that comes in the text, 0 to 1")
    perplexity: float = Field(description="exp of the entropy of the tokens")
    examples: int = Field(description="Examples, in the records read")
    without_text: int = Field(description="Those of them that have no text")
    tokens: Spread | None = Field(description="Tokens of the examples with text, in the records read")


class ShardSummary(Document):
    """What `mert inspect SHARD_FOLDER --json` prints."""

    kind: str = Field(default="shards", description="What the location is")
    location: str = Field(description="Shard folder")
    name: str = Field(description="Name of the set")
    index_sha256: str = Field(description="SHA-256 of index.json; names the set down to the last byte")
    manifest_sha256: str = Field(description="SHA-256 of the manifest it was made from")
    selection: Selection = Field(description="The part of the manifest that was taken")
    augment: Augment = Field(description="Which copies stand beside the tracks")
    sample_rate: int = Field(description="Hz")
    hop: int = Field(description="Samples per target frame")
    segment_seconds: float = Field(description="Length of a whole segment, seconds")
    audio_member: str | None = Field(description="How audio is stored; null: there is none, text alone")
    splits: dict[str, SplitSummary] = Field(description="By split")
    targets: list[TargetSummary] = Field(description="The targets of every example")
    text: TextSummary | None = Field(description="The text of the examples; null where the set has none")
    records: int = Field(description="Shards, and so records, in the set")
    records_read: int = Field(description="Records read for what follows: all, or an even share of a very large set")
    tracks: int = Field(description="Tracks with an example, in the records read, shifted copies included")
    copies: int = Field(description="Shifted copies among these tracks")
    example_seconds: Spread | None = Field(description="Lengths of examples, seconds, in the records read")
    track_seconds: Spread | None = Field(description="Lengths of tracks, seconds, in the records read")
    example_tokens: Spread | None = Field(description="Of text alone: lengths of examples, tokens, in the records read")
    track_tokens: Spread | None = Field(description="Of text alone: lengths of documents, tokens, in the records read")
    dropped: dict[str, int] = Field(description="Segments dropped by the labellers, by reason, in the whole set")
    dropped_tracks: list[DroppedTrack] = Field(description="Every track dropped, in the records read")
    dropped_segments: list[DroppedSegment] = Field(
        description="Every segment dropped of other tracks, in the records read"
    )
    rejected: dict[str, int] | None = Field(
        description="Files rejected by the manifest, by reason; null when no manifest was named"
    )


@dataclass(frozen=True)
class ShardSet:
    """A shard folder, with the records read: what the summary and the plots are made from.

    `example_lengths` and `track_lengths` `[n]`: seconds, or tokens of text alone; `partials` sums per target over the
    records read.
    """

    folder: str
    index: ShardIndex
    records: list[ShardRecord]
    example_lengths: np.ndarray
    track_lengths: np.ndarray
    partials: dict[str, Partial]


def load_shard_set(folder: str) -> ShardSet:
    """Read index and records. Raises as `load_index` and `load_listed_record`."""
    index = load_index(folder)
    records = load_records(folder, subsample(index.shardlist, MOST_RECORDS))
    partials, _ = sum_records(index.targets, records, index.text)
    unit = FRAME_RATE if index.has_audio else 1
    return ShardSet(
        folder=folder,
        index=index,
        records=records,
        example_lengths=np.array([entry.num_frames for record in records for entry in record.members]) / unit,
        track_lengths=np.array([frames for record in records for frames in record.track_frames().values()]) / unit,
        partials=partials,
    )


def subsample(entries: Sequence[ShardEntry], most: int) -> list[ShardEntry]:
    """All entries, or `most` of them at even distances."""
    if len(entries) <= most:
        return list(entries)
    return [entries[number * len(entries) // most] for number in range(most)]


def summarise_shard_set(shard_set: ShardSet, rejected: dict[str, int] | None = None) -> ShardSummary:
    """The summary of a set that was read; `rejected` counts the files that its manifest rejected, by reason."""
    index = shard_set.index
    lengths = spread(shard_set.example_lengths), spread(shard_set.track_lengths)
    (example_seconds, track_seconds), (example_tokens, track_tokens) = (
        (lengths, (None, None)) if index.has_audio else ((None, None), lengths)
    )
    return ShardSummary(
        location=shard_set.folder,
        name=index.name,
        index_sha256=index.digest(),
        manifest_sha256=index.manifest_sha256,
        selection=index.selection,
        augment=index.augment,
        sample_rate=index.sample_rate,
        hop=index.hop,
        segment_seconds=index.segment_seconds,
        audio_member=index.audio_member,
        splits={
            split: SplitSummary(
                shards=totals.shards,
                examples=totals.examples,
                hours=totals.seconds / 3600 if index.has_audio else None,
                tokens=None if index.has_audio else index.num_frames(split),
                bytes=totals.bytes,
                bytes_per_second=bytes_per_second(totals) if index.has_audio else None,
            )
            for split, totals in index.totals.items()
        },
        targets=[TargetSummary(**spec.model_dump(), statistics=index.statistics[spec.name]) for spec in index.targets],
        text=summarise_text(shard_set, index.text) if index.text else None,
        records=len(index.shardlist),
        records_read=len(shard_set.records),
        tracks=len(shard_set.track_lengths),
        copies=sum(bool(split_key(key)[1]) for record in shard_set.records for key in record.track_frames()),
        example_seconds=example_seconds,
        track_seconds=track_seconds,
        example_tokens=example_tokens,
        track_tokens=track_tokens,
        dropped=dict(sorted(index.dropped.items())),
        dropped_tracks=[drop for record in shard_set.records for drop in record.dropped_tracks],
        dropped_segments=[drop for record in shard_set.records for drop in record.dropped_segments],
        rejected=rejected,
    )


def bytes_per_second(totals: SplitTotals) -> float:
    """Bytes of tar per audio second; 0 of an empty split."""
    return totals.bytes / totals.seconds if totals.seconds else 0.0


def summarise_text(shard_set: ShardSet, spec: TextSpec) -> TextSummary:
    """The text of a set that has some; lengths are those of the members that the records list."""
    lengths = [
        count_tokens(entry.members[TOKENS_MEMBER][1], spec) for record in shard_set.records for entry in record.members
    ]
    statistics = shard_set.index.statistics[OF_TEXT]
    assert isinstance(statistics, DiscreteSummary), "tokens are counted"
    return TextSummary(
        spec=spec,
        usage=statistics.usage[0],
        perplexity=statistics.perplexity[0],
        examples=len(lengths),
        without_text=lengths.count(0),
        tokens=spread(np.array([length for length in lengths if length])),
    )


def compare_shard_sets(first: str, second: str) -> Difference:
    """Examples by key, from the records of all shards. Raises as `load_index` and `load_listed_record`."""
    indexes = [load_index(folder) for folder in (first, second)]
    settings = compare_settings(*map(_index_settings, indexes))
    rows = [_example_rows(folder, index) for folder, index in zip((first, second), indexes, strict=True)]
    return difference("shards difference", first, second, settings, "examples", *rows)


def _index_settings(index: ShardIndex) -> dict[str, JsonValue]:
    return {
        "manifest_sha256": index.manifest_sha256,
        "selection": index.selection.model_dump(),
        "augment": index.augment.model_dump(mode="json"),
        "segment_seconds": index.segment_seconds,
        "audio_member": index.audio_member,
        "targets": {spec.name: spec.model_dump(mode="json", exclude={"name"}) for spec in index.targets},
        "text": index.text.model_dump(mode="json") if index.text else None,
        "totals": {split: totals.model_dump(exclude={"seconds"}) for split, totals in index.totals.items()},
        "dropped": {**index.dropped},
    }


def _example_rows(folder: str, index: ShardIndex) -> dict[str, dict[str, JsonValue]]:
    """Key to split, frames, and the CRC-32 of each member but the json, which repeats the rest."""
    rows = {}
    for record in load_records(folder, index.shardlist):
        for entry in record.members:
            content: dict[str, JsonValue] = {"split": record.split, "frames": entry.num_frames}
            for suffix, (_, _, checksum) in entry.members.items():
                if suffix == index.audio_member:
                    content["audio"] = checksum
                elif suffix == TEXT_MEMBER:
                    content["text"] = checksum
                elif suffix != "json":
                    content[f"relabelled {suffix.removesuffix('.npy')}"] = checksum
            rows[entry.key] = content
    return rows
