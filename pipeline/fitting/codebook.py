"""One codebook: k-means by mini-batches (Sculley 2010, https://doi.org/10.1145/1772690.1772862) from random frames.

Entries that are rarely chosen move to random frames, so that all are in use. scikit-learn's `MiniBatchKMeans` does too,
but compares with the most chosen entry and takes any frame: where one frame, such as silence, makes up much of the
music, that empties the codebook (10 of 50 entries in use when 9 of 10 frames are the same). Here an entry is rare by
the mean use, and well coded frames revive none.

HuBERT's script, which MERT refers to (https://github.com/facebookresearch/fairseq, examples/hubert, simple_kmeans),
takes the best of 20 starts. One start leaves the same error (docs/measurements.md, "Fitting codebooks").
"""

from collections.abc import Callable

import numpy as np

STEPS = 100
BATCH_FRAMES = 10_000  # at most
REVIVE_EVERY = 10  # steps
LEAST_USE = 0.1  # of the mean use: an entry used less moves
LEAST_ERROR = 0.1  # of the mean error: a frame with less is coded well

Report = Callable[[int, float], None]  # steps done, mean squared error of a batch
LevelReport = Callable[[int, int, float], None]  # of codebook n, from 0: steps done, error as a share of the variance


def fit_codebook(sample: np.ndarray, entries: int, seed: int, report: Report) -> np.ndarray:
    """Entries float32 `[entries, size]` for frames `[frames, size]`; of the same machine and number of threads, the
    same bytes.

    Raises:
        ValueError: there are fewer frames than entries.
    """
    if len(sample) < entries:
        raise ValueError(f"{len(sample)} frames drawn, too few for {entries} entries")
    random = np.random.default_rng(seed)
    codebook = np.array(sample[np.sort(random.choice(len(sample), entries, replace=False))])
    uses, recent = np.zeros(entries), np.zeros(entries)  # in all, and since entries were last revived
    for step in range(1, STEPS + 1):
        batch = sample[np.sort(random.integers(0, len(sample), batch_frames(len(sample))))]
        codes = nearest(batch, codebook)
        errors = np.square(batch - codebook[codes]).sum(axis=1, dtype=np.float64)
        _update(codebook, uses, batch, codes)
        recent += np.bincount(codes, minlength=entries)
        if step % REVIVE_EVERY == 0 and step < STEPS:
            waiting = np.flatnonzero(errors > LEAST_ERROR * errors.mean())
            rare = np.flatnonzero(recent < LEAST_USE * recent.mean())[: len(waiting)]
            codebook[rare] = batch[random.choice(waiting, len(rare), replace=False)]
            uses[rare], recent[:] = 0, 0  # the next batch puts them amid the frames that choose them
        report(step, float(errors.mean()))
    return codebook


def batch_frames(frames: int) -> int:
    """Frames of a batch, of a sample of so many: `BATCH_FRAMES`, but not more than the sample has."""
    return min(BATCH_FRAMES, frames)


def nearest(frames: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """The nearest entry of each frame, int64 `[frames]`."""
    # |x - e|^2 is least where |e|^2 / 2 - x.e is.
    return (np.square(entries).sum(axis=1) / 2 - frames @ entries.T).argmin(axis=1)


def report_share(report: LevelReport, level: int, variance: float, lost: float = 0.0) -> Report:
    """A report of squared errors as one of shares of the variance; `lost` is an error that no codebook mends."""
    return lambda step, error: report(level, step, (lost + error) / max(variance, 1e-12))


def _update(codebook: np.ndarray, uses: np.ndarray, batch: np.ndarray, codes: np.ndarray) -> None:
    """Move every chosen entry to the mean of all frames that have chosen it so far."""
    order = np.argsort(codes, kind="stable")
    chosen, starts, counts = np.unique(codes[order], return_index=True, return_counts=True)
    sums = np.add.reduceat(batch[order], starts, axis=0)
    uses[chosen] += counts
    codebook[chosen] += (sums - counts[:, None] * codebook[chosen]) / uses[chosen, None]
