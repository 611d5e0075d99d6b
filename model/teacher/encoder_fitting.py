"""Fit codebooks to a hidden layer of an encoder, for the encoder teacher; one codebook is HuBERT's k-means."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from mert_foundry.model.teacher.hidden_states import HiddenStates, LayerConfig
from mert_foundry.pipeline.fitting.codebook import LevelReport
from mert_foundry.pipeline.fitting.residual_fitting import evaluate_residual, fit_residual
from mert_foundry.pipeline.fitting.sample import Feature
from mert_foundry.pipeline.storage.folder_kinds import ENCODER_CODES
from mert_foundry.pipeline.teachers.residual_kmeans import save_residual


class EncoderFittingConfig(LayerConfig):
    """Codebooks of a hidden layer of an encoder."""

    kind: Literal["encoder"] = Field(description="Codebooks of a hidden layer of an encoder")
    codebooks: int = Field(default=1, gt=0, le=64, description="Codebooks, each for what those before it leave")
    entries: int = Field(default=500, gt=1, le=65536, description="Entries per codebook")
    dimensions: int | None = Field(default=None, gt=0, description="Principal components that are coded; null: all")


class EncoderFitting:
    """See `pipeline.fitting.fitting.Fitting`.

    Raises:
        FolderError, ValueError: as `read_encoder`, or the layer has fewer dimensions than are asked for.
    """

    folder_kind = ENCODER_CODES

    def __init__(self, config: EncoderFittingConfig):
        self.config = config
        self.codebooks = config.codebooks
        self.states = HiddenStates(config, torch.device("cpu"))
        self.feature: Feature = self.states
        if config.dimensions and config.dimensions > self.states.size:
            raise ValueError(f"{config.model}: a layer has {self.states.size} dimensions, not {config.dimensions}")

    def fit(self, sample: np.ndarray, seed: int, report: LevelReport) -> dict[str, np.ndarray]:
        """The weights of `ResidualKmeans`."""
        config = self.config
        return fit_residual(
            sample, config.codebooks, config.entries, config.dimensions or self.states.size, seed, report
        )

    def evaluate(self, weights: dict[str, np.ndarray], frames: np.ndarray) -> dict:
        """As `codebook_quality`, of standardised states."""
        return evaluate_residual(weights, frames)

    def save(self, folder: Path, weights: dict[str, np.ndarray], fitting: dict, quality: dict) -> None:
        """Write the teacher's folder."""
        save_residual(folder, ENCODER_CODES, weights, self.states.settings, fitting, quality)
