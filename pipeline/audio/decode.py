"""Audio file to float32 blocks at the file's own rate: which library reads it, and what is checked as well.

README.md in this folder lists which library reads what. The length of a track is the decoded one; the header's is kept
too, so that a wrong header shows.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mert_foundry.pipeline.audio.audio_file import AudioFile, AudioHeader, JoinedFile, Ranges
from mert_foundry.pipeline.audio.blocks import to_int16
from mert_foundry.pipeline.audio.byte_ranges import ByteRanges
from mert_foundry.pipeline.audio.containers import VOC_MARK, ClaimedAlac, check_sizes, check_voc, claimed_alac_samples
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.media_file import MediaFile
from mert_foundry.pipeline.audio.mpeg_frames import COUNT_ERROR, MpegPart, read_mpeg_parts
from mert_foundry.pipeline.audio.ogg_pages import check_ogg_pages
from mert_foundry.pipeline.audio.pcm_layout import PcmLayout, read_pcm_layout
from mert_foundry.pipeline.audio.sound_file import PcmFile, SoundFile
from mert_foundry.pipeline.audio.tags import audio_range

# Samples that encoders add before the audio and players cut; lossy headers may or may not count them: 2,112 of AAC,
# 5,186 of HE-AAC (Apple Technical Note TN2258).
PRIMING_SAMPLES = 5186
LOUDEST = 2.0**31  # float samples may overshoot [-1, 1), or be integers by mistake; larger ones are damage
# How compressed audio within PCM begins: DTS in 16 and 14 bits, IEC 61937 bursts, each in both byte orders.
CODED_MARKS = [bytes.fromhex(mark) for mark in ("7ffe8001", "fe7f0180", "1fffe800", "ff1f00e8", "f8724e1f", "72f81f4e")]
CODED_SEARCH_BYTES = 1 << 16


def open_audio(path: Path) -> AudioFile:
    """Open a local audio file for one pass of decoding; use as a context manager.

    Raises:
        DecodeError: `not_audio` when it is no audio, neither by content nor by name; `unreadable` when it
            cannot be parsed or a checksum of Ogg is wrong; `truncated` when the end is missing;
            `length_mismatch` when a file of PCM holds more audio than its header claims, or an MP3 more frames than it
            counts.
        OSError: the file cannot be read.
    """
    with decoder_faults():
        return _open(path)


def _open(path: Path) -> AudioFile:
    start, stop = audio_range(path)
    audio = [(start, stop)]
    with ByteRanges(path, [(start, path.stat().st_size)]) as content:
        try:
            file = _open_known(path, start, audio, content)
        finally:
            content.check()  # before any error that a failed read has led to
    if file is not None:
        return file
    file = MediaFile(path, audio)
    if file.header.format.startswith("mp3/") and (parts := read_mpeg_parts(path, start, stop)):
        file.close()
        return _open_mpeg(path, parts)
    return file


def _open_known(path: Path, start: int, audio: Ranges, content: ByteRanges) -> AudioFile | None:
    """Open a file of a kind that ffmpeg alone reads wrongly, by its bytes from `start` on, `content`; None for other
    kinds.
    """
    head = content.read(32)
    if head[:4] == b"OggS":
        return _open_ogg(path, start)
    layout = read_pcm_layout(content)
    if layout is not None and not _holds_coded_audio(path, start, layout):
        return PcmFile(path, start, layout)
    if head[:4] == b"RIFX":
        raise DecodeError("unreadable", "compressed samples in a big-endian WAV (RIFX) are not read here")
    check_sizes(content)
    if head.startswith(VOC_MARK):  # ffmpeg loses the last samples
        check_voc(content)
        return SoundFile(path, audio)
    if head[:4] == b"caff" and (claimed := claimed_alac_samples(content)) is not None:
        return _open_alac(path, start, claimed)
    return None


def _open_mpeg(path: Path, parts: list[MpegPart]) -> AudioFile:
    """MPEG audio whose frames were counted; where files were joined, each part as a file of its own."""
    files = [
        MediaFile(
            path, [(part.start, part.stop)], claimed=part.num_samples, surplus=part.padding,
            slack=0 if part.claimed in (None, part.found) else COUNT_ERROR * part.samples,
        )
        for part in parts
    ]  # fmt: skip
    return files[0] if len(files) == 1 else JoinedFile(files)


def _open_ogg(path: Path, start: int) -> AudioFile:
    """Ogg without the bytes between its pages, which make libraries lose audio."""
    pages = check_ogg_pages(path, start)
    notes = ("repaired",) if pages.is_repaired else ()
    if pages.streams == ["vorbis"]:
        return SoundFile(path, pages.ranges, slack=None, notes=notes)
    slack = None if pages.opus_samples is None else 0
    return MediaFile(path, pages.ranges, claimed=pages.opus_samples, slack=slack, notes=notes)


def _open_alac(path: Path, start: int, claimed: ClaimedAlac) -> AudioFile:
    """ALAC in CAF: ffmpeg does not read all files of libsndfile, and libsndfile none of ffmpeg."""
    whole = [(start, path.stat().st_size)]
    try:
        return SoundFile(path, whole, claimed=claimed.num_samples)
    except DecodeError:
        file = MediaFile(path, whole, claimed=claimed.num_samples, slack=claimed.slack)
    if file.header.sample_rate != claimed.sample_rate:
        file.close()
        raise DecodeError(
            "unreadable", f"the container claims {claimed.sample_rate} Hz, its codec {file.header.sample_rate} Hz"
        )
    return file


def _holds_coded_audio(path: Path, start: int, layout: PcmLayout) -> bool:
    """Whether PCM samples are really a compressed stream, as on a DTS disc or recorded from an S/PDIF cable."""
    with ByteRanges(path, [(start + layout.start, start + layout.stop)]) as samples:
        begin = samples.read(CODED_SEARCH_BYTES)
        samples.check()
    if not any(mark in begin for mark in CODED_MARKS):
        return False
    with MediaFile(path, [(start, path.stat().st_size)]) as file:
        return not file.header.format.rpartition("/")[2].startswith("pcm_")


@contextmanager
def decoder_faults() -> Iterator[None]:
    """Turn any error that a library raises about a file into a DecodeError, so that work on other files goes on;
    OSErrors pass.
    """
    try:
        yield
    except (DecodeError, OSError):
        raise
    except Exception as error:
        raise DecodeError("unreadable", f"{type(error).__name__}: {error}") from error


class SampleCount:
    """Samples per channel that have passed so far, none of which is damage."""

    num_samples = 0

    def follow(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Pass blocks `[channels, n]` through and take them in.

        Raises DecodeError for values that are no audio, and for any error of a library but OSErrors.
        """
        with decoder_faults():
            for block in blocks:
                loudest = max(float(block.max(initial=0.0)), -float(block.min(initial=0.0)))
                if not loudest < LOUDEST:  # true also of not-a-number
                    raise DecodeError("unreadable", f"a sample of value {loudest} after {self.num_samples} samples")
                self._take(block)
                self.num_samples += block.shape[1]
                yield block

    def _take(self, block: np.ndarray) -> None:
        """What a digest does with a block beside counting it."""


