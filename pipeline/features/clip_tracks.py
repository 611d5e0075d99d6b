"""The files of a table of clips, decoded; no manifest has their lengths, so the decoded length counts."""

from pathlib import Path

from mert_foundry.pipeline.audio.decode import AudioDigest, check_length, open_audio
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.resample import resample_to_int16
from mert_foundry.pipeline.audio.track_audio import TrackAudio
from mert_foundry.pipeline.features.plan import ClipPlace, SourceTrack
from mert_foundry.pipeline.storage.files import FAULTS_OF_A_FILE, join, local_copy

LENGTH_TOLERANCE_SECONDS = 0.2  # between a lossy header and the audio, as by the manifest's default


class ClipTracks:
    """The files below `root`."""

    def __init__(self, root: str):
        self.root = root

    def open(self, track: SourceTrack) -> TrackAudio:
        """Decode the whole file that a track is a stretch of.

        Raises:
            DecodeError: the file is not there, or cannot be used, as `open_audio` and `check_length`.
            OSError: the file cannot be reached, or there is no room for what is decoded.
        """
        assert isinstance(track.place, ClipPlace)
        path = track.place.path
        try:
            with local_copy(self.root, path) as local:
                return decode_file(local)
        except FileNotFoundError as error:
            raise DecodeError("unreadable", f"{path}: no such file") from error
        except OSError as error:
            if error.errno in FAULTS_OF_A_FILE:
                raise DecodeError("unreadable", f"{path}: {error.strerror}") from error
            message = f"{join(self.root, path)}: {error.strerror or error}"
            raise (OSError(error.errno, message) if error.errno else OSError(message)) from error


def decode_file(path: Path) -> TrackAudio:
    """A local file as it is stored: mono, 24 kHz, 16 bits, in a temporary file. Raises DecodeError and OSError."""
    if path.exists() and not path.is_file():
        raise DecodeError("not_audio", "no file, but a folder, pipe or device")
    with open_audio(path) as audio:
        checked = AudioDigest(audio.header)  # refuses values that are no audio
        decoded = TrackAudio(resample_to_int16(checked.follow(audio.blocks()), audio.header.sample_rate))
        try:
            check_length(audio.header, checked.num_samples, LENGTH_TOLERANCE_SECONDS)
        except DecodeError:
            decoded.close()
            raise
    return decoded
