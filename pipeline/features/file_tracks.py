"""The tracks of a manifest, or of a folder of audio without one, decoded from their files."""

import math

import msgspec

from mert_foundry.pipeline.audio.track_audio import TrackAudio
from mert_foundry.pipeline.features.plan import FilePlace, SourceTrack
from mert_foundry.pipeline.frames import HOP, resampled_length, whole_frames
from mert_foundry.pipeline.manifest.decode_track import decode_track
from mert_foundry.pipeline.manifest.rows import Manifest, Track, load_manifest, row_values

TEXTS = ("path", "format", "sha256", "audio_sha256", "stream")
NUMBERS = ("sample_rate", "channels", "bytes")
LEVELS = ("peak_dbfs", "loudness_lufs", "clipped_share")


class FileTracks:
    """The tracks below `root`."""

    def __init__(self, root: str):
        self.root = root

    def open(self, track: SourceTrack) -> TrackAudio:
        """Decode a track. Raises as `decode_track`."""
        assert isinstance(track.place, FilePlace)
        return decode_track(msgspec.convert(track.place.row, Track), self.root)


def list_manifest(folder: str) -> tuple[Manifest, list[SourceTrack]]:
    """A manifest folder, and its tracks sorted by key. Raises as `load_manifest`."""
    manifest = load_manifest(folder)
    return manifest, [source_track(track, track.split) for track in sorted(manifest.tracks, key=lambda row: row.key)]


def source_track(track: Track, split: str) -> SourceTrack:
    """A row of a manifest as a track to take features of."""
    return SourceTrack(
        key=track.key,
        num_samples=stored_samples(track),
        split=split,
        group=track.group,
        place=FilePlace(row=row_values(track) | {"notes": list(track.notes)}),
    )


def stored_samples(track: Track) -> int:
    """Samples at 24 kHz, cut to whole hops of 320."""
    return whole_frames(resampled_length(track.num_samples, track.sample_rate)) * HOP


def manifest_columns(rows: list[Track]) -> dict[str, list]:
    """Columns of a manifest for the track table of a store; NaN where a level is not known."""
    columns: dict[str, list] = {name: [getattr(row, name) for row in rows] for name in (*TEXTS, *NUMBERS)}
    levels = {name: [getattr(row, name) for row in rows] for name in LEVELS}
    return columns | {name: [math.nan if x is None else x for x in values] for name, values in levels.items()}
