"""How well codebooks code frames: the error that is left after each, and how evenly their entries are used."""

from collections.abc import Iterable

import numpy as np

from mert_foundry.pipeline.fitting.codebook import nearest
from mert_foundry.pipeline.shards.statistics import DiscreteCounts, summarise_counts


def codebook_quality(parts: Iterable[tuple[np.ndarray, np.ndarray]], codebooks: np.ndarray) -> dict:
    """Relative error after each codebook, and entries in use and perplexity of each, over frames.

    Args:
        parts: float32 frames `[frames, size]`, and what is coded of each, `[frames, dimensions]`: the frame itself or
            its projection onto orthonormal directions.
        codebooks: float32 `[levels, entries, dimensions]`.

    Returns `frames`, and by level `relative_error` (of the frames' variance), `used` and `perplexity`.
    """
    levels, entries, _ = codebooks.shape
    counts, errors = np.zeros((levels, entries), np.int64), np.zeros(levels)
    frames, squares, sums = 0, 0.0, np.zeros(1)
    for whole, coded in parts:
        frames += len(whole)
        sums = sums + whole.sum(axis=0, dtype=np.float64)
        energy = np.square(whole, dtype=np.float64).sum()
        squares += energy
        lost = energy - np.square(coded, dtype=np.float64).sum()  # outside the directions: no codebook brings it back
        remainder = coded
        for level, codebook in enumerate(codebooks):
            codes = nearest(remainder, codebook)
            remainder = remainder - codebook[codes]
            counts[level] += np.bincount(codes, minlength=entries)
            errors[level] += lost + np.square(remainder, dtype=np.float64).sum()
    variance = squares - np.square(sums).sum() / frames
    perplexity = summarise_counts(DiscreteCounts(counts=counts.tolist())).perplexity
    return {
        "frames": frames,
        "relative_error": [round(float(error / max(variance, 1e-12)), 4) for error in errors],
        "used": (counts > 0).sum(axis=1).tolist(),
        "perplexity": [round(value, 1) for value in perplexity],
    }
