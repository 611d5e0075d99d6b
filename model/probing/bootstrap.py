"""Intervals over groups and seeds, and paired differences.

A draw takes as many groups as there are, with replacement, and all tracks of each; and as many seeds as there are, with
replacement. Its score is the mean over the drawn seeds of their scores on the drawn groups. The interval holds the
middle share of the draws' scores (percentile bootstrap). Groups stand for the pieces that might have been tested, seeds
for the heads that might have been trained.
"""

from dataclasses import dataclass

import numpy as np

from mert_foundry.model.probing.features import FloatArray, IntArray

_GROUPS, _SEEDS = range(2)


@dataclass(frozen=True)
class Interval:
    """Bounds; NaN where no draw could be scored, or none were asked for."""

    low: float
    high: float


def group_draws(group: IntArray, draws: int, seed: int = 0) -> FloatArray:
    """float64 [draws, N]: how often each of N items is drawn; `group` [N] has the number of its group.

    The same groups and seed give the same draws, so differences between two models on the same tracks are paired.
    """
    groups = int(group.max()) + 1
    generator = np.random.default_rng([seed, _GROUPS])
    counts = generator.multinomial(groups, np.full(groups, 1 / groups), size=draws)
    return counts[:, group].astype(np.float64)


def seed_draws(seeds: int, draws: int, seed: int = 0) -> FloatArray:
    """float64 [draws, seeds]: the share of each seed in each draw."""
    generator = np.random.default_rng([seed, _SEEDS])
    return generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds


def drawn_scores(scores: FloatArray, shares: FloatArray) -> FloatArray:
    """[draws]: the mean over drawn seeds of scores [seeds, draws], with `shares` [draws, seeds]."""
    return (scores.T * shares).sum(axis=1)


def interval(scores: FloatArray, confidence: float) -> Interval:
    """The middle `confidence` (0 to 1) of the draws' scores [draws]; draws that could not be scored
    (NaN) do not count.
    """
    known = scores[~np.isnan(scores)]
    if not len(known):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))
