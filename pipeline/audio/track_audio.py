"""A track decoded once into a temporary file, so that memory is bounded for any length.

Each teacher and the shard writer then read it at their own speed: an hour of 16 bits at 24 kHz takes 173 MB of disk.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from mert_foundry.pipeline.audio.blocks import BLOCK_SAMPLES, to_float
from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE, whole_frames

BYTES = 2  # of a sample


class TrackAudio:
    """Decoded audio, int16 24 kHz mono, cut to whole frames; a context manager that removes its file.

    Raises:
        OSError: the folder for temporary files (TMPDIR) is full, naming it.
    """

    def __init__(self, blocks: Iterable[np.ndarray]):
        self._file = tempfile.TemporaryFile(prefix="mert-track-", buffering=0)
        samples = 0
        for block in blocks:
            self._write(block.astype("<i2").tobytes())
            samples += len(block)
        self.num_frames = whole_frames(samples)

    def __enter__(self) -> "TrackAudio":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()

    def read(self, start: int, count: int) -> np.ndarray:
        """int16 samples [start, start + count), as many of them as there are."""
        count = max(0, min(count, self.num_frames * HOP - start))
        return np.frombuffer(os.pread(self._file.fileno(), count * BYTES, start * BYTES), "<i2")

    def blocks(self) -> Iterator[np.ndarray]:
        """The track from its start as float32 blocks of 20 s, the last one shorter."""
        for start in range(0, self.num_frames * HOP, BLOCK_SAMPLES):
            yield to_float(self.read(start, BLOCK_SAMPLES))

    def silence(self, start: int, count: int) -> None:
        """Set samples [start, start + count) to zero; they must be there."""
        self._file.seek(start * BYTES)
        self._write(bytes(count * BYTES))

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[self._file.write(data) :]
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
