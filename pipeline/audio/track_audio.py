"""A track decoded once, into memory if it is short, else into a temporary file, so that memory is bounded for any
length.

Each teacher and the shard writer then read it at their own speed: an hour of 16 bits at 24 kHz takes 173 MB of disk.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from io import FileIO
from typing import Protocol, cast

import numpy as np

from mert_foundry.pipeline.audio.blocks import BLOCK_SAMPLES, to_float
from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE, whole_frames

BYTES = 2  # of a sample
MOST_IN_MEMORY = 1 << 20  # bytes, 22 s: a file of its own takes longer than such a track's samples


class TrackAudio:
    """Decoded audio, int16 24 kHz mono, cut to whole frames; a context manager that removes its file, if it has one.

    Raises:
        OSError: the folder for temporary files (TMPDIR) is full, naming it.
    """

    def __init__(self, blocks: Iterable[np.ndarray]):
        self._samples = bytearray()  # those that are in no file
        self._file: FileIO | None = None
        samples = 0
        for block in blocks:
            self._samples += block.astype("<i2", copy=False).tobytes()
            samples += len(block)
            if self._file or len(self._samples) > MOST_IN_MEMORY:
                self._to_file()
        self.num_frames = whole_frames(samples)

    def __enter__(self) -> "TrackAudio":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the temporary file, or what is in memory."""
        self._samples.clear()
        if self._file:
            self._file.close()

    def read(self, start: int, count: int) -> np.ndarray:
        """int16 samples [start, start + count), as many of them as there are."""
        count = max(0, min(count, self.num_frames * HOP - start))
        first, size = start * BYTES, count * BYTES
        content = (
            os.pread(self._file.fileno(), size, first) if self._file else bytes(self._samples[first : first + size])
        )
        return np.frombuffer(content, "<i2")

    def blocks(self) -> Iterator[np.ndarray]:
        """The track from its start as float32 blocks of 20 s, the last one shorter."""
        for start in range(0, self.num_frames * HOP, BLOCK_SAMPLES):
            yield to_float(self.read(start, BLOCK_SAMPLES))

    def silence(self, start: int, count: int) -> None:
        """Set samples [start, start + count) to zero; they must be there."""
        first, zeros = start * BYTES, bytes(count * BYTES)
        if self._file:
            self._file.seek(first)
            self._write(self._file, zeros)
        else:
            self._samples[first : first + len(zeros)] = zeros

    def _to_file(self) -> None:
        """Move what is in memory to the end of the file."""
        if self._file is None:
            self._file = cast(FileIO, tempfile.TemporaryFile(prefix="mert-track-", buffering=0))
        self._write(self._file, bytes(self._samples))
        self._samples.clear()

    def _write(self, file: FileIO, data: bytes) -> None:
        try:
            while data:
                data = data[file.write(data) :]
        except OSError as error:
            raise OSError(f"{tempfile.gettempdir()}: a decoded track does not fit ({error.strerror})") from error


class Audio(Protocol):
    """A track at 24 kHz, decoded or in a shard; a context manager."""

    def __enter__(self) -> object: ...

    def __exit__(self, *exception: object) -> None: ...

    def blocks(self) -> Iterator[np.ndarray]:
        """The track from its start as float32 blocks in [-1, 1)."""
        ...


def audio_at(audio: Audio, sample_rate: int) -> TrackAudio:
    """Resample a track, Hz, cut to multiples of 320 samples; the audio given is closed."""
    # Resampling needs torchaudio, which audio that is at the right rate does without.
    from mert_foundry.pipeline.audio.resample import resample_to_int16

    with audio:
        return TrackAudio(resample_to_int16((block[None] for block in audio.blocks()), SAMPLE_RATE, sample_rate))
