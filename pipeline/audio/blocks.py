"""Streams of arrays cut anew, and teachers run over a track in memory: what keeps memory bounded for any length."""

from collections.abc import Iterable, Iterator
from itertools import repeat

import numpy as np

from mert_foundry.pipeline.audio.pcm import to_float
from mert_foundry.pipeline.frames import HOP

BLOCK_SAMPLES = 1500 * HOP  # 20 s


def recut(arrays: Iterable[np.ndarray], lengths: Iterable[int], axis: int = 0) -> Iterator[np.ndarray]:
    """Cut a stream of arrays into consecutive pieces of the given lengths along `axis`.

    Ends with the lengths or with the arrays, whichever is first; a last piece may be shorter than asked for.
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
        piece, rest = np.split(joined, [length], axis)
        held = [rest] if rest.shape[axis] else []
        yield piece


def fixed_blocks(blocks: Iterable[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """Cut a stream of arrays `[n]` into blocks of exactly `length`; the last one may be shorter."""
    return recut(blocks, repeat(length))


def float_blocks(audio: np.ndarray) -> Iterator[np.ndarray]:
    """int16 `[T]` in memory as the float32 blocks that teachers take, 20 s each."""
    for start in range(0, len(audio), BLOCK_SAMPLES):
        yield to_float(audio[start : start + BLOCK_SAMPLES])
