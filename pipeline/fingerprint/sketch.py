"""A sketch of a whole recording: rare keys, a few a second, of which all its copies have many in common.

A landmark is one of 4 million, and a million recordings share each of them. A key joins two landmarks that begin at one peak, 35 bits:
two recordings have one of their keys in common by chance, not one in eighty million pairs of keys. All copies of a recording keep the
same keys, as a hash of the key says which; how many are kept follows from their number, in powers of two, so that what a
long copy keeps a short one keeps too.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mert_foundry.pipeline.fingerprint.landmarks import Landmarks

SKETCH_VERSION = 1  # raise it when the same audio gets another sketch
MOST_KEYS = 1024  # kept, unless so many lie further apart than LARGEST_DIVISOR makes them
LARGEST_DIVISOR = 32  # about 3.5 keys a second are left
PITCH_SHIFT, PAIR_BITS = np.uint32(13), np.uint32(13)  # a landmark: pitch of its first peak, then rise and step
PAIR_MASK = np.uint32((1 << 13) - 1)
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # Knuth's multiplicative hashing, 64 bits


@dataclass(frozen=True)
class Sketch:
    """Keys in their order, uint64 `[n]`, the frames where they are, int32 `[n]`, and the divisor that was left of them."""

    keys: np.ndarray
    frames: np.ndarray
    divisor: int

    def thinned(self, divisor: int) -> "Sketch":
        """The keys that a sketch of a larger divisor keeps."""
        if divisor <= self.divisor:
            return self
        kept = _is_kept(self.keys, divisor)
        return Sketch(self.keys[kept], self.frames[kept], divisor)


def sketch(found: Iterable[Landmarks]) -> Sketch:
    """The sketch of a recording, of its landmarks in order."""
    keys, frames = zip((np.zeros(0, np.uint64), np.zeros(0, np.int32)), *map(_keys, found))
    whole = Sketch(np.concatenate(keys), np.concatenate(frames), 1)
    order = np.lexsort((whole.frames, whole.keys))
    ordered = Sketch(whole.keys[order], whole.frames[order], 1)
    return ordered.thinned(divisor_for(len(order), MOST_KEYS, LARGEST_DIVISOR))


def divisor_for(count: int, most: int, largest: int) -> int:
    """The power of two that leaves about `most` of `count` keys, or `largest`."""
    divisor = 1
    while count > most * divisor and divisor < largest:
        divisor *= 2
    return divisor


def _keys(found: Landmarks) -> tuple[np.ndarray, np.ndarray]:
    """Keys of all pairs of landmarks that begin at the same peak; a peak's landmarks follow each other."""
    hashes, frames = found
    keys, at = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)]
    for distance in (1, 2, 3):  # a peak begins four landmarks at most
        first, second = hashes[:-distance], hashes[distance:]
        is_same = (first >> PITCH_SHIFT == second >> PITCH_SHIFT) & (frames[:-distance] == frames[distance:])
        pairs = second[is_same] & PAIR_MASK
        keys.append(first[is_same].astype(np.uint64) << np.uint64(PAIR_BITS) | pairs.astype(np.uint64))
        at.append(frames[:-distance][is_same])
    return np.concatenate(keys), np.concatenate(at)


def _is_kept(keys: np.ndarray, divisor: int) -> np.ndarray:
    return (keys * GOLDEN >> np.uint64(40)) & np.uint64(divisor - 1) == 0
