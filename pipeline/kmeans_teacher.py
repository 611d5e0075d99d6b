"""K-means teacher of MERT-v0: the nearest centroid of log-mel or chroma (arXiv 2306.00107, section 3.2).

Published sizes: 300 centroids of 229-band log-mel, 200 of 264-bin chroma. `mert kmeans` fits the centroids.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from pipeline.chroma_features import Chroma
from pipeline.frames import FRAME_RATE
from pipeline.kmeans_folder import CARD, load_kmeans
from pipeline.mel_features import LogMel
from pipeline.teacher import TargetSpec, fingerprint

MEL_BANDS, CHROMA_BINS = 229, 264


class KmeansTeacherConfig(BaseModel):
    """Centroids as teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["kmeans"] = Field(description="Nearest centroid of a spectral feature")
    name: str | None = Field(default=None, description="Name of the target; by default that of the feature")
    weights: str = Field(description="Local folder of mert kmeans; says which feature it is")


class KmeansTeacher:
    """Codes uint16 `[1, frames]`, 75 frames a second; frame i is centred on sample 320 i.

    Raises:
        FileNotFoundError, ValueError: as `load_kmeans`, or the feature was computed with other settings.
    """

    def __init__(self, config: KmeansTeacherConfig, device: torch.device):
        folder = Path(config.weights)
        centroids, card = load_kmeans(folder)
        self.feature = build_feature(card.feature, device)
        if card.feature_settings != self.feature.settings:
            raise ValueError(
                f"{folder / CARD}: fitted to {card.feature_settings}, this version computes {self.feature.settings}"
            )
        # Distances between vectors near their common centre keep more digits in fp32.
        self.centre = torch.from_numpy(centroids.mean(axis=0)).to(device)
        self.centroids = torch.from_numpy(centroids).to(device) - self.centre
        self.half_squares = self.centroids.square().sum(dim=1) / 2
        settings = {"kind": config.kind} | self.feature.settings
        self.spec = TargetSpec(
            name=config.name or card.feature, kind="discrete", dtype="uint16", frame_rate=FRAME_RATE, size=1,
            codebook_size=card.clusters, fingerprint=fingerprint(settings, {"centroids": centroids}),
            teacher=settings | {"weights": folder.name},
        )

    @torch.inference_mode()
    def label(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Codes of a whole track, see `pipeline.teacher.Teacher`."""
        for features in self.feature.stream(blocks):
            # |x - c|^2 is least where |c|^2 / 2 - x.c is.
            codes = (self.half_squares - (features - self.centre) @ self.centroids.T).argmin(dim=1)
            yield codes[None].cpu().numpy().astype(np.uint16)


def build_feature(name: Literal["logmel", "chroma"], device: torch.device) -> LogMel | Chroma:
    """The feature at MERT-v0's size."""
    return LogMel(MEL_BANDS, device) if name == "logmel" else Chroma(CHROMA_BINS, device)
