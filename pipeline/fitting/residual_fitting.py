"""Fit residual codebooks to features: principal components of the standardised frames, then k-means over and over.

The projection keeps the directions in which frames differ most, so that codebooks are small and fitting is fast; the
weights are those of `pipeline.teachers.residual_kmeans.ResidualKmeans`.
"""

from pathlib import Path

import numpy as np

from mert_foundry.pipeline.fitting.codebook import BATCH_FRAMES, LevelReport, fit_codebook, nearest, report_share
from mert_foundry.pipeline.fitting.codebook_quality import codebook_quality
from mert_foundry.pipeline.fitting.moments import moments
from mert_foundry.pipeline.fitting.sample import Feature, batches
from mert_foundry.pipeline.shards.statistics import standardising_deviation
from mert_foundry.pipeline.storage.folder_kinds import FolderKind
from mert_foundry.pipeline.teachers.residual_kmeans import save_residual


class ResidualFitting:
    """See `pipeline.fitting.fitting.Fitting`.

    Args:
        settings: those of the feature, for the card.
        codebooks: how many, of `entries` entries each.
        dimensions: principal components that are coded.
    """

    def __init__(
        self,
        folder_kind: FolderKind,
        feature: Feature,
        settings: dict[str, str | int | float],
        *,
        codebooks: int,
        entries: int,
        dimensions: int,
    ):
        self.folder_kind = folder_kind
        self.feature = feature
        self.settings = settings
        self.codebooks = codebooks
        self.entries = entries
        self.dimensions = dimensions

    def fit(self, sample: np.ndarray, seed: int, report: LevelReport) -> dict[str, np.ndarray]:
        """The weights of `ResidualKmeans`. Raises as `fit_residual`."""
        return fit_residual(sample, self.codebooks, self.entries, self.dimensions, seed, report)

    def evaluate(self, weights: dict[str, np.ndarray], frames: np.ndarray) -> dict:
        """As `codebook_quality`, of standardised frames."""
        standardised = ((part - weights["mean"]) / weights["deviation"] for part in batches(frames, BATCH_FRAMES))
        return codebook_quality(((part, part @ weights["projection"]) for part in standardised), weights["codebooks"])

    def save(self, folder: Path, weights: dict[str, np.ndarray], fitting: dict, quality: dict) -> None:
        """Write the teacher's folder."""
        save_residual(folder, self.folder_kind, weights, self.settings, fitting, quality)


def fit_residual(
    sample: np.ndarray, levels: int, entries: int, dimensions: int, seed: int, report: LevelReport
) -> dict[str, np.ndarray]:
    """The weights of `ResidualKmeans` for frames `[frames, size]`, float32; memory holds `[frames, dimensions]`.

    Raises:
        ValueError: there are fewer frames than entries.
    """
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


def _principal_components(
    sample: np.ndarray, mean: np.ndarray, deviation: np.ndarray, dimensions: int
) -> tuple[np.ndarray, float]:
    """The orthonormal directions of largest variance, largest first, float32 `[size, dimensions]`; variance of all in
    sum.
    """
    covariance = np.zeros((len(mean), len(mean)))
    for part in batches(sample, BATCH_FRAMES):
        standardised = ((part - mean) / deviation).astype(np.float64)
        covariance += standardised.T @ standardised
    directions = np.linalg.eigh(covariance)[1][:, ::-1][:, :dimensions]
    # A direction and its opposite are the same component: the largest weight of each is made positive.
    signs = np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(dimensions)])
    return np.ascontiguousarray(directions * signs, np.float32), float(np.trace(covariance)) / len(sample)
