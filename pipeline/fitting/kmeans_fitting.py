"""Fit centroids of log-mel or chroma, for the k-means teacher."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.pipeline.fitting.codebook import BATCH_FRAMES, LevelReport, fit_codebook, report_share
from mert_foundry.pipeline.fitting.codebook_quality import codebook_quality
from mert_foundry.pipeline.fitting.moments import moments
from mert_foundry.pipeline.fitting.sample import Feature, batches
from mert_foundry.pipeline.storage.folder_kinds import KMEANS
from mert_foundry.pipeline.teachers.kmeans import build_feature, describe_feature, save_kmeans

PUBLISHED_CLUSTERS = {"logmel": 300, "chroma": 200}


class KmeansFittingConfig(BaseModel):
    """Centroids of log-mel or chroma."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["kmeans"] = Field(description="Centroids of log-mel or chroma")
    feature: Literal["logmel", "chroma"] = Field(default="logmel", description="What to cluster")
    clusters: int | None = Field(
        default=None,
        gt=1,
        le=65536,
        description="Centroids; by default as published, 300 for logmel and 200 for chroma",
    )

    @property
    def num_clusters(self) -> int:
        """The clusters asked for, or the published number."""
        return self.clusters or PUBLISHED_CLUSTERS[self.feature]


class KmeansFitting:
    """See `pipeline.fitting.fitting.Fitting`."""

    folder_kind = KMEANS
    codebooks = 1

    def __init__(self, config: KmeansFittingConfig):
        self.config = config
        self.feature: Feature = build_feature(config.feature, torch.device("cpu"))

    def fit(self, sample: np.ndarray, seed: int, report: LevelReport) -> dict[str, np.ndarray]:
        """`centroids` float32 `[clusters, size]`."""
        variance = float(moments(sample)[1].sum())
        shares = report_share(report, 0, variance)
        return {"centroids": fit_codebook(sample, self.config.num_clusters, seed, shares)}

    def evaluate(self, weights: dict[str, np.ndarray], frames: np.ndarray) -> dict:
        """As `codebook_quality`."""
        return codebook_quality(((part, part) for part in batches(frames, BATCH_FRAMES)), weights["centroids"][None])

    def save(self, folder: Path, weights: dict[str, np.ndarray], fitting: dict, quality: dict) -> None:
        """Write the teacher's folder."""
        save_kmeans(folder, weights["centroids"], describe_feature(self.config.feature), fitting, quality)
