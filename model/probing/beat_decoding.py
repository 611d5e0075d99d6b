"""Beats from the probability of a beat in each frame: the best path of beats with a slowly changing period.

madmom's DBN, which MARBLE uses, does not build on Python 3.11. This is the same idea as a dynamic program over beats: a
state is (frame of a beat, period since the beat before). A path scores, for each of its beats, the log likelihood ratio
of beat against no beat in its frame, plus the log probability of its period p after a period q:

    score(t, p) = evidence(t) + max over q of [score(t - p, q) + log P(p | q)],  P(p | q) ~ exp(-tightness * log(p /
    q)^2)

P sums to 1 over p. So each beat pays for the choice of its position, and a path at twice the tempo, which has twice the
choices in which to find noise, gains nothing by it. The first beat lies within one period of the start, the last within
one period of the end, so a path has no gaps. The squared log ratio is Ellis' price (Beat Tracking by Dynamic
Programming, JNMR 2007); there it is taken against one global tempo, here against the period before, so that phase and
tempo are found together and the tempo may drift.
"""

from collections.abc import Sequence

import numpy as np

from mert_foundry.model.probing.features import FloatArray, IntArray

SLOWEST, FASTEST = 55.0, 215.0  # beats per minute, the range of madmom's DBN
# A period differs from the one before by 5 % (standard deviation, 1 / sqrt(2 * 200)); at 200 bpm and 75 Hz a frame is
# 4.4 %.
TIGHTNESS = 200.0
# A probability is believed to within this: one frame alone neither makes nor forbids a beat.
LEAST_PROBABILITY = 0.01
_EXCERPTS_AT_ONCE = 64
_UNREACHED = -1e30


def decode_beats(probability: Sequence[FloatArray], frame_rate: float) -> list[FloatArray]:
    """Times of the beats of each excerpt, seconds from its first frame's start; a beat lies in the middle of its frame.

    Excerpts of equal length are decoded side by side, some at a time. Where frames are so long that no period from 55
    to 215 beats per minute is a whole number of them, such as musicnn's of 3 s, there are no beats to find.

    Args:
        probability: of a beat, [frames] for each excerpt, values in 0 to 1.
        frame_rate: Hz.
    """
    lengths = np.array([len(excerpt) for excerpt in probability])
    result: list[FloatArray] = [np.empty(0)] * len(probability)
    if not len(_periods(frame_rate)):
        return result
    for length in np.unique(lengths):
        alike = np.flatnonzero(lengths == length).tolist()
        for first in range(0, len(alike), _EXCERPTS_AT_ONCE):
            some = alike[first : first + _EXCERPTS_AT_ONCE]
            paths = _best_paths(np.stack([probability[index] for index in some]), frame_rate)
            for index, path in zip(some, paths):
                result[index] = (path + 0.5) / frame_rate
    return result


def tempo_of(beats: FloatArray) -> float:
    """Beats per minute, by the line of least squares through the times of the beats; 0 for fewer than two."""
    if len(beats) < 2:
        return 0.0
    return 60 / float(np.polyfit(np.arange(len(beats)), beats, 1)[0])


def _periods(frame_rate: float) -> IntArray:
    """Periods of the tempo range, whole frames."""
    return np.arange(int(np.ceil(60 * frame_rate / FASTEST)), int(60 * frame_rate / SLOWEST) + 1)


def _best_paths(probability: FloatArray, frame_rate: float) -> list[IntArray]:
    """Frames of the beats on the best path of each excerpt of `probability` [N, frames]."""
    excerpts, frames = probability.shape
    periods = _periods(frame_rate)
    every = np.arange(1, 2 * periods[-1])  # of which the range is a part: at its ends, too, a choice has its full price
    change = -TIGHTNESS * np.log(periods[:, None] / periods) ** 2  # [period, period before]
    change -= np.log(np.exp(-TIGHTNESS * np.log(every[:, None] / periods) ** 2).sum(axis=0))
    evidence = _evidence(probability)
    # Of a path whose last beat is at t, with period p: its score; and the best that a beat of period p after it can
    # follow.
    score = np.full((frames, excerpts, len(periods)), _UNREACHED)
    best_before = np.full((frames, excerpts, len(periods)), _UNREACHED)
    before = np.full((frames, excerpts, len(periods)), -1, dtype=np.int16)
    column = np.arange(len(periods))
    for t in range(frames):
        started = t - periods >= 0
        score[t] = np.where(t < periods, evidence[:, t, None], _UNREACHED)
        reached = score[t][:, started]
        np.maximum(reached, evidence[:, t, None] + best_before[t - periods[started], :, column[started]].T, out=reached)
        score[t][:, started] = reached
        candidates = score[t][:, None, :] + change
        before[t] = candidates.argmax(axis=2)
        best_before[t] = np.take_along_axis(candidates, before[t][:, :, None].astype(np.int64), axis=2)[:, :, 0]
    return [_trace(score[:, n], before[:, n], periods) for n in range(excerpts)]


def _evidence(probability: FloatArray) -> FloatArray:
    """[N, frames]: log of P(frame | beat) / P(frame | no beat).

    By Bayes that is the log odds of the probability minus those of the prior, for which the excerpt's mean stands. So a
    head that is sure of nothing, but surer on beats than elsewhere, still speaks for its beats.
    """
    clipped = np.clip(probability.astype(np.float64), LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    prior = clipped.mean(axis=1, keepdims=True)
    return np.log(clipped / (1 - clipped)) - np.log(prior / (1 - prior))


def _trace(score: FloatArray, before: IntArray, periods: IntArray) -> IntArray:
    """Frames of the best path of one excerpt, from `score` and `before` [frames, periods]."""
    frames = len(score)
    may_end = np.arange(frames)[:, None] > frames - 1 - periods
    t, p = np.unravel_index(np.argmax(np.where(may_end, score, -np.inf)), score.shape)
    path = [int(t)]
    while t - periods[p] >= 0:
        t = t - periods[p]
        p = before[t, p]
        path.append(int(t))
    return np.array(path[::-1])
