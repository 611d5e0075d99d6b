"""Audio file to float32 blocks at the file's own rate.

Vorbis, Opus and FLAC in Ogg go through libsndfile (ffmpeg's Ogg demuxer refuses or mis-measures some sound
files, and its own Opus decoder strays from libopus by up to 0.015 in stereo), everything else through PyAV, which
carries its ffmpeg. The choice follows the file's content, not its name. Speed does not decide it: on one core libsndfile
and PyAV decode Vorbis at 600x and 780x real time, Opus at 130x and 390x, MP3 at 1,000x and 560x, FLAC at 620x and 660x,
WAV at 2,900x and 2,000x, where a labeller reaches some 50x. The length that counts is what was really decoded; what the
header claims is kept beside it, so that a lying header can be told. What a format lets one check is checked: page
checksums of Ogg, frame checksums and positions of FLAC, chunk sizes of WAV. Only audio demuxers are allowed: playlists and
concatenation scripts, which could name other files or hosts, are not.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

from pipeline.container_checks import (
    DecodeError,
    check_mp4_boxes,
    check_ogg_pages,
    claimed_wav_samples,
    has_xing_tag,
)
from pipeline.frames import SAMPLE_RATE
from pipeline.pcm import to_int16

DEMUXERS = "aac,ac3,aiff,amr,ape,asf,au,caf,dsf,eac3,flac,matroska,webm,mov,mp4,m4a,mp3,mpc,mpc8,ogg,tta,w64,wav,wv"
# Their headers state a length in samples; a bare MP3 or ADTS stream only lets ffmpeg guess one.
EXACT_HEADERS = {"aiff", "flac", "wav", "w64", "au", "caf", "tta", "ape", "wv", "mov"}
AUDIO_EXTENSIONS = set(
    "aac ac3 aif aifc aiff amr ape au caf dsf flac m4a m4b mka mp2 mp3 mp4 mpc oga ogg opus snd tta w64 wav webm wma wv".split()
)
# Their frames carry checksums, which ffmpeg looks at only when asked to.
CHECKSUM_CODECS = {"ac3", "ape", "eac3", "flac", "tta", "wavpack"}
LOUDEST = 2.0**31  # float samples in [-1, 1) may overshoot, or be integers by mistake; beyond is damage
LARGEST_FILTER_BANK = 1 << 25  # coefficients; 22255 Hz (old Macintosh) needs 21 million, torchaudio some 30 bytes for each
MOST_CHANNELS = 64  # of ffmpeg's sample converter
BLOCK_FRAMES = 1 << 18


@dataclass(frozen=True)
class AudioHeader:
    """What the container claims: Hz, channels, samples per channel (None: no or only a guessed length)."""

    sample_rate: int
    channels: int
    num_samples: int | None
    format: str


def open_audio(path: Path) -> "OggFile | MediaFile":
    """Open a local audio file for one pass of decoding; use as a context manager.

    Raises:
        DecodeError: `not_audio` when it is no audio, neither by content nor by name; `unreadable` when it
            cannot be parsed or a checksum of Ogg is wrong; `truncated` when the end is missing;
            `length_mismatch` when a WAV file holds more audio than its header claims.
    """
    with open(path, "rb") as file:
        head = file.read(64)
    is_ogg_music = head[:4] == b"OggS" and any(mark in head for mark in (b"\x01vorbis", b"OpusHead", b"\x7fFLAC"))
    return OggFile(path) if is_ogg_music else MediaFile(path)


class OggFile:
    """Ogg through libsndfile."""

    def __init__(self, path: Path):
        check_ogg_pages(path)
        try:
            self.file = soundfile.SoundFile(path)
        except (soundfile.SoundFileError, OSError) as error:
            raise DecodeError("unreadable", _reason(error)) from error
        self.header = AudioHeader(
            self.file.samplerate, self.file.channels, self.file.frames, f"ogg/{self.file.subtype.lower()}"
        )
        _check_rate(self.header.sample_rate)

    def __enter__(self) -> "OggFile":
        return self

    def __exit__(self, *exception) -> None:
        self.file.close()

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield float32 `[channels, n]` blocks in order. Raises DecodeError `unreadable` on damage."""
        while True:
            try:
                block = self.file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
            except soundfile.SoundFileError as error:
                raise DecodeError("unreadable", _reason(error)) from error
            if not len(block):
                return
            yield block.T


