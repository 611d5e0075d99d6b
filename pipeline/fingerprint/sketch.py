"""A sketch of a whole recording: rare keys, a few a second, of which all its copies have many in common.

A landmark is one of 4 million, and a million recordings share each of them. A key joins two landmarks that begin at one
peak, 35 bits; a rare key joins three, 48 bits, and a copy keeps fewer of those. Keys tell how alike two recordings are,
rare keys which of a million to compare. All copies of a recording keep the same keys, as a hash of the key says which;
how many are kept follows from their number, in powers of two, so that what a long copy keeps a short one keeps too.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from mert_foundry.pipeline.fingerprint.landmarks import Landmarks

SKETCH_VERSION = 1  # raise it when the same audio gets another sketch
MOST_KEYS = 1024  # kept, unless so many lie further apart than LARGEST_DIVISOR makes them
LARGEST_DIVISOR = 32  # about 3.5 keys a second are left
MOST_RARE, LARGEST_RARE_DIVISOR = 256, 64
PAIR_BITS = np.uint32(13)  # of a landmark: rise and step, after the pitch of its first peak
PAIR_MASK = np.uint32((1 << 13) - 1)
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # Knuth's multiplicative hashing, 64 bits


@dataclass(frozen=True)
class Sketch:
    """What is kept of a recording.

    Args:
        keys: in their order, uint64 `[n]`.
        frames: where they are, int32 `[n]`.
        divisor: which keys are kept: one of so many.
        rare: rare keys in their order, each once, uint64 `[m]`.
        rare_divisor: which rare keys are kept.
    """

    keys: np.ndarray
    frames: np.ndarray
    divisor: int
    rare: np.ndarray
    rare_divisor: int

    def thinned(self, divisor: int) -> "Sketch":
        """With the keys that a sketch of a larger divisor keeps."""
        if divisor <= self.divisor:
            return self
        kept = is_kept(self.keys, divisor)
        return replace(self, keys=self.keys[kept], frames=self.frames[kept], divisor=divisor)


def sketch(found: Iterable[Landmarks]) -> Sketch:
    """The sketch of a recording, of its landmarks in order."""
    parts = [(np.zeros(0, np.uint64), np.zeros(0, np.int32), np.zeros(0, np.uint64))]
    parts += ((*_keys(hashes, frames), _rare_keys(hashes, frames)) for hashes, frames in found)
    keys, frames, rare = (np.concatenate(column) for column in zip(*parts))
    order, rare = np.lexsort((frames, keys)), np.unique(rare)
    divisor = divisor_for(len(rare), MOST_RARE, LARGEST_RARE_DIVISOR)
    whole = Sketch(keys[order], frames[order], 1, rare[is_kept(rare, divisor)], divisor)
    return whole.thinned(divisor_for(len(keys), MOST_KEYS, LARGEST_DIVISOR))


def divisor_for(count: int, most: int, largest: int) -> int:
    """The power of two that leaves about `most` of `count` keys, or `largest`."""
    divisor = 1
    while count > most * divisor and divisor < largest:
        divisor *= 2
    return divisor


def is_kept(keys: np.ndarray, divisor: int) -> np.ndarray:
    """Which keys a sketch of this divisor, a power of two, keeps."""
    return np.asarray((keys * GOLDEN >> np.uint64(40)) & np.uint64(divisor - 1) == 0)


def _keys(hashes: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys of all pairs of landmarks that begin at the same peak, and their frames; a peak's landmarks follow each
    other.
    """
    keys, at = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)]
    for second in (1, 2, 3):  # a peak begins four landmarks at most
        first = _begin_together(hashes, frames, second)
        keys.append(_join(hashes, first, second))
        at.append(frames[first])
    return np.concatenate(keys), np.concatenate(at)


def _rare_keys(hashes: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Keys of all threes of landmarks that begin at the same peak."""
    threes = [(1, 2), (1, 3), (2, 3)]
    keys = [_join(hashes, _begin_together(hashes, frames, third), second, third) for second, third in threes]
    return np.concatenate(keys)


def _begin_together(hashes: np.ndarray, frames: np.ndarray, distance: int) -> np.ndarray:
    """Numbers of landmarks that begin at the peak of the one so much later in the order."""
    pitches = hashes >> PAIR_BITS
    is_same = (pitches[:-distance] == pitches[distance:]) & (frames[:-distance] == frames[distance:])
    return np.flatnonzero(is_same)


def _join(hashes: np.ndarray, first: np.ndarray, *distances: int) -> np.ndarray:
    """The landmarks of these numbers, and rise and step of those at these distances, as one number each."""
    keys = hashes[first].astype(np.uint64)
    for distance in distances:
        keys = keys << np.uint64(PAIR_BITS) | (hashes[first + distance] & PAIR_MASK).astype(np.uint64)
    return keys
