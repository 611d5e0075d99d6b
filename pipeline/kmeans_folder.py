"""What `mert kmeans` leaves: a folder of `centroids.safetensors` and `kmeans.yaml`, checked when it is read."""

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.folder_kinds import KMEANS, check_input
from pipeline.shard_format import first_error

CENTROIDS, CARD = "centroids.safetensors", "kmeans.yaml"


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
        feature=feature_settings["feature"], feature_settings=feature_settings, clusters=len(centroids),
        centroids_sha256=hashlib.sha256(content).hexdigest(), fitting=fitting, quality=quality,
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
    try:
        card = KmeansCard.model_validate(yaml.safe_load((folder / CARD).read_text()))
    except ValidationError as error:
        raise ValueError(f"{folder / CARD}: not a card of mert kmeans: {first_error(error)}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{folder / CARD}: not a card of mert kmeans: {' '.join(str(error).split())}") from error
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
