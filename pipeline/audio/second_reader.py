"""A file decoded by another library than `decode` takes for it, as simply as that library can: to check the first one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.media_file import OPUS_RATE
from mert_foundry.pipeline.audio.sound_file import SoundFile
from mert_foundry.pipeline.audio.tags import audio_range

LIBSNDFILE, FFMPEG = "libsndfile", "ffmpeg"
# ffmpeg reads what libsndfile reads first, and the other way round.
SECOND_READERS = {
    "wav": FFMPEG, "w64": FFMPEG, "aiff": FFMPEG, "au": FFMPEG, "caf": FFMPEG, "nistsphere": FFMPEG, "ogg/vorbis": FFMPEG,
    "ogg/opus": LIBSNDFILE, "flac": LIBSNDFILE, "mp3": LIBSNDFILE,
}  # fmt: skip


@dataclass(frozen=True)
class SecondReading:
    """What another library makes of a file: its name, Hz, and float32 blocks `[channels, n]`."""

    reader: str
    sample_rate: int
    blocks: Iterator[np.ndarray]


def read_again(path: Path, format: str, notes: list[str]) -> SecondReading | None:
    """Open a file of a manifest's `format` and `notes` with another library; None where none reads such a file rightly.

    Raises:
        DecodeError: `unreadable` when the other library does not read it; its blocks raise the same on damage.
    """
    reader = SECOND_READERS.get(format) or SECOND_READERS.get(format.partition("/")[0])
    if format.startswith("wav/") and format.endswith("be"):
        reader = LIBSNDFILE  # of its own headers; ffmpeg takes big-endian samples of WAV for little-endian ones
    # ffmpeg loses the end of ALAC in CAF; what was repaired or joined no other library takes for one whole.
    if reader is None or "alac" in format or {"repaired", "joined"} & set(notes):
        return None
    return _read_by_libsndfile(path, format) if reader == LIBSNDFILE else _read_by_ffmpeg(path)


def _read_by_libsndfile(path: Path, format: str) -> SecondReading | None:
    file = SoundFile(path, [audio_range(path)])
    if format == "ogg/opus" and file.header.sample_rate != OPUS_RATE:  # it goes by the header
        file.close()
        return None

    def blocks() -> Iterator[np.ndarray]:
        with file:
            yield from file.blocks()

    return SecondReading(LIBSNDFILE, file.header.sample_rate, blocks())


def _read_by_ffmpeg(path: Path) -> SecondReading:
    try:
        container = av.open(str(path), metadata_errors="ignore")
        stream = container.streams.audio[0]
        rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
    except (av.error.FFmpegError, IndexError) as error:
        raise DecodeError("unreadable", f"ffmpeg: {error}") from error

    def blocks() -> Iterator[np.ndarray]:
        packed = av.AudioResampler(format="flt")
        with container:
            try:
                for frame in container.decode(stream):
                    for part in packed.resample(frame):
                        yield part.to_ndarray().reshape(-1, channels).T
            except av.error.FFmpegError as error:
                raise DecodeError("unreadable", f"ffmpeg: {error}") from error

    return SecondReading(FFMPEG, rate, blocks())
