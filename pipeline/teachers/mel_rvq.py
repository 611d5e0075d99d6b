"""Mel-RVQ teacher: residual codes of log-mel, the targets of MuQ (arXiv 2501.01108, section 3.2). `mert fit` fits it.

MuQ codes 40 ms of log-mel, 4 frames of 10 ms, 25 times per second. Here a frame of 13.3 ms is coded together with the
one before it and the one after it, 40 ms too, 75 times per second; an encoder of 25 Hz learns every third of these
codes.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.storage.folder_kinds import MEL_RVQ
from mert_foundry.pipeline.teachers.fitted_folder import check_feature, codes_spec
from mert_foundry.pipeline.teachers.residual_kmeans import ResidualCard, ResidualKmeans, load_residual
from mert_foundry.pipeline.teachers.spectra.stacked_log_mel import StackedLogMel

BANDS = 128


class MelRvqTeacherConfig(BaseModel):
    """Residual codes of log-mel as teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["mel_rvq"] = Field(description="Residual codes of log-mel")
    name: str = Field(default="mel_rvq", description="Name of the target")
    weights: str = Field(description="Local folder of mert fit")


class MelRvqTeacher:
    """Codes uint16 `[codebooks, frames]`, 75 frames per second; frame i is centred on sample 320 i.

    Raises:
        FileNotFoundError, ValueError: as `load_residual`, or the feature was computed with other settings.
    """

    def __init__(self, config: MelRvqTeacherConfig, device: torch.device):
        weights, card = load_residual(Path(config.weights), MEL_RVQ)
        self.spec = _specification(config, weights, card)
        self.feature = StackedLogMel(BANDS, device)
        self.quantizer = ResidualKmeans(weights, device)

    @staticmethod
    def describe(config: MelRvqTeacherConfig) -> TargetSpec:
        """See `pipeline.teachers.teacher.Teacher`. Raises as the constructor does."""
        return _specification(config, *load_residual(Path(config.weights), MEL_RVQ))

    @torch.inference_mode()
    def label(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Codes of a whole track, see `pipeline.teachers.teacher.Teacher`."""
        for frames in self.feature.stream(blocks):
            yield self.quantizer.encode(frames)


def _specification(config: MelRvqTeacherConfig, weights: dict[str, np.ndarray], card: ResidualCard) -> TargetSpec:
    folder, feature = Path(config.weights), StackedLogMel.describe(BANDS)
    check_feature(folder, MEL_RVQ, card.feature_settings, feature)
    settings = {"kind": config.kind} | feature
    return codes_spec(config.name, settings, weights, card.codebooks, card.entries, {"weights": folder.name})
