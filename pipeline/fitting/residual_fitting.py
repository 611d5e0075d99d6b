"""Fit residual codebooks to features: principal components of the standardised frames, then k-means over and over.

The projection keeps the directions in which frames differ most, so that codebooks are small and fitting is fast; the weights
are those of `pipeline.teachers.residual_kmeans.ResidualKmeans`.
"""

import numpy as np
from threadpoolctl import threadpool_limits

from mert_foundry.pipeline.fitting.codebook import BATCH_FRAMES, LevelReport, fit_codebook, nearest, report_share
from mert_foundry.pipeline.fitting.codebook_quality import codebook_quality
from mert_foundry.pipeline.fitting.moments import moments
from mert_foundry.pipeline.fitting.sample import batches
from mert_foundry.pipeline.shards.statistics import standardising_deviation


def fit_residual(
    sample: np.ndarray, levels: int, entries: int, dimensions: int, seed: int, report: LevelReport
) -> dict[str, np.ndarray]:
    """The weights of `ResidualKmeans` for frames `[frames, size]`, float32; memory holds `[frames, dimensions]`.

    Raises:
        ValueError: there are fewer frames than entries.
    """
    with threadpool_limits(1):  # the same machine gives the same bytes
        exact_mean, exact_variance = moments(sample)
        mean = exact_mean.astype(np.float32)
        deviation = standardising_deviation(exact_variance).astype(np.float32)
        projection, variance = _principal_components(sample, mean, deviation, dimensions)
        remainder = np.concatenate([((part - mean) / deviation) @ projection for part in batches(sample, BATCH_FRAMES)])
        lost = variance - float(np.square(remainder, dtype=np.float64).sum() / len(remainder))
        codebooks = []
        for level in range(levels):
            codebook = fit_codebook(remainder, entries, seed + level, report_share(report, level, variance, lost))
            for part in batches(remainder, BATCH_FRAMES):
                part -= codebook[nearest(part, codebook)]
            codebooks.append(codebook)
    return {"mean": mean, "deviation": deviation, "projection": projection, "codebooks": np.stack(codebooks)}


def evaluate_residual(weights: dict[str, np.ndarray], frames: np.ndarray) -> dict:
    """As `codebook_quality`, of standardised frames."""
    standardised = ((part - weights["mean"]) / weights["deviation"] for part in batches(frames, BATCH_FRAMES))
    return codebook_quality(((part, part @ weights["projection"]) for part in standardised), weights["codebooks"])


def _principal_components(
    sample: np.ndarray, mean: np.ndarray, deviation: np.ndarray, dimensions: int
) -> tuple[np.ndarray, float]:
    """The orthonormal directions of largest variance, largest first, float32 `[size, dimensions]`; variance of all in sum."""
    covariance = np.zeros((len(mean), len(mean)))
    for part in batches(sample, BATCH_FRAMES):
        standardised = ((part - mean) / deviation).astype(np.float64)
        covariance += standardised.T @ standardised
    directions = np.linalg.eigh(covariance)[1][:, ::-1][:, :dimensions]
    # A direction and its opposite are the same component: the largest weight of each is made positive.
    signs = np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(dimensions)])
    return np.ascontiguousarray(directions * signs, np.float32), float(np.trace(covariance)) / len(sample)
