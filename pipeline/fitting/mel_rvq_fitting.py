"""Fit residual codebooks of log-mel, for the Mel-RVQ teacher.

MuQ learns a projection and a codebook of 16 dimensions for every level by gradient. Here there is one projection, onto
the principal components of the standardised frames, and every codebook is k-means over what those before it leave: as
good, in a tenth of the time and deterministic (docs/measurements.md, "Fitting codebooks"). 16 dimensions lose most of
their error in the projection; 32 are as good as 64 in the first codebooks, which matter most, and half as large.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.pipeline.fitting.residual_fitting import ResidualFitting
from mert_foundry.pipeline.storage.folder_kinds import MEL_RVQ
from mert_foundry.pipeline.teachers.mel_rvq import BANDS
from mert_foundry.pipeline.teachers.spectra.stacked_log_mel import STACKED, StackedLogMel


class MelRvqFittingConfig(BaseModel):
    """Residual codebooks of log-mel."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["mel_rvq"] = Field(description="Residual codebooks of log-mel")
    codebooks: int = Field(default=8, gt=0, le=64, description="Codebooks, each for what those before it leave")
    entries: int = Field(default=1024, gt=1, le=65536, description="Entries per codebook")
    dimensions: int = Field(default=32, gt=0, le=STACKED * BANDS, description="Principal components that are coded")


def mel_rvq_fitting(config: MelRvqFittingConfig) -> ResidualFitting:
    """The fitting of a config."""
    return ResidualFitting(
        MEL_RVQ,
        StackedLogMel(BANDS, torch.device("cpu")),
        StackedLogMel.describe(BANDS),
        codebooks=config.codebooks,
        entries=config.entries,
        dimensions=config.dimensions,
    )
