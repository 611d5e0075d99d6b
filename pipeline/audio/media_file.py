"""Audio files through PyAV, which carries its ffmpeg; only the demuxers listed are allowed.

Playlists and concatenation scripts, which could name other files or hosts, are not among them.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition

from mert_foundry.pipeline.audio.audio_file import NO_AUDIO, AudioFile, AudioHeader, Ranges
from mert_foundry.pipeline.audio.byte_ranges import ByteRanges
from mert_foundry.pipeline.audio.decode_error import DecodeError

DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,eac3,flac,iff,matroska,webm,mov,mp4,m4a,mp3,mpc,mpc8,mpegts,nistsphere,"
    "ogg,tak,tta,voc,w64,wav,wv"
)
# Their headers state a length in samples; of an ADTS or transport stream ffmpeg can only guess one.
EXACT_HEADERS = {"aiff", "wav", "w64", "au", "tta", "ape", "wv", "tak", "mov"}
AUDIO_EXTENSIONS = set(
    "aac ac3 aif aifc aiff amr ape au avi caf dff dsf flac m4a m4b mka mkv mov mp2 mp3 mp4 mpc oga ogg opus snd sph"
    " spx tak ts tta voc w64 wav webm wma wv".split()
)
# Their frames carry checksums, which ffmpeg checks only when asked to.
CHECKSUM_CODECS = {"ac3", "ape", "eac3", "flac", "tak", "tta", "wavpack"}
LOSSLESS_CODECS = {"alac", "ape", "flac", "mlp", "tak", "truehd", "tta", "wavpack"}
# Streams without an index or pages: ffmpeg searches for the next frame and may mistake a tag for one.
RAW_STREAMS = {"aac", "ac3", "amr", "eac3", "flac", "mp3", "mpegts"}
BLOCK_FRAMES = 1 << 18
OPUS_RATE = 48_000  # Opus always decodes to this; its header states the rate before encoding (RFC 7845, section 5.1)


class MediaFile(AudioFile):
    """A file that neither libsndfile nor the readers of plain PCM take, through PyAV.

    Args:
        ranges: the bytes to read, without tags.
        claimed, slack, notes: as in `AudioHeader`, where the caller knows better than ffmpeg's container.
        surplus: samples after the claimed ones that ffmpeg should cut and may not.
    """

    def __init__(
        self, path: Path, ranges: Ranges, claimed: int | None = None, slack: int | None = None,
        notes: tuple[str, ...] = (),
        surplus: int = 0,
    ):  # fmt: skip
        self._bytes = ByteRanges(path, ranges)
        self._surplus = surplus
        self._decoded = 0  # samples per channel
        try:
            opened = av.open(self._bytes, options={"format_whitelist": DEMUXERS}, metadata_errors="ignore")
        except (av.error.FFmpegError, ValueError) as error:
            self._bytes.close()
            self._bytes.check()
            known = path.suffix[1:].lower() in AUDIO_EXTENSIONS
            raise DecodeError(
                "unreadable" if known else "not_audio", f"in no container that is read here ({_reason(error)})"
            ) from error
        self.container = cast(InputContainer, opened)
        try:
            self._choose_stream()
            self.header = self._read_header(claimed, slack, notes)
        except DecodeError:
            self.close()
            self._bytes.check()
            raise

    def close(self) -> None:
        self.container.close()
        self._bytes.close()

    def blocks(self) -> Iterator[np.ndarray]:
        # Frames are gathered, because converting a small one takes longer than decoding it, and interleaved, because
        # PyAV 18 reads out of bounds for planar frames of 8 channels and more.
        fifo, packed = av.AudioFifo(), av.AudioResampler(format="flt")
        given = 0
        for frame in self._frames():
            frame.pts = None  # or the queue would check for gaps too
            fifo.write(frame)
            if fifo.samples >= BLOCK_FRAMES:
                block = self._block(fifo, packed)
                given += block.shape[1]
                yield block
        if not fifo.samples_written:
            raise DecodeError("unreadable", NO_AUDIO)
        if fifo.samples:
            block = self._block(fifo, packed)
            surplus = given + block.shape[1] - (self.header.num_samples or 0)
            yield (
                block[:, : block.shape[1] - surplus] if 0 < surplus <= min(self._surplus, block.shape[1] - 1) else block
            )

    def _choose_stream(self) -> None:
        """Take the stream that ffmpeg finds best, and a decoder for it. Raises DecodeError when there is none."""
        name = self.container.format.name
        self._format = name.split(",")[0]
        if not self.container.streams.audio:
            raise DecodeError("not_audio", f"a {name} file without an audio stream")
        best = self.container.streams.best("audio") or self.container.streams.audio[0]
        self.stream = cast(AudioStream, best)
        self.decoder = self.stream.codec_context
        if self.decoder is None:
            raise DecodeError("unreadable", f"a {name} file whose codec has no decoder here")
        if self.decoder.name == "opus":
            own = self.decoder
            self.decoder = cast(AudioCodecContext, av.CodecContext.create("libopus", "r"))
            self.decoder.extradata = own.extradata
            self.decoder.options = {"request_sample_fmt": "flt"}
            self.decoder.sample_rate = OPUS_RATE
        elif self.decoder.name in CHECKSUM_CODECS:
            self.decoder.options = {"err_detect": "crccheck+explode"}
        elif self.decoder.name == "alac" and self._format == "caf":
            # Every packet states its length. CAF states that of the last one again, and ffmpeg would cut it twice.
            self.decoder.options = {"flags2": "skip_manual"}

    def _read_header(self, claimed: int | None, slack: int | None, notes: tuple[str, ...]) -> AudioHeader:
        container = self._format
        codec = self.stream.codec_context
        rate = OPUS_RATE if codec.name == "opus" else codec.sample_rate
        is_lossless = codec.name in LOSSLESS_CODECS or codec.name.startswith("pcm_")
        if (
            codec.name == "flac" and claimed is None and container in ("flac", "ogg")
        ):  # elsewhere a file may hold a part of it
            claimed = _claimed_flac_samples(codec.extradata)
        elif claimed is None and container in EXACT_HEADERS and self.stream.duration is not None:
            duration = self.stream.duration * (self.stream.time_base or 0)  # seconds
            claimed = round(duration * rate) or None  # a streaming writer leaves 0
        slack = 0 if slack is None and is_lossless else slack
        return AudioHeader(
            rate, codec.channels, claimed, f"{container}/{codec.name}", slack, self._describe_stream(), notes
        )

    def _describe_stream(self) -> str:
        audio = list(self.container.streams.audio)
        videos = sum(not stream.disposition & Disposition.attached_pic for stream in self.container.streams.video)
        if len(audio) == 1 and not videos:
            return ""
        name = f"audio {audio.index(self.stream) + 1} of {len(audio)}"
        return f"{name}, beside {videos} video" if videos else name

    def _block(self, fifo: av.AudioFifo, packed: av.AudioResampler) -> np.ndarray:
        try:
            frames = packed.resample(fifo.read())
        except av.error.FFmpegError as error:  # of layouts with more than 26 names
            raise DecodeError(
                "unreadable", f"{self.header.channels} channels cannot be converted: {_reason(error)}"
            ) from error
        return np.concatenate([frame.to_ndarray().reshape(-1, self.header.channels) for frame in frames]).T

    def _frames(self) -> Iterator[av.AudioFrame]:
        """The decoded frames, all of one rate, number of channels and sample format, without a gap.

        In a stream without a container a packet that cannot be decoded before the first or after the last good one (a
        tag, padding) is skipped; between good ones, and in a container, it is damage. ffmpeg drops a damaged FLAC frame
        without an error, which shows by the position of the next one.
        """
        expected = None
        is_flac = self.header.format == "flac/flac"
        damage = None
        for packet in self._packets():
            try:
                frames = self.decoder.decode(packet)
            except av.error.FFmpegError as error:
                self._bytes.check()
                if self._format not in RAW_STREAMS and not self._is_complete():
                    raise DecodeError(
                        "unreadable", f"damaged after {self._decoded} samples: {_reason(error)}"
                    ) from error
                damage = damage or (_reason(error) if self._decoded else None)
                continue
            for frame in frames:
                found = (frame.sample_rate, frame.layout.nb_channels, frame.format.name)
                expected = expected or (self.header.sample_rate, self.header.channels, frame.format.name)
                if found != expected:
                    raise DecodeError(
                        "unreadable", f"changes from {expected} to {found} (Hz, channels, format) on the way"
                    )
                start = _start(frame)
                if is_flac and start is not None and start != Fraction(self._decoded, expected[0]):
                    damage = damage or f"the next frame starts at {start * expected[0]}"
                if damage:
                    raise DecodeError("unreadable", f"damaged after {self._decoded} samples: {damage}")
                self._decoded += frame.samples
                yield frame

    def _packets(self) -> Iterator[av.Packet]:
        """The packets of the stream.

        If a container states its length, packets after its last sample are no audio. Raises DecodeError `truncated`
        when the container fails earlier.
        """
        packets = 0
        try:
            for packet in self.container.demux(self.stream):
                packets += packet.size > 0
                yield packet
            self._bytes.check()
        except (av.error.FFmpegError, EOFError) as error:
            self._bytes.check()
            if not self._is_complete():
                raise DecodeError("truncated", f"{_reason(error)} after {self._decoded} samples") from error

        is_coded = not self.stream.codec_context.name.startswith("pcm_")  # else the table lists samples
        if self._format == "mov" and is_coded and 2 * packets < self.stream.frames:
            raise DecodeError(
                "truncated", f"the sample table lists {self.stream.frames} packets, {packets} of them are played"
            )

    def _is_complete(self) -> bool:
        return self.header.num_samples is not None and self._decoded >= self.header.num_samples


def _start(frame: av.AudioFrame) -> Fraction | None:
    """Where a frame begins in the stream, seconds, if it says so."""
    return None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base


def _claimed_flac_samples(stream_info: bytes | None) -> int | None:
    """The last 36 bits before the MD5 of STREAMINFO (RFC 9639, section 8.2); 0 stands for an unknown length."""
    if stream_info is None or len(stream_info) < 34:
        return None
    return int.from_bytes(stream_info[10:18], "big") & ((1 << 36) - 1) or None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
