"""The tracks of a manifest, or of a folder of audio without one, decoded from their files."""

from collections.abc import Callable

from mert_foundry.pipeline.audio.track_audio import TrackAudio
from mert_foundry.pipeline.features.plan import FilePlace, SourceTrack
from mert_foundry.pipeline.frames import HOP, resampled_length, whole_frames
from mert_foundry.pipeline.manifest.decode_track import decode_track
from mert_foundry.pipeline.manifest.rows import Manifest, Reject, Track, load_manifest
from mert_foundry.pipeline.manifest.scan import ExamineAll, ManifestConfig, examine_files, examine_in_threads
from mert_foundry.pipeline.storage.files import open_filesystem


class FileTracks:
    """The tracks below `root`."""

    def __init__(self, root: str):
        self.root = root

    def open(self, track: SourceTrack) -> TrackAudio:
        """Decode a track. Raises as `decode_track`."""
        return decode_track(Track(**track.place.row), self.root)

    def close(self) -> None:
        """Nothing stays open."""


def list_manifest(folder: str) -> tuple[Manifest, list[SourceTrack]]:
    """A manifest folder, and its tracks sorted by key. Raises as `load_manifest`."""
    manifest = load_manifest(folder)
    return manifest, [
        _source_track(track, track.split) for track in sorted(manifest.tracks, key=lambda track: track.key)
    ]


def list_folder(
    root: str,
    workers: int,
    report: Callable[[float, int], None] = lambda seconds, rejected: None,
    examine_all: ExamineAll = examine_in_threads,
) -> tuple[list[SourceTrack], list[Reject]]:
    """Decode every file below a folder once; its tracks, sorted by key, and what is no usable audio, by path.

    Nothing is left out for being short, silent, clipped or a duplicate, and there are no splits: that is for a manifest to
    decide. `workers` and `examine_all` are how the files are spread. `report` is called after each file with its seconds and
    the number of rejects so far.
    """
    filesystem, path = open_filesystem(root)
    if not filesystem.isdir(path):
        raise FileNotFoundError(f"input {root}: no such folder")
    config = ManifestConfig(
        root=root,
        out=root,
        workers=workers,
        min_seconds=0.0,
        max_seconds=float("inf"),
        silence_dbfs=float("-inf"),
        max_clipped_share=1.0,
    )
    results = examine_files(config, report, examine_all)
    tracks = sorted((result for result in results if isinstance(result, Track)), key=lambda track: track.key)
    return [_source_track(track, "") for track in tracks], [result for result in results if isinstance(result, Reject)]


def _source_track(track: Track, split: str) -> SourceTrack:
    samples = whole_frames(resampled_length(track.num_samples, track.sample_rate)) * HOP
    return SourceTrack(
        key=track.key, num_samples=samples, split=split, group=track.group, place=FilePlace(row=track.model_dump())
    )
