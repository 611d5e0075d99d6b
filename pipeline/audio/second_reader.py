"""A file decoded by another library than `decode` uses for it, to check the first one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from mert_foundry.pipeline.audio.byte_ranges import ByteRanges
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.media_file import OPUS_RATE
from mert_foundry.pipeline.audio.sound_file import SoundFile
from mert_foundry.pipeline.audio.tags import audio_range

LIBSNDFILE, FFMPEG = "libsndfile", "ffmpeg"
# ffmpeg reads again what libsndfile read first, and the other way round.
PCM_CONTAINERS = {"wav", "w64", "aiff", "au", "caf", "nistsphere"}
READ_BY_LIBSNDFILE = {"ogg/opus", "flac/flac", "mp3/mp3float"}


@dataclass(frozen=True)
class SecondReading:
    """A file as another library decodes it: name of the library, Hz, and float32 blocks `[channels, n]`."""

    reader: str
    sample_rate: int
    blocks: Iterator[np.ndarray]


def read_again(path: Path, format: str, notes: Sequence[str]) -> SecondReading | None:
    """Open a file of a manifest's `format` and `notes` with another library; None where no other library reads such a
    file correctly.

    Raises:
        DecodeError: `unreadable` when the other library does not read it; its blocks raise the same on damage.
    """
    container, _, codec = format.partition("/")
    if {"repaired", "joined"} & set(notes):  # no other library reads such a file as one stream
        return None
    if codec.startswith("pcm_") and container in PCM_CONTAINERS or format == "ogg/vorbis":
        if container == "wav" and codec.endswith(
            "be"
        ):  # ffmpeg takes it for little-endian; libsndfile by its own headers
            return _read_by_libsndfile(path, format)
        return None if container == "au" and codec.endswith("le") else _read_by_ffmpeg(path)
    return _read_by_libsndfile(path, format) if format in READ_BY_LIBSNDFILE else None


def _read_by_libsndfile(path: Path, format: str) -> SecondReading | None:
    file = SoundFile(path, [audio_range(path)])
    if format == "ogg/opus" and file.header.sample_rate != OPUS_RATE:  # libsndfile takes the header's rate
        file.close()
        return None

    def blocks() -> Iterator[np.ndarray]:
        with file:
            yield from file.blocks()

    return SecondReading(LIBSNDFILE, file.header.sample_rate, blocks())


def _read_by_ffmpeg(path: Path) -> SecondReading:
    try:
        content = ByteRanges(path, [audio_range(path)])
        container = av.open(content, "r", metadata_errors="ignore")
        stream = container.streams.audio[0]
        rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
    except (av.error.FFmpegError, IndexError) as error:
        raise DecodeError("unreadable", f"ffmpeg: {error}") from error

    def blocks() -> Iterator[np.ndarray]:
        packed = av.AudioResampler(format="flt")
        with content, container:
            try:
                for frame in container.decode(stream):
                    for part in packed.resample(frame):
                        yield part.to_ndarray().reshape(-1, channels).T
            except av.error.FFmpegError as error:
                raise DecodeError("unreadable", f"ffmpeg: {error}") from error

    return SecondReading(FFMPEG, rate, blocks())
