"""A file decoded and resampled as shards hold audio, with the digest of what was decoded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mert_foundry.pipeline.audio.audio_file import AudioHeader
from mert_foundry.pipeline.audio.decode import AudioDigest, open_audio
from mert_foundry.pipeline.audio.pitch_shift import shift_to_int16
from mert_foundry.pipeline.audio.resample import mono_to_int16, to_mono
from mert_foundry.pipeline.audio.track_audio import TrackAudio


@dataclass(frozen=True)
class Decoding:
    """A file that is being decoded.

    Args:
        header: what the file claims.
        digest: of the decoded audio; whole once all blocks are taken.
        blocks: int16 `[n]`, 24 kHz mono, for one pass. Raises DecodeError as `AudioDigest.follow`.
    """

    header: AudioHeader
    digest: AudioDigest
    blocks: Iterator[np.ndarray]


@contextmanager
def decoding(path: Path, device: str = "cpu", semitones: int = 0) -> Iterator[Decoding]:
    """Open a local file; `device` resamples it, to the same samples on any. Raises as `open_audio`.

    Args:
        semitones: by which the blocks are shifted in pitch; the digest is that of the file.
    """
    with open_audio(path) as audio:
        digest, rate = AudioDigest(audio.header), audio.header.sample_rate
        mono = map(to_mono, digest.follow(audio.blocks()))
        shifted = (
            shift_to_int16(mono, rate, semitones, device) if semitones else mono_to_int16(mono, rate, device=device)
        )
        yield Decoding(audio.header, digest, shifted)


def decode_file(path: Path, check: Callable[[Decoding], None], device: str = "cpu", semitones: int = 0) -> TrackAudio:
    """Decode a local file to its end; device and semitones as in `decoding`.

    Args:
        check: is given the file once it is decoded; what it raises is raised, and nothing is left.

    Raises:
        DecodeError: as `open_audio` and `AudioDigest.follow`. OSError: as `TrackAudio`.
    """
    with decoding(path, device, semitones) as file:
        decoded = TrackAudio(file.blocks)
        try:
            check(file)
        except BaseException:
            decoded.close()
            raise
    return decoded
