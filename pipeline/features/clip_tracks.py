"""The files of a table of clips, decoded; no manifest has their lengths, so the decoded length counts."""

from pathlib import Path

from mert_foundry.pipeline.audio.decode import SampleCount, check_length, open_audio
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.resample import resample_to_int16
from mert_foundry.pipeline.audio.track_audio import TrackAudio
from mert_foundry.pipeline.features.plan import ClipPlace, SourceTrack
from mert_foundry.pipeline.manifest.source_file import source_file

LENGTH_TOLERANCE_SECONDS = 0.2  # between a lossy header and the audio, as by the manifest's default


class ClipTracks:
    """The files below `root`."""

    def __init__(self, root: str):
        self.root = root

    def open(self, track: SourceTrack) -> TrackAudio:
        """Decode the whole file that a track is a stretch of.

        Raises:
            DecodeError: the file is not there, or cannot be used, as `decode_clip_file`.
            OSError: as `source_file`.
        """
        assert isinstance(track.place, ClipPlace)
        with source_file(self.root, track.place.path, may_be_missing=True) as local:
            return decode_clip_file(local)


def decode_clip_file(path: Path) -> TrackAudio:
    """A local file as it is stored: mono, 24 kHz, 16 bits.

    Raises as `open_audio`, `SampleCount.follow`, `TrackAudio` and `check_length`.
    """
    if path.exists() and not path.is_file():
        raise DecodeError("not_audio", "no file, but a folder, pipe or device")
    with open_audio(path) as file:
        count = SampleCount()
        decoded = TrackAudio(resample_to_int16(count.follow(file.blocks()), file.header.sample_rate))
        try:
            check_length(file.header, count.num_samples, LENGTH_TOLERANCE_SECONDS)
        except BaseException:
            decoded.close()
            raise
    return decoded
