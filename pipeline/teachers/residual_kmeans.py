"""Features to residual codes: principal components of standardised features, then codebooks one after another; and
their folder.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mert_foundry.pipeline.storage.folder_kinds import FolderKind
from mert_foundry.pipeline.teachers.codec.quantizer import ResidualQuantizer
from mert_foundry.pipeline.teachers.fitted_folder import check_arrays, check_size, read_fitted, write_fitted


class ResidualKmeans:
    """Codes of features, by weights that `mert fit` wrote.

    Args:
        weights: float32 `mean` and `deviation` `[size]`, `projection` `[size, dimensions]`, `codebooks`
            `[levels, entries, dimensions]`.
    """

    def __init__(self, weights: dict[str, np.ndarray], device: torch.device):
        on_device = {name: torch.from_numpy(array).to(device) for name, array in weights.items()}
        self.mean = on_device["mean"]
        self.projection = on_device["projection"] / on_device["deviation"][:, None]
        self.quantizer = ResidualQuantizer(on_device["codebooks"])

    @torch.inference_mode()
    def encode(self, features: Tensor) -> np.ndarray:
        """Features `[frames, size]` to codes, uint16 `[levels, frames]`."""
        codes = self.quantizer.encode((features - self.mean) @ self.projection)
        return codes.cpu().numpy().astype(np.uint16)


class ResidualCard(BaseModel):
    """The card of such weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = Field(default=1, description="Version of this file's form")
    feature_settings: dict[str, str | int | float] = Field(description="How the feature is computed")
    codebooks: int = Field(gt=0, description="Codebooks, each for what those before it leave")
    entries: int = Field(gt=1, le=65536, description="Entries per codebook")
    dimensions: int = Field(gt=0, description="Principal components that are coded")
    weights_sha256: str = Field(description="SHA-256 of the file of weights")
    fitting: dict = Field(description="Sample, seed and algorithm, for people to read")
    quality: dict = Field(description="Errors and use of the codebooks, for people to read")


def save_residual(
    folder: Path, kind: FolderKind, weights: dict[str, np.ndarray], feature: dict, fitting: dict, quality: dict
) -> None:
    """Write weights and their card into an existing folder; `feature`: its settings. Same input, same bytes."""
    codebooks, entries, dimensions = weights["codebooks"].shape
    write_fitted(
        folder,
        kind,
        weights,
        lambda digest: ResidualCard(
            feature_settings=feature,
            codebooks=codebooks,
            entries=entries,
            dimensions=dimensions,
            weights_sha256=digest,
            fitting=fitting,
            quality=quality,
        ),
    )


def load_residual(folder: Path, kind: FolderKind) -> tuple[dict[str, np.ndarray], ResidualCard]:
    """Weights and their card.

    Raises:
        FolderError, FileNotFoundError, ValueError: as `read_fitted`, `check_arrays` and `check_size`.
    """
    weights, card = read_fitted(folder, kind, ResidualCard, "weights_sha256")
    size = weights["mean"].size if "mean" in weights else 0
    expected = {
        "mean": (size,),
        "deviation": (size,),
        "projection": (size, card.dimensions),
        "codebooks": (card.codebooks, card.entries, card.dimensions),
    }
    check_arrays(folder, kind, weights, expected)
    if "size" in card.feature_settings:  # a hidden layer's is its encoder's
        check_size(folder, kind, card.feature_settings, size)
    return weights, card
