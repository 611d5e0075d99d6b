"""All that `mert fit` can fit, and its settings."""

from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.pipeline.fitting.codebook import BATCH_FRAMES, STEPS, LevelReport
from mert_foundry.pipeline.fitting.kmeans_fitting import KmeansFitting, KmeansFittingConfig
from mert_foundry.pipeline.fitting.mel_rvq_fitting import MelRvqFitting, MelRvqFittingConfig
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


class FitConfig(BaseModel):
    """What `mert fit` needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: str = Field(description="Manifest folder; its train split is used")
    out: str = Field(description="Local folder for the weights of the teacher")
    teacher: Annotated[KmeansFittingConfig | MelRvqFittingConfig, Field(discriminator="kind")] = Field(
        description="What to fit"
    )
    frames: int = Field(default=200_000, gt=0, description="Frames to draw, 75 for a second: 200000 are 44 minutes")
    crop_seconds: float = Field(
        default=30.0, ge=1, allow_inf_nan=False, description="Length of the pieces that are drawn, seconds"
    )
    seed: int = Field(default=0, ge=0, description="Seed of the sample and of the codebooks")


def build_fitting(config: KmeansFittingConfig | MelRvqFittingConfig) -> Fitting:
    """What the settings choose."""
    return KmeansFitting(config) if isinstance(config, KmeansFittingConfig) else MelRvqFitting(config)


def describe_fitting(manifest_sha256: str, config: FitConfig, frames: int) -> dict:
    """How the weights came about, for people to read."""
    return {
        **config.model_dump(mode="json", exclude={"manifest", "out"}),
        "manifest_sha256": manifest_sha256,
        "fitted_frames": frames,
        "steps": STEPS,
        "batch_frames": BATCH_FRAMES,
    }
