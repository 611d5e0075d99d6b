"""Weights of a Mel-RVQ teacher that code something: drawn by a seed, not fitted."""

from pathlib import Path

import numpy as np

from mert_foundry.pipeline.storage.folder_kinds import MEL_RVQ
from mert_foundry.pipeline.teachers.mel_rvq import BANDS
from mert_foundry.pipeline.teachers.residual_kmeans import save_residual
from mert_foundry.pipeline.teachers.spectra.stacked_log_mel import StackedLogMel

SIZE = 384  # three frames of 128 bands


def random_weights(codebooks: int, entries: int, dimensions: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Orthonormal directions and codebooks that become finer; mean and deviation of music in decibels."""
    random = np.random.default_rng(seed)
    directions, _ = np.linalg.qr(random.standard_normal((SIZE, dimensions)))
    finer = 2.0 / 2.0 ** np.arange(codebooks)[:, None, None]
    weights = {
        "mean": np.full(SIZE, -10.0),
        "deviation": np.full(SIZE, 5.0),
        "projection": directions,
        "codebooks": finer * random.standard_normal((codebooks, entries, dimensions)),
    }
    return {name: array.astype(np.float32) for name, array in weights.items()}


def save_random_weights(folder: Path, codebooks: int, entries: int, dimensions: int, seed: int = 0) -> Path:
    """The same as a folder that the teacher opens."""
    folder.mkdir()
    weights = random_weights(codebooks, entries, dimensions, seed)
    save_residual(folder, MEL_RVQ, weights, StackedLogMel.describe(BANDS), {"seed": seed}, {})
    return folder
