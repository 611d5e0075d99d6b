"""What a manifest holds: tracks and hours by split, group and format, lengths and levels, rejected files by reason."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import yaml
from pydantic import Field, JsonValue

from mert_foundry.pipeline.inspection.difference import Difference, compare_settings, difference
from mert_foundry.pipeline.inspection.spread import Spread, spread
from mert_foundry.pipeline.manifest.rows import (
    Manifest,
    Reject,
    Track,
    count_streams_and_notes,
    load_manifest,
    load_rejects,
)
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.documents import Document


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
    """A manifest folder, read whole."""

    folder: str
    manifest: Manifest
    config: dict[str, JsonValue]
    rejects: list[Reject]


def load_manifest_folder(folder: str) -> ManifestFolder:
    """Read the three files. Raises as `load_manifest`, and ValueError naming a line that is no reject."""
    manifest = load_manifest(folder)
    config = yaml.safe_load(files.read_bytes(files.join(folder, "manifest.yaml"))).get("config", {})
    return ManifestFolder(folder=folder, manifest=manifest, config=config, rejects=load_rejects(folder))


def count_by_reason(rejects: list[Reject]) -> dict[str, int]:
    """Files rejected, by reason, the most frequent first."""
    return dict(Counter(reject.reason for reject in rejects).most_common())


def summarise_manifest(read: ManifestFolder) -> ManifestSummary:
    """The summary of a manifest that was read."""
    tracks = read.manifest.tracks
    groups = _totals_by(tracks, lambda track: track.group)
    return ManifestSummary(
        location=read.folder,
        root=read.manifest.root,
        manifest_sha256=read.manifest.sha256,
        config=read.config,
        splits=_totals_by(tracks, lambda track: track.split),
        formats=_totals_by(tracks, lambda track: track.format),
        sample_rates=_totals_by(tracks, lambda track: f"{track.sample_rate} Hz x {track.channels}"),
        groups=dict(sorted(groups.items(), key=lambda item: (-item[1].hours, item[0]))),
        track_seconds=spread([track.seconds for track in tracks]),
        loudness_lufs=_spread_of(tracks, "loudness_lufs"),
        peak_dbfs=_spread_of(tracks, "peak_dbfs"),
        clipped_share=_spread_of(tracks, "clipped_share"),
        **count_streams_and_notes(tracks),
        rejected=count_by_reason(read.rejects),
        rejects=read.rejects,
    )


def _spread_of(tracks: list[Track], field: str) -> Spread | None:
    """Over the tracks that have the field: older manifests have none."""
    return spread([value for track in tracks if (value := getattr(track, field)) is not None])


def _totals_by(tracks: list[Track], name: Callable[[Track], str]) -> dict[str, TrackTotals]:
    members: dict[str, list[Track]] = {}
    for track in tracks:
        members.setdefault(name(track), []).append(track)
    return {
        label: TrackTotals(
            tracks=len(rows),
            hours=sum(track.seconds for track in rows) / 3600,
            bytes=sum(track.bytes for track in rows),
        )
        for label, rows in sorted(members.items())
    }


def compare_manifests(first: ManifestFolder, second: ManifestFolder) -> Difference:
    """Tracks by key; rejects by path."""
    settings = compare_settings(_manifest_settings(first), _manifest_settings(second))
    rows = [
        {track.key: _track_content(track) for track in read.manifest.tracks}
        | {f"rejected: {reject.path}": {"reason": reject.reason} for reject in read.rejects}
        for read in (first, second)
    ]
    return difference("manifest difference", first.folder, second.folder, settings, "tracks and rejected files", *rows)


def _manifest_settings(read: ManifestFolder) -> dict[str, JsonValue]:
    splits: dict[str, int] = {}
    for track in read.manifest.tracks:
        splits[track.split] = splits.get(track.split, 0) + 1
    return {"root": read.manifest.root, "config": read.config, "tracks": {**splits}}


def _track_content(track: Track) -> dict[str, JsonValue]:
    return {
        "split": track.split,
        "path": track.path,
        "group": track.group,
        "audio": track.audio_sha256,
        "file": track.sha256,
        "format": track.format,
    }
