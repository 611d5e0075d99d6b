"""Samples as float and as 16 bits, and streams of blocks cut to other lengths, so that memory is
bounded for any track.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import repeat

import numpy as np

from mert_foundry.pipeline.frames import HOP

BLOCK_SAMPLES = 1500 * HOP  # 20 s
FULL_SCALE = 32768  # of 16 bits
# Audio with a lower peak is silent, dB full scale: for segments of tracks, and for tracks by the manifest's default.
SILENCE_DBFS = -60.0


def to_int16(audio: np.ndarray) -> np.ndarray:
    """Float samples in [-1, 1) to int16, rounded to nearest even; louder ones clip."""
    scaled = audio * audio.dtype.type(FULL_SCALE)
    np.rint(scaled, out=scaled)
    np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1, out=scaled)
    return scaled.astype(np.int16)


def to_float(audio: np.ndarray) -> np.ndarray:
    """int16 samples to float32 in [-1, 1)."""
    return audio.astype(np.float32) / np.float32(FULL_SCALE)


def peak_of(audio: np.ndarray) -> int:
    """The largest magnitude in int16 samples `[T]`, T > 0; up to 32768, one more than int16 can hold."""
    return max(int(audio.max()), -int(audio.min()))


def to_dbfs(peak: int) -> float:
    """A magnitude of 16 bits in dB full scale; -200 for digital silence."""
    return 20 * math.log10(max(peak / FULL_SCALE, 1e-10))


def recut(arrays: Iterable[np.ndarray], lengths: Iterable[int], axis: int = 0) -> Iterator[np.ndarray]:
    """Cut a stream of arrays into consecutive pieces of the given lengths along `axis`.

    Ends with the lengths or with the arrays, whichever end first; the last piece may be shorter.
    """
    source = iter(arrays)
    held: list[np.ndarray] = []
    for length in lengths:
        available = sum(array.shape[axis] for array in held)
        while available < length and (array := next(source, None)) is not None:
            held.append(array)
            available += array.shape[axis]
        if not available:
            return
        joined = held[0] if len(held) == 1 else np.concatenate(held, axis)
        piece, remainder = np.split(joined, [length], axis)
        held = [remainder] if remainder.shape[axis] else []
        yield piece


def fixed_blocks(blocks: Iterable[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """Cut a stream of arrays `[n]` into blocks of exactly `length`; the last one may be shorter."""
    return recut(blocks, repeat(length))


def float_blocks(audio: np.ndarray) -> Iterator[np.ndarray]:
    """int16 `[T]` in memory as the float32 blocks that teachers take, 20 s each."""
    for start in range(0, len(audio), BLOCK_SAMPLES):
        yield to_float(audio[start : start + BLOCK_SAMPLES])
