"""A track of the manifest, or a shifted copy of one, decoded, and compared with what the manifest knows of the file."""

from pathlib import Path

from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.decoding import Decoding, decode_file
from mert_foundry.pipeline.audio.track_audio import TrackAudio
from mert_foundry.pipeline.manifest.rows import Track
from mert_foundry.pipeline.manifest.shifted_track import semitones_of
from mert_foundry.pipeline.manifest.source_file import source_file
from mert_foundry.pipeline.storage.documents import file_sha256


def decode_track(track: Track, root: str, device: str = "cpu") -> TrackAudio:
    """Decode a track of the manifest, and shift it if it is a `ShiftedTrack`; `device` resamples it, to the same
    samples on any.

    Raises:
        DecodeError: `changed` when the decoded audio is not the one the manifest knows, or as `source_file` and
            `decode_file`.
        OSError: as `source_file`, naming key and file.
    """
    with source_file(root, track.path, f"track {track.key}: ") as path:
        return decode_file(path, lambda file: _check_same(track, path, file), device, semitones_of(track))


def _check_same(track: Track, path: Path, file: Decoding) -> None:
    """Raise DecodeError when a decoded file is not the track that the manifest knows."""
    digest = file.digest
    # Lossy decoders round differently on another CPU: the same file of the same length is the same music.
    if digest.hexdigest() == track.audio_sha256 or (
        digest.num_samples == track.num_samples and file_sha256(path) == track.sha256
    ):
        return
    raise DecodeError(
        "changed", f"{digest.num_samples} samples with SHA-256 {digest.hexdigest()},"
        f" the manifest has {track.num_samples} with {track.audio_sha256}"
    )  # fmt: skip