class MediaFile:
    """Anything else through PyAV."""

    def __init__(self, path: Path):
        try:
            self.container = av.open(
                str(path), options={"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}, metadata_errors="ignore"
            )
        except (av.error.FFmpegError, OSError, ValueError) as error:
            check_mp4_boxes(path)
            known = path.suffix[1:].lower() in AUDIO_EXTENSIONS
            raise DecodeError("unreadable" if known else "not_audio", _reason(error)) from error
        if not self.container.streams.audio:
            self.container.close()
            raise DecodeError("not_audio", f"a {self.container.format.name} file without an audio stream")
        self.stream = self.container.streams.audio[0]
        if self.stream.codec_context is None:
            self.container.close()
            raise DecodeError("unreadable", f"a {self.container.format.name} file whose codec has no decoder here")
        if self.stream.codec_context.name in CHECKSUM_CODECS:
            self.stream.codec_context.options = {"err_detect": "crccheck+explode"}
        self.header = _read_header(self.container, self.stream, path)

    def __enter__(self) -> "MediaFile":
        return self

    def __exit__(self, *exception) -> None:
        self.container.close()

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield float32 `[channels, n]` blocks in order, in [-1, 1) for integer formats.

        A packet that cannot be decoded before the first or after the last good one (tags, padding) is
        skipped; between good ones it is damage. ffmpeg leaves out a FLAC frame that it finds damaged, so
        there the next frame's position tells.

        Raises:
            DecodeError: `unreadable` on damage, a change of rate, channels or sample format, or no audio;
                `truncated` when the container ends too early.
        """
        # Gathered, because converting a small frame takes longer than decoding it; packed, because PyAV 18 reads
        # beyond its memory for planar frames of 8 channels and more.
        gathered, packed = av.AudioFifo(), av.AudioResampler(format="flt")
        for frame in self._frames():
            frame.pts = None  # else the queue, too, looks for gaps
            gathered.write(frame)
            if gathered.samples >= BLOCK_FRAMES:
                yield self._block(gathered, packed)
        if not gathered.samples_written:
            raise DecodeError("unreadable", "no audio could be decoded")
        if gathered.samples:
            yield self._block(gathered, packed)

    def _block(self, gathered: av.AudioFifo, packed: av.AudioResampler) -> np.ndarray:
        try:
            frames = packed.resample(gathered.read())
        except av.error.FFmpegError as error:  # of layouts with more than 26 names
            raise DecodeError("unreadable", f"{self.header.channels} channels cannot be converted: {_reason(error)}") from error
        return np.concatenate([frame.to_ndarray().reshape(-1, self.header.channels) for frame in frames]).T

    def _frames(self) -> Iterator[av.AudioFrame]:
        """The decoded frames, all of one rate, number of channels and sample format, without a gap."""
        expected = None
        is_flac = self.header.format == "flac/flac"
        damage = None
        decoded = 0
        for packet in self._packets():
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                damage = damage or (_reason(error) if decoded else None)
                continue
            for frame in frames:
                found = (frame.sample_rate, frame.layout.nb_channels, frame.format.name)
                expected = expected or (self.header.sample_rate, self.header.channels, frame.format.name)
                if found != expected:
                    raise DecodeError("unreadable", f"changes from {expected} to {found} (Hz, channels, format) on the way")
                if is_flac and frame.pts is not None and frame.pts * frame.time_base != Fraction(decoded, expected[0]):
                    damage = damage or f"the next frame starts at {frame.pts * frame.time_base * expected[0]}"
                if damage:
                    raise DecodeError("unreadable", f"damaged after {decoded} samples: {damage}")
                decoded += frame.samples
                yield frame

    def _packets(self) -> Iterator[av.Packet]:
        try:
            yield from self.container.demux(self.stream)
        except av.error.FFmpegError as error:
            raise DecodeError("truncated", _reason(error)) from error


class AudioDigest:
    """SHA-256 of rate, channels and interleaved PCM rounded to 16 bits: the identity of the music itself."""

    def __init__(self, header: AudioHeader):
        self._digest = hashlib.sha256(f"{header.sample_rate} {header.channels}\n".encode())
        self.num_samples = 0
        self.peak = 0.0

    def follow(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Pass blocks `[channels, n]` through, taking them in. Raises DecodeError on values that are no audio."""
        for block in blocks:
            loudest = float(np.abs(block).max(initial=0.0))
            if not loudest < LOUDEST:  # true also of not-a-number
                raise DecodeError("unreadable", f"a sample of value {loudest} after {self.num_samples} samples")
            self._digest.update(np.ascontiguousarray(to_int16(block).T, "<i2"))
            self.num_samples += block.shape[1]
            self.peak = max(self.peak, loudest)
            yield block

    def hexdigest(self) -> str:
        """The digest of what has passed so far."""
        return self._digest.hexdigest()


def check_length(header: AudioHeader, decoded: int, tolerance_seconds: float) -> None:
    """Compare the decoded length with an exact header's. FLAC states the number of samples, so there is no tolerance.

    Raises:
        DecodeError: `truncated` when audio is missing, `length_mismatch` when there is more than claimed.
    """
    tolerance = 0 if header.format == "flac/flac" else tolerance_seconds * header.sample_rate
    if header.num_samples is None or abs(decoded - header.num_samples) <= tolerance:
        return
    reason = "truncated" if decoded < header.num_samples else "length_mismatch"
    raise DecodeError(reason, f"header claims {header.num_samples} samples, {decoded} decoded")


def _read_header(container, stream, path: Path) -> AudioHeader:
    container_name = container.format.name.split(",")[0]
    codec = stream.codec_context
    length = None
    if container_name in ("wav", "w64") and codec.name.startswith("pcm_"):
        length = claimed_wav_samples(path, container_name)
    elif stream.duration is not None and _has_exact_length(container_name, path):
        length = round(stream.duration * stream.time_base * codec.sample_rate)
    if codec.sample_rate <= 0 or not 0 < codec.channels <= MOST_CHANNELS:
        raise DecodeError("unreadable", f"header claims {codec.sample_rate} Hz and {codec.channels} channels")
    _check_rate(codec.sample_rate)
    return AudioHeader(codec.sample_rate, codec.channels, length, f"{container_name}/{codec.name}")


def _check_rate(rate: int) -> None:
    """Raise DecodeError for a rate whose polyphase filters would fill the memory, as a damaged header can state."""
    divisor = math.gcd(rate, SAMPLE_RATE)
    if (rate // divisor) * (SAMPLE_RATE // divisor) > LARGEST_FILTER_BANK:
        raise DecodeError("unreadable", f"{rate} Hz shares no divisor beyond {divisor} with {SAMPLE_RATE} Hz, to which it must go")


def _has_exact_length(container_name: str, path: Path) -> bool:
    return has_xing_tag(path) if container_name == "mp3" else container_name in EXACT_HEADERS


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
