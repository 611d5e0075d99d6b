"""What every kind of weights that `mert fit` fits has to say."""

from pathlib import Path
from typing import Protocol

import numpy as np

from mert_foundry.pipeline.fitting.codebook import LevelReport
from mert_foundry.pipeline.fitting.sample import Feature
from mert_foundry.pipeline.storage.folder_kinds import FolderKind


class Fitting(Protocol):
    """One kind of weights for a teacher: from which feature, how, and as which folder.

    folder_kind: what is written. codebooks: how many are fitted one after another.
    """

    folder_kind: FolderKind
    codebooks: int
    feature: Feature

    def fit(self, sample: np.ndarray, seed: int, report: LevelReport) -> dict[str, np.ndarray]:
        """Weights for features float32 `[frames, size]`. Raises ValueError for too few frames."""
        ...

    def evaluate(self, weights: dict[str, np.ndarray], frames: np.ndarray) -> dict:
        """Error and use of the weights' codebooks on features, as `codebook_quality`."""
        ...

    def save(self, folder: Path, weights: dict[str, np.ndarray], fitting: dict, quality: dict) -> None:
        """Write a folder that the teacher opens; same input, same bytes."""
        ...
