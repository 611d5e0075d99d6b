"""An audio file that is open for one pass, and what its container claims."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mert_foundry.pipeline.audio.decode_error import DecodeError

LOWEST_RATE = 1000  # Hz
HIGHEST_RATE = 1 << 24  # Hz; DSD256 has 11.3 MHz, and ffmpeg decodes it to an eighth of that
MOST_CHANNELS = 64  # of ffmpeg's sample converter
NO_AUDIO = "no audio could be decoded"
Ranges = Sequence[tuple[int, int]]  # bytes [start, stop)


@dataclass(frozen=True)
class AudioHeader:
    """What the container claims.

    `num_samples`: samples per channel, None where it states no length or ffmpeg guessed it. `slack`: samples by which
    the decoded length may differ from it, None where the setting `length_tolerance_seconds` applies. `stream`: which of
    several streams this is, empty when there is one. `notes`: `repaired` or `joined`.

    Raises DecodeError for an impossible rate or number of channels.
    """

    sample_rate: int
    channels: int
    num_samples: int | None
    format: str
    slack: int | None = None
    stream: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not LOWEST_RATE <= self.sample_rate <= HIGHEST_RATE or not 0 < self.channels <= MOST_CHANNELS:
            raise DecodeError("unreadable", f"header claims {self.sample_rate} Hz and {self.channels} channels")


class AudioFile(ABC):
    """An open file, for one pass; a context manager."""

    header: AudioHeader

    def __enter__(self) -> "AudioFile":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    @abstractmethod
    def blocks(self) -> Iterator[np.ndarray]:
        """Yield float32 `[channels, n]` blocks in order, any n, in [-1, 1) for integer samples.

        Raises:
            DecodeError: `unreadable` on damage or when there is no audio, `truncated` when the container ends too
                early.
            OSError: the file can no longer be read.
        """


class JoinedFile(AudioFile):
    """Files of one rate and number of channels, one after the other, as one. Raises DecodeError when they differ."""

    def __init__(self, files: Sequence[AudioFile]):
        self._files = files
        first = files[0].header
        for file in files[1:]:
            found = file.header
            if (found.sample_rate, found.channels) != (first.sample_rate, first.channels):
                self.close()
                rates = [f"{each.sample_rate} Hz x {each.channels}" for each in (first, found)]
                raise DecodeError("unreadable", f"joined of {' and '.join(rates)}")
        claimed = [file.header.num_samples for file in files if file.header.num_samples is not None]
        self.header = replace(
            first, num_samples=sum(claimed) if len(claimed) == len(files) else None, notes=("joined",)
        )

    def close(self) -> None:
        for file in self._files:
            file.close()

    def blocks(self) -> Iterator[np.ndarray]:
        for file in self._files:
            yield from file.blocks()
