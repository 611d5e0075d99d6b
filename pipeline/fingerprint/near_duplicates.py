"""Pairs of recordings that are copies of each other, encoded anew, trimmed or scaled, among any number of them.

Pairs that share a few rare keys come from an index of these, and are then compared sketch by sketch. The index links
each rare key of a recording to the next few recordings that have it, so work grows with the number of recordings, also
where thousands share a key: copies of one recording share many keys, and are linked by some of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mert_foundry.pipeline.fingerprint.landmarks import FRAMES_PER_SECOND
from mert_foundry.pipeline.fingerprint.sketch import Sketch

NEIGHBOURS = 16  # recordings to which a rare key links; of a million, five have it by chance
BLOCK = 50_000  # recordings whose links are counted together, for less memory
FEWEST_SHARED = 2  # rare keys of a pair that is compared
# Of a near duplicate: keys that agree on a shift in time, their share of those where both overlap, and the share of the
# shorter recording that lies in windows with such keys. Between 45 s of 25 different tracks of game music 3 of 5,000
# agreed at most; of copies 6 % at least (docs/measurements.md).
FEWEST_VOTES, SMALLEST_SHARE, SHORTER_SHARE = 6, 0.02, 0.5
WINDOW_SECONDS = 10.0


@dataclass(frozen=True)
class Overlap:
    """What two recordings have in common.

    start: seconds of the first at which the second begins; negative where it begins before. seconds: how long it is.
    share: of the keys of one, where both overlap, that the other has at the same place.
    """

    start: float
    seconds: float
    share: float


def find_near_duplicates(sketches: Sequence[Sketch], lengths: Sequence[float]) -> Iterator[tuple[int, int]]:
    """Pairs of near duplicates, by number, in order; `lengths` in seconds.

    Of many copies of a recording not all pairs are given, but a chain that joins them.
    """
    for first, second in _candidates(sketches):
        if compare(sketches[first], sketches[second], lengths[first], lengths[second]):
            yield int(first), int(second)


def compare(first: Sketch, second: Sketch, first_seconds: float, second_seconds: float) -> Overlap | None:
    """What two recordings have in common, if they are near duplicates."""
    divisor = max(first.divisor, second.divisor)
    first, second = first.thinned(divisor), second.thinned(divisor)
    frames, shifts = _equal_keys(first, second)
    if len(shifts) < FEWEST_VOTES:
        return None
    values, votes = np.unique(shifts, return_counts=True)
    # A shift that is no whole number of frames is divided between two.
    together = votes + np.append(np.where(np.diff(values) == 1, votes[1:], 0), 0)
    shift = int(values[np.argmax(together)])
    agreed = np.unique(frames[(shifts == shift) | (shifts == shift + 1)])
    start = shift / FRAMES_PER_SECOND
    begin, end = max(0.0, start), min(first_seconds, start + second_seconds)
    inside = [
        int(np.count_nonzero((at >= begin * FRAMES_PER_SECOND) & (at <= end * FRAMES_PER_SECOND)))
        for at in (first.frames, second.frames + shift)
    ]
    windows = np.unique((agreed / FRAMES_PER_SECOND - begin) // WINDOW_SECONDS)
    seconds = float(np.sum(np.clip(end - begin - windows * WINDOW_SECONDS, 0, WINDOW_SECONDS)))
    share = len(agreed) / max(1, min(inside))
    if len(agreed) < FEWEST_VOTES or share < SMALLEST_SHARE:
        return None
    if seconds < SHORTER_SHARE * min(first_seconds, second_seconds):
        return None
    return Overlap(round(start, 2), round(seconds, 2), round(min(1.0, share), 3))


def _equal_keys(first: Sketch, second: Sketch) -> tuple[np.ndarray, np.ndarray]:
    """For each pair of equal keys, the frame in the first and the frames by which the second lies later in it."""
    begin = np.searchsorted(second.keys, first.keys, "left")
    counts = np.searchsorted(second.keys, first.keys, "right") - begin
    # Positions begin[i], begin[i] + 1, ... counts[i] times, of all i one after another.
    indices = np.arange(int(counts.sum())) + np.repeat(begin - np.cumsum(counts) + counts, counts)
    frames = np.repeat(first.frames.astype(np.int64), counts)
    return frames, frames - second.frames[indices]


def _candidates(sketches: Sequence[Sketch]) -> np.ndarray:
    """Pairs of numbers, int64 `[n, 2]`, the smaller first, that share rare keys."""
    keys = np.concatenate([np.zeros(0, np.uint64), *(one.rare for one in sketches)])
    owners = np.repeat(np.arange(len(sketches), dtype=np.int32), [len(one.rare) for one in sketches])
    order = np.argsort(keys, kind="stable")  # so that the owners of a key are in their order
    keys, owners = keys[order], owners[order]
    found = [np.zeros(0, np.int64)]
    for begin in range(0, len(sketches), BLOCK):
        positions = np.flatnonzero((owners >= begin) & (owners < begin + BLOCK))
        linked = []
        for distance in range(1, NEIGHBOURS + 1):
            first = positions[: np.searchsorted(positions, len(keys) - distance)]
            first = first[keys[first] == keys[first + distance]]
            linked.append(owners[first].astype(np.int64) * len(sketches) + owners[first + distance])
        pairs, shared = np.unique(np.concatenate(linked), return_counts=True)
        found.append(pairs[shared >= FEWEST_SHARED])
    return np.stack(np.divmod(np.concatenate(found), max(1, len(sketches))), axis=1)
