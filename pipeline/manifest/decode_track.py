"""A track of the manifest decoded, and compared with what the manifest knows of it."""

from pathlib import Path

from mert_foundry.pipeline.audio.decode import AudioDigest, open_audio
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.resample import resample_to_int16
from mert_foundry.pipeline.audio.track_audio import TrackAudio
from mert_foundry.pipeline.manifest.rows import Track
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.documents import file_sha256


def decode_track(track: Track, root: str, device: str = "cpu") -> TrackAudio:
    """Decode a track of the manifest; `device` resamples it, to the same samples on any.

    Raises:
        DecodeError: `changed` when the decoded audio is not the one the manifest knows, `unreadable` for a file that another
            run cannot reach either (a link to itself, too long a name), or as `open_audio`.
        OSError: the file cannot be reached, naming key and file, or there is no room for the decoded track.
    """
    try:
        with files.local_copy(root, track.path) as path:
            return _decode(track, path, device)
    except OSError as error:
        if error.errno in files.FAULTS_OF_A_FILE:
            raise DecodeError("unreadable", f"{track.path}: {error.strerror}") from error
        message = f"track {track.key}: {files.join(root, track.path)}: {error.strerror or error}"
        raise (OSError(error.errno, message) if error.errno else OSError(message)) from error


def _decode(track: Track, path: Path, device: str) -> TrackAudio:
    with open_audio(path) as audio:
        digest = AudioDigest(audio.header)
        blocks = digest.follow(audio.blocks())
        decoded = TrackAudio(resample_to_int16(blocks, audio.header.sample_rate, device=device))
    # Lossy decoders round differently on another CPU: the same file of the same length is the same music.
    if digest.hexdigest() == track.audio_sha256 or (
        digest.num_samples == track.num_samples and file_sha256(path) == track.sha256
    ):
        return decoded
    decoded.close()
    raise DecodeError(
        "changed", f"{digest.num_samples} samples with SHA-256 {digest.hexdigest()},"
        f" the manifest has {track.num_samples} with {track.audio_sha256}"
    )  # fmt: skip
