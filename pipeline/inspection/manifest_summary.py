"""What a manifest holds: tracks and hours by split, group and format, lengths and levels, rejected files by reason."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from pydantic import Field, JsonValue

from mert_foundry.pipeline.inspection.difference import Difference, RowChange, compare_settings, row_change
from mert_foundry.pipeline.inspection.spread import Spread, spread
from mert_foundry.pipeline.manifest.rows import (
    Reject,
    Track,
    count_streams_and_notes,
    load_rejects,
    read_summary,
    stream_tracks,
)
from mert_foundry.pipeline.storage.documents import Document

SPREAD_OVER = ("seconds", "loudness_lufs", "peak_dbfs", "clipped_share")


class TrackTotals(Document):
    """Sums over the tracks of a split, group, format or sample rate."""

    tracks: int = Field(description="Number of tracks")
    hours: float = Field(description="Audio hours")
    bytes: int = Field(description="Bytes of the files")


class ManifestSummary(Document):
    """What `mert inspect MANIFEST_FOLDER --json` prints."""

    kind: str = Field(default="manifest", description="What the location is")
    location: str = Field(description="Manifest folder")
    root: str = Field(description="Where the paths start")
    manifest_sha256: str = Field(description="SHA-256 of manifest.jsonl")
    config: dict[str, JsonValue] = Field(description="Settings of mert manifest")
    splits: dict[str, TrackTotals] = Field(description="By split")
    formats: dict[str, TrackTotals] = Field(description="By container and codec")
    sample_rates: dict[str, TrackTotals] = Field(description="By sample rate and number of channels")
    groups: dict[str, TrackTotals] = Field(description="By group, the one with the most hours first")
    track_seconds: Spread | None = Field(description="Lengths of tracks, seconds")
    loudness_lufs: Spread | None = Field(description="Integrated loudness of tracks as stored, LUFS")
    peak_dbfs: Spread | None = Field(description="Peaks of tracks as stored, dB full scale")
    clipped_share: Spread | None = Field(description="Share of samples of tracks beyond full scale")
    one_of_several_streams: int = Field(description="Tracks of files with several streams")
    notes: dict[str, int] = Field(description="Tracks by note of what was corrected")
    rejected: dict[str, int] = Field(description="Files rejected, by reason")
    rejects: list[Reject] = Field(description="Every rejected file")


@dataclass(frozen=True)
class ManifestFolder:
    """A manifest folder in figures.

    totals: by what (split, format, sample_rate, group) and by name. values: by field of a track, of the tracks that
    have it; older manifests have no levels. config, streams_and_notes: as in manifest.yaml.
    """

    folder: str
    root: str
    sha256: str
    config: dict[str, JsonValue]
    totals: dict[str, dict[str, TrackTotals]]
    values: dict[str, array]
    streams_and_notes: dict
    rejects: list[Reject]


def load_manifest_folder(folder: str) -> ManifestFolder:
    """Read the three files, track by track.

    Raises as `load_manifest`, and ValueError naming a line that is no reject.
    """
    summary = read_summary(folder)
    sums: dict[str, dict[str, list[float]]] = {what: {} for what in ("split", "format", "sample_rate", "group")}
    values: dict[str, array] = {name: array("d") for name in SPREAD_OVER}

    def follow(tracks: Iterable[Track]) -> Iterator[Track]:
        for track in tracks:
            _add(track, sums, values)
            yield track

    streams_and_notes = count_streams_and_notes(follow(stream_tracks(folder, summary["manifest_sha256"])))
    totals = {
        what: {
            name: TrackTotals(tracks=int(count), hours=seconds / 3600, bytes=int(size))
            for name, (count, seconds, size) in sorted(by_name.items())
        }
        for what, by_name in sums.items()
    }
    root, digest, config = summary["root"], summary["manifest_sha256"], summary.get("config", {})
    return ManifestFolder(folder, root, digest, config, totals, values, streams_and_notes, load_rejects(folder))


def _add(track: Track, sums: dict[str, dict[str, list[float]]], values: dict[str, array]) -> None:
    for what, by_name in sums.items():
        name = f"{track.sample_rate} Hz x {track.channels}" if what == "sample_rate" else getattr(track, what)
        entry = by_name.get(name)
        if entry is None:
            entry = by_name[name] = [0, 0.0, 0]
        entry[0] += 1
        entry[1] += track.seconds
        entry[2] += track.bytes
    for field, column in values.items():
        if (value := getattr(track, field)) is not None:
            column.append(value)


def count_by_reason(rejects: list[Reject]) -> dict[str, int]:
    """Files rejected, by reason, the most frequent first."""
    return dict(Counter(reject.reason for reject in rejects).most_common())


def summarise_manifest(read: ManifestFolder) -> ManifestSummary:
    """The summary of a manifest that was read."""
    return ManifestSummary(
        location=read.folder,
        root=read.root,
        manifest_sha256=read.sha256,
        config=read.config,
        splits=read.totals["split"],
        formats=read.totals["format"],
        sample_rates=read.totals["sample_rate"],
        groups=dict(sorted(read.totals["group"].items(), key=lambda item: (-item[1].hours, item[0]))),
        track_seconds=spread(read.values["seconds"]),
        loudness_lufs=spread(read.values["loudness_lufs"]),
        peak_dbfs=spread(read.values["peak_dbfs"]),
        clipped_share=spread(read.values["clipped_share"]),
        **read.streams_and_notes,
        rejected=count_by_reason(read.rejects),
        rejects=read.rejects,
    )


def compare_manifests(first: str, second: str) -> Difference:
    """Tracks by key, read from both folders side by side; rejects by path. Raises as `load_manifest_folder`."""
    documents = [read_summary(folder) for folder in (first, second)]
    counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    streams = [
        _counting(count, folder, stream_tracks(folder, document["manifest_sha256"]))
        for folder, document, count in zip((first, second), documents, counts)
    ]
    rejects = [{f"rejected: {reject.path}": reject.reason for reject in load_rejects(at)} for at in (first, second)]
    added: list[str] = []
    removed: list[str] = []
    changed: list[RowChange] = []
    for key, left, right in chain(_side_by_side(*streams), _join_rejects(*rejects)):
        if left is None or right is None:
            (added if left is None else removed).append(key)
        elif left != right and (change := row_change(key, left, right)):
            changed.append(change)
    settings = compare_settings(*(_settings(*both) for both in zip(documents, counts)))
    return Difference(
        kind="manifest difference",
        first=first,
        second=second,
        same=not (settings or added or removed or changed),
        settings=settings,
        rows="tracks and rejected files",
        added=sorted(added),
        removed=sorted(removed),
        changed=sorted(changed, key=lambda change: change.key),
    )


Content = dict[str, JsonValue]


def _counting(splits: Counter[str], folder: str, tracks: Iterable[Track]) -> Iterator[Track]:
    """Pass tracks on and count them by split. Raises ValueError when they are not sorted by key."""
    last = ""
    for track in tracks:
        if track.key <= last:
            raise ValueError(f"{folder}/manifest.jsonl: key {track.key} after {last}: the rows are not sorted by key")
        last = track.key
        splits[track.split] += 1
        yield track


def _side_by_side(
    first: Iterator[Track], second: Iterator[Track]
) -> Iterator[tuple[str, Content | None, Content | None]]:
    """Each key of two manifests, with the content in each; equal rows are left out."""
    left, right = next(first, None), next(second, None)
    while left is not None or right is not None:
        if left is not None and (right is None or left.key < right.key):
            yield left.key, _track_content(left), None
            left = next(first, None)
        elif right is not None and (left is None or right.key < left.key):
            yield right.key, None, _track_content(right)
            right = next(second, None)
        elif left is not None and right is not None:
            if left != right:
                yield left.key, _track_content(left), _track_content(right)
            left, right = next(first, None), next(second, None)


def _join_rejects(
    first: Mapping[str, str], second: Mapping[str, str]
) -> Iterator[tuple[str, Content | None, Content | None]]:
    for key in first.keys() | second.keys():
        left, right = (_reason(reasons, key) for reasons in (first, second))
        yield key, left, right


def _reason(reasons: Mapping[str, str], key: str) -> Content | None:
    return {"reason": reasons[key]} if key in reasons else None


def _settings(document: dict, splits: Mapping[str, int]) -> dict[str, JsonValue]:
    return {"root": document["root"], "config": document.get("config", {}), "tracks": {**splits}}


def _track_content(track: Track) -> Content:
    return {
        "split": track.split,
        "path": track.path,
        "group": track.group,
        "audio": track.audio_sha256,
        "file": track.sha256,
        "format": track.format,
    }
