"""K-means teacher of MERT-v0: the nearest centroid of log-mel or chroma (arXiv 2306.00107, section 3.2).

Published sizes: 300 centroids of 229-band log-mel, 200 of 264-bin chroma. `mert fit` fits the centroids.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.storage.folder_kinds import KMEANS
from mert_foundry.pipeline.teachers.fitted_folder import (
    check_arrays,
    check_feature,
    check_size,
    codes_spec,
    read_fitted,
    write_fitted,
)
from mert_foundry.pipeline.teachers.spectra.power_spectra import Chroma, LogMel

MEL_BANDS, CHROMA_BINS = 229, 264


class KmeansTeacherConfig(BaseModel):
    """Centroids as teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["kmeans"] = Field(description="Nearest centroid of a spectral feature")
    name: str | None = Field(default=None, description="Name of the target; by default that of the feature")
    weights: str = Field(description="Local folder of mert fit; says which feature it is")


class KmeansTeacher:
    """Codes uint16 `[1, frames]`, 75 frames per second; frame i is centred on sample 320 i.

    Raises:
        FileNotFoundError, ValueError: as `load_kmeans`, or the feature was computed with other settings.
    """

    def __init__(self, config: KmeansTeacherConfig, device: torch.device):
        centroids, card = load_kmeans(Path(config.weights))
        self.spec = _specification(config, centroids, card)
        self.feature = build_feature(card.feature, device)
        # Distances between vectors near their common centre keep more digits in fp32.
        self.centre = torch.from_numpy(centroids.mean(axis=0)).to(device)
        self.centroids = torch.from_numpy(centroids).to(device) - self.centre
        self.half_squares = self.centroids.square().sum(dim=1) / 2

    @staticmethod
    def describe(config: KmeansTeacherConfig) -> TargetSpec:
        """See `pipeline.teachers.teacher.Teacher`. Raises as the constructor does."""
        return _specification(config, *load_kmeans(Path(config.weights)))

    @torch.inference_mode()
    def label(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Codes of a whole track, see `pipeline.teachers.teacher.Teacher`."""
        for features in self.feature.stream(blocks):
            # |x - c|^2 is least where |c|^2 / 2 - x.c is.
            codes = (self.half_squares - (features - self.centre) @ self.centroids.T).argmin(dim=1)
            yield codes[None].cpu().numpy().astype(np.uint16)


def build_feature(name: Literal["logmel", "chroma"], device: torch.device) -> LogMel | Chroma:
    """The feature at MERT-v0's size."""
    return LogMel(MEL_BANDS, device) if name == "logmel" else Chroma(CHROMA_BINS, device)


def describe_feature(name: Literal["logmel", "chroma"]) -> dict[str, str | int | float]:
    """The settings of `build_feature`'s."""
    return LogMel.describe(MEL_BANDS) if name == "logmel" else Chroma.describe(CHROMA_BINS)


def _specification(config: KmeansTeacherConfig, centroids: np.ndarray, card: "KmeansCard") -> TargetSpec:
    folder, feature = Path(config.weights), describe_feature(card.feature)
    check_feature(folder, KMEANS, card.feature_settings, feature)
    settings = {"kind": config.kind} | feature
    origin = {"weights": folder.name}
    return codes_spec(config.name or card.feature, settings, {"centroids": centroids}, 1, card.clusters, origin)


class KmeansCard(BaseModel):
    """Content of `kmeans.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = Field(default=1, description="Version of this file's form")
    feature: Literal["logmel", "chroma"] = Field(description="What was clustered")
    feature_settings: dict[str, str | int | float] = Field(description="How the feature is computed")
    clusters: int = Field(gt=0, description="Number of centroids")
    centroids_sha256: str = Field(description="SHA-256 of centroids.safetensors")
    fitting: dict = Field(description="Sample, seed and algorithm, for people to read")
    quality: dict = Field(description="Error and use of the centroids on the sample, for people to read")


def save_kmeans(folder: Path, centroids: np.ndarray, feature_settings: dict, fitting: dict, quality: dict) -> None:
    """Write float32 centroids `[clusters, size]` and their card into an existing folder; same input, same bytes."""
    write_fitted(
        folder,
        KMEANS,
        {"centroids": centroids},
        lambda digest: KmeansCard(
            feature=feature_settings["feature"],
            feature_settings=feature_settings,
            clusters=len(centroids),
            centroids_sha256=digest,
            fitting=fitting,
            quality=quality,
        ),
    )


def load_kmeans(folder: Path) -> tuple[np.ndarray, KmeansCard]:
    """Centroids float32 `[clusters, size]` and their card.

    Raises:
        FolderError, FileNotFoundError, ValueError: as `read_fitted`, `check_arrays` and `check_size`.
    """
    arrays, card = read_fitted(folder, KMEANS, KmeansCard, "centroids_sha256")
    size = arrays["centroids"].shape[-1] if np.ndim(arrays.get("centroids", 0)) else 0
    check_arrays(folder, KMEANS, arrays, {"centroids": (card.clusters, size)})
    check_size(folder, KMEANS, card.feature_settings, size)
    return arrays["centroids"], card
