"""What differs between two manifests: settings, tracks added, removed, changed or moved to another split."""

from pydantic import JsonValue

from pipeline.dataset_difference import Difference, compare_settings, difference
from pipeline.manifest import Track
from pipeline.manifest_summary import ManifestFolder


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
    return {"root": read.manifest.root, "config": read.config, "tracks": splits}


def _track_content(track: Track) -> dict[str, JsonValue]:
    return {
        "split": track.split,
        "path": track.path,
        "group": track.group,
        "audio": track.audio_sha256,
        "file": track.sha256,
        "format": track.format,
    }
