"""K-means teacher of MERT-v0: the nearest centroid of log-mel or chroma (arXiv 2306.00107, section 3.2).

Published sizes: 300 centroids of 229-band log-mel, 200 of 264-bin chroma. `mert kmeans` fits the centroids.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mert_foundry.pipeline.frames import FRAME_RATE
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.storage.documents import fingerprint, parse_values
from mert_foundry.pipeline.storage.folder_kinds import KMEANS, check_input
from mert_foundry.pipeline.teachers.spectra.power_spectra import Chroma, LogMel

CENTROIDS, CARD = "centroids.safetensors", "kmeans.yaml"

MEL_BANDS, CHROMA_BINS = 229, 264


class KmeansTeacherConfig(BaseModel):
    """Centroids as teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["kmeans"] = Field(description="Nearest centroid of a spectral feature")
    name: str | None = Field(default=None, description="Name of the target; by default that of the feature")
    weights: str = Field(description="Local folder of mert kmeans; says which feature it is")


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
    if card.feature_settings != feature:
        raise ValueError(f"{folder / CARD}: fitted to {card.feature_settings}, this version computes {feature}")
    settings = {"kind": config.kind} | feature
    return TargetSpec(
        name=config.name or card.feature,
        kind="discrete",
        dtype="uint16",
        frame_rate=FRAME_RATE,
        size=1,
        codebook_size=card.clusters,
        fingerprint=fingerprint(settings, {"centroids": centroids}),
        teacher=settings | {"weights": folder.name},
    )


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
    content = save({"centroids": np.ascontiguousarray(centroids, np.float32)})
    card = KmeansCard(
        feature=feature_settings["feature"],
        feature_settings=feature_settings,
        clusters=len(centroids),
        centroids_sha256=hashlib.sha256(content).hexdigest(),
        fitting=fitting,
        quality=quality,
    )
    (folder / CENTROIDS).write_bytes(content)
    (folder / CARD).write_text(yaml.safe_dump(card.model_dump(mode="json"), sort_keys=True))


def load_kmeans(folder: Path) -> tuple[np.ndarray, KmeansCard]:
    """Centroids float32 `[clusters, size]` and their card.

    Raises:
        FolderError: the folder is of another kind.
        FileNotFoundError: the folder or one of its files is not there.
        ValueError: a file is damaged, of another form, or does not fit the other; both values are named.
    """
    check_input(str(folder), KMEANS)
    for name in (CARD, CENTROIDS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: not there; mert kmeans writes such a folder")
    fault = f"{folder / CARD}: not a card of mert kmeans"
    try:
        values = yaml.safe_load((folder / CARD).read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{fault}: {' '.join(str(error).split())}") from error
    card = parse_values(fault, values, KmeansCard)
    content = (folder / CENTROIDS).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.centroids_sha256:
        raise ValueError(f"{folder / CENTROIDS}: SHA-256 {digest}, {CARD} says {card.centroids_sha256}")
    try:
        centroids = load(content)["centroids"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{folder / CENTROIDS}: no centroids can be read: {error}") from error
    expected = (card.clusters, card.feature_settings.get("size"))
    if centroids.shape != expected or centroids.dtype != np.float32:
        raise ValueError(f"{folder / CENTROIDS}: {centroids.dtype} {centroids.shape}, {CARD} says float32 {expected}")
    return centroids, card
