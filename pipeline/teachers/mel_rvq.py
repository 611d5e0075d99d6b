"""Mel-RVQ teacher: residual codes of log-mel, the targets of MuQ (arXiv 2501.01108, section 3.2). `mert fit` fits it.

MuQ codes 40 ms of log-mel, 4 frames of 10 ms, 25 times per second. Here a frame of 13.3 ms is coded together with the one
before it and the one after it, 40 ms too, 75 times per second; an encoder of 25 Hz learns every third of these codes.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.pipeline.frames import FRAME_RATE
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.storage.documents import fingerprint
from mert_foundry.pipeline.storage.folder_kinds import MEL_RVQ
from mert_foundry.pipeline.teachers.fitted_folder import check_shapes, read_fitted, weights_bytes, write_fitted
from mert_foundry.pipeline.teachers.residual_kmeans import ResidualKmeans, weight_shapes
from mert_foundry.pipeline.teachers.spectra.stacked_log_mel import StackedLogMel

BANDS = 128
CARD = MEL_RVQ.marker


class MelRvqTeacherConfig(BaseModel):
    """Residual codes of log-mel as teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["mel_rvq"] = Field(description="Residual codes of log-mel")
    name: str = Field(default="mel_rvq", description="Name of the target")
    weights: str = Field(description="Local folder of mert fit")


class MelRvqTeacher:
    """Codes uint16 `[codebooks, frames]`, 75 frames per second; frame i is centred on sample 320 i.

    Raises:
        FileNotFoundError, ValueError: as `load_mel_rvq`, or the feature was computed with other settings.
    """

    def __init__(self, config: MelRvqTeacherConfig, device: torch.device):
        weights, card = load_mel_rvq(Path(config.weights))
        self.spec = _specification(config, weights, card)
        self.feature = StackedLogMel(BANDS, device)
        self.quantizer = ResidualKmeans(weights, device)

    @staticmethod
    def describe(config: MelRvqTeacherConfig) -> TargetSpec:
        """See `pipeline.teachers.teacher.Teacher`. Raises as the constructor does."""
        return _specification(config, *load_mel_rvq(Path(config.weights)))

    @torch.inference_mode()
    def label(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Codes of a whole track, see `pipeline.teachers.teacher.Teacher`."""
        for frames in self.feature.stream(blocks):
            yield self.quantizer.encode(frames).cpu().numpy().astype(np.uint16)


class MelRvqCard(BaseModel):
    """Content of `mel_rvq.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = Field(default=1, description="Version of this file's form")
    feature_settings: dict[str, str | int | float] = Field(description="How the feature is computed")
    codebooks: int = Field(gt=0, description="Codebooks, each for what those before it leave")
    entries: int = Field(gt=1, le=65536, description="Entries per codebook")
    dimensions: int = Field(gt=0, description="Principal components that are coded")
    weights_sha256: str = Field(description="SHA-256 of mel_rvq.safetensors")
    fitting: dict = Field(description="Sample, seed and algorithm, for people to read")
    quality: dict = Field(description="Errors and use of the codebooks, for people to read")


def _specification(config: MelRvqTeacherConfig, weights: dict[str, np.ndarray], card: MelRvqCard) -> TargetSpec:
    folder, feature = Path(config.weights), StackedLogMel.describe(BANDS)
    if card.feature_settings != feature:
        raise ValueError(f"{folder / CARD}: fitted to {card.feature_settings}, this version computes {feature}")
    settings = {"kind": config.kind} | feature
    return TargetSpec(
        name=config.name,
        kind="discrete",
        dtype="uint16",
        frame_rate=FRAME_RATE,
        size=card.codebooks,
        codebook_size=card.entries,
        fingerprint=fingerprint(settings, weights),
        teacher=settings | {"weights": folder.name},
    )


def save_mel_rvq(folder: Path, weights: dict[str, np.ndarray], fitting: dict, quality: dict) -> None:
    """Write the weights of `ResidualKmeans` and their card into an existing folder; same input, same bytes."""
    content, digest = weights_bytes(weights)
    codebooks, entries, dimensions = weights["codebooks"].shape
    card = MelRvqCard(
        feature_settings=StackedLogMel.describe(BANDS),
        codebooks=codebooks,
        entries=entries,
        dimensions=dimensions,
        weights_sha256=digest,
        fitting=fitting,
        quality=quality,
    )
    write_fitted(folder, MEL_RVQ, content, card)


def load_mel_rvq(folder: Path) -> tuple[dict[str, np.ndarray], MelRvqCard]:
    """The weights of `ResidualKmeans` and their card.

    Raises:
        FolderError, FileNotFoundError, ValueError: as `read_fitted` and `check_shapes`.
    """
    weights, card = read_fitted(folder, MEL_RVQ, MelRvqCard, "weights_sha256")
    size = int(card.feature_settings.get("size", 0))
    check_shapes(folder, MEL_RVQ, weights, weight_shapes(size, card.dimensions, card.codebooks, card.entries))
    return weights, card
