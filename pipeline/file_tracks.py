"""The tracks of a manifest, or of a folder of audio without one, decoded from their files."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from pipeline.feature_plan import FilePlace, SourceTrack
from pipeline.frames import HOP, resampled_length, whole_frames
from pipeline.manifest import ManifestConfig, Reject, Track, examine, list_files, load_manifest
from pipeline.storage import open_filesystem
from pipeline.track_audio import TrackAudio, decode_track


class FileTracks:
    """The tracks below `root`."""

    def __init__(self, root: str):
        self.root = root

    def open(self, track: SourceTrack) -> TrackAudio:
        """Decode a track. Raises as `decode_track`."""
        return decode_track(Track(**track.place.row), self.root)

    def close(self) -> None:
        """Nothing stays open."""


def list_manifest(folder: str) -> tuple[str, list[SourceTrack]]:
    """Root and tracks of a manifest folder, sorted by key. Raises as `load_manifest`."""
    manifest = load_manifest(folder)
    return manifest.root, [_source_track(track, track.split) for track in sorted(manifest.tracks, key=lambda track: track.key)]


def list_folder(
    root: str, report: Callable[[float, int], None] = lambda seconds, rejected: None
) -> tuple[list[SourceTrack], list[Reject]]:
    """Decode every file below a folder once; its tracks, sorted by key, and what is no usable audio, by path.

    Nothing is left out for being short, silent or a duplicate, and there are no splits: that is for a manifest to
    decide. `report` is called after each file with its seconds and the number of rejects so far.
    """
    filesystem, path = open_filesystem(root)
    if not filesystem.isdir(path):
        raise FileNotFoundError(f"input {root}: no such folder")
    path = path.rstrip("/")
    names = sorted(name[len(path) + 1 :] for name in list_files(filesystem, path))
    config = ManifestConfig(root=root, out=root, min_seconds=0.0, silence_dbfs=float("-inf"), max_seconds=float("inf"))
    tracks: list[Track] = []
    rejects: list[Reject] = []
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for result in threads.map(lambda name: examine(name, config), names):
            (rejects if isinstance(result, Reject) else tracks).append(result)
            report(0.0 if isinstance(result, Reject) else result.seconds, len(rejects))
    return [_source_track(track, "") for track in sorted(tracks, key=lambda track: track.key)], rejects


def _source_track(track: Track, split: str) -> SourceTrack:
    samples = whole_frames(resampled_length(track.num_samples, track.sample_rate)) * HOP
    return SourceTrack(key=track.key, num_samples=samples, split=split, group=track.group, place=FilePlace(row=track.model_dump()))