class AudioDigest(SampleCount):
    """SHA-256 of rate, channels and interleaved PCM rounded to 16 bits: the same music in another container has the
    same one.
    """

    def __init__(self, header: AudioHeader):
        self._digest = hashlib.sha256(f"{header.sample_rate} {header.channels}\n".encode())

    def _take(self, block: np.ndarray) -> None:
        self._digest.update(np.ascontiguousarray(to_int16(block).T, "<i2").data)

    def hexdigest(self) -> str:
        """The digest of what has passed so far."""
        return self._digest.hexdigest()


def check_length(header: AudioHeader, decoded: int, tolerance_seconds: float) -> None:
    """Compare the decoded length with the header's.

    Lossless formats state it exactly, so only lossy ones have a tolerance.

    Raises:
        DecodeError: `truncated` when audio is missing, `length_mismatch` when there is more than claimed.
    """
    if header.num_samples is None:
        return
    setting = max(tolerance_seconds * header.sample_rate, PRIMING_SAMPLES)
    tolerance = setting if header.slack is None else header.slack
    if abs(decoded - header.num_samples) <= tolerance:
        return
    reason = "truncated" if decoded < header.num_samples else "length_mismatch"
    raise DecodeError(reason, f"header claims {header.num_samples} samples, {decoded} decoded")
