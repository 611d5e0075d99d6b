"""Looking for known stretches in a recording: landmarks that agree on one shift in time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mert_foundry.pipeline.fingerprint.landmarks import FRAMES_PER_SECOND, Landmarks

# Landmarks that must agree, and their share of the known stretch's where both overlap. Among 100 tracks of game music
# and 80 stretches of others 8 agreed by chance, or 4 % where a motif came again; of copies nearly all had 15 %
# (docs/measurements.md).
FEWEST_VOTES, SMALLEST_SHARE = 12, 0.08
SHIFTS = 1 << 24  # frames of shift told apart, 99 hours
MOST_SHIFTS = 1 << 22


@dataclass(frozen=True)
class Known:
    """Landmarks of all known stretches, sorted by hash; arrays may lie in mapped files."""

    hashes: np.ndarray  # uint32 `[n]`
    owners: np.ndarray  # int32 `[n]`, number of the stretch
    frames: np.ndarray  # int32 `[n]`
    names: Sequence[str]


@dataclass(frozen=True)
class Match:
    """A known stretch that a recording holds.

    start: seconds of the recording at which the stretch begins; negative where its beginning is cut off. votes:
    landmarks that agree. share: of those of the stretch where both overlap.
    """

    name: str
    start: float
    votes: int
    share: float


def index_stretches(stretches: Iterable[tuple[str, Iterable[Landmarks]]]) -> Known:
    """Gather the landmarks of named stretches."""
    names: list[str] = []
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for name, found in stretches:
        for hashes, frames in found:
            parts.append((hashes, np.full(len(hashes), len(names), np.int32), frames))
        names.append(name)
    empty = (np.zeros(0, np.uint32), np.zeros(0, np.int32), np.zeros(0, np.int32))
    hashes, owners, frames = (np.concatenate(column) for column in zip(empty, *parts))
    order = np.lexsort((frames, owners, hashes))
    return Known(hashes[order], owners[order], frames[order], names)


def search(known: Known, found: Iterable[Landmarks]) -> Match | None:
    """The stretch that most landmarks of a recording agree on, or None where too few do.

    Memory is bounded: with more than 4 million shifts at hand, those that one landmark alone speaks for are forgotten.
    """
    shifts, votes, waiting = np.zeros(0, np.int64), np.zeros(0, np.int64), []
    length = 0
    for hashes, frames in found:
        if len(frames):
            length = max(length, int(frames[-1]))
        waiting.append(_shifts(known, hashes, frames))
        if sum(map(len, waiting)) >= MOST_SHIFTS // 4:
            shifts, votes = _count(shifts, votes, waiting)
            waiting = []
            if len(shifts) > MOST_SHIFTS:
                shifts, votes = shifts[votes > 1], votes[votes > 1]
    shifts, votes = _count(shifts, votes, waiting)
    # A shift that is no whole number of frames is divided between two.
    together = votes + np.append(np.where(np.diff(shifts) == 1, votes[1:], 0), 0) if len(votes) else votes
    own_frames: dict[int, np.ndarray] = {}
    for index in np.argsort(-together, kind="stable"):
        if together[index] < FEWEST_VOTES:
            break
        owner, shift = divmod(int(shifts[index]), SHIFTS)
        if owner not in own_frames:
            own_frames[owner] = known.frames[known.owners == owner]
        match = _judge(known.names[owner], own_frames[owner], shift - SHIFTS // 2, length, int(together[index]))
        if match.share >= SMALLEST_SHARE:
            return match
    return None


def _shifts(known: Known, hashes: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """For each pair of equal hashes, the stretch and the frames by which it is shifted, as one number."""
    first, last = np.searchsorted(known.hashes, hashes, "left"), np.searchsorted(known.hashes, hashes, "right")
    counts = last - first
    total = int(counts.sum())
    # Positions first[i] .. last[i] of all i, one after another.
    indices = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    shift = np.repeat(frames.astype(np.int64), counts) - known.frames[indices]
    return known.owners[indices].astype(np.int64) * SHIFTS + shift + SHIFTS // 2


def _count(shifts: np.ndarray, votes: np.ndarray, more: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Equal shifts added up: some with their votes so far, and more with one vote each."""
    unique, indices = np.unique(np.concatenate([shifts, *more]), return_inverse=True)
    weights = np.concatenate([votes, np.ones(len(indices) - len(votes), np.int64)])
    return unique, np.bincount(indices, weights, len(unique)).astype(np.int64)


def _judge(name: str, frames: np.ndarray, shift: int, length: int, votes: int) -> Match:
    overlapping = int(np.count_nonzero((frames + shift >= 0) & (frames + shift <= length)))
    return Match(
        name=name, start=round(shift / FRAMES_PER_SECOND, 2), votes=votes, share=round(votes / max(1, overlapping), 3)
    )
