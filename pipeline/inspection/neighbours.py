"""Nearest neighbours of a track among the features of a store, and a plane to draw tracks on."""

import numpy as np
from pydantic import Field

from mert_foundry.pipeline.inspection.feature_summary import FeatureRows
from mert_foundry.pipeline.storage.documents import Document


class Neighbour(Document):
    """A track that is near another one."""

    key: str = Field(description="Track key")
    group: str = Field(description="Its group")
    similarity: float = Field(description="Cosine of the vectors, -1 to 1")


class NeighbourSummary(Document):
    """What `mert inspect STORE.zarr --track KEY --json` prints."""

    kind: str = Field(default="neighbours", description="What this is")
    location: str = Field(description="Feature store")
    key: str = Field(description="Track key")
    group: str = Field(description="Its group")
    compared: int = Field(description="Tracks compared with it")
    nearest: list[Neighbour] = Field(description="The nearest first, over all layers together")
    by_layer: dict[int, list[Neighbour]] = Field(description="The nearest in each layer")


def project(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first two principal components of `[tracks, dim]`: float64 `[tracks, 2]`, and their shares of the variance.

    The sign of a component is such that its largest weight is positive.
    """
    centred = vectors - vectors.mean(axis=0)
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    projected = np.zeros((len(vectors), 2))
    shares = np.zeros(2)
    count = min(2, len(singular))
    signs = np.sign(right[np.arange(count), np.abs(right[:count]).argmax(axis=1)])
    projected[:, :count] = left[:, :count] * singular[:count] * np.where(signs == 0, 1, signs)
    shares[:count] = singular[:count] ** 2 / max(np.sum(singular**2), np.finfo(float).tiny)
    return projected, shares


def nearest(read: FeatureRows, key: str, count: int = 10) -> NeighbourSummary:
    """The tracks nearest to one, over all layers together and in each layer.

    Near is a large cosine of vectors whose every dimension has mean 0 and standard deviation 1 over the tracks.
    Raises ValueError when the track was not read.
    """
    if key not in read.keys:
        raise ValueError(f"track {key!r} is not among the {len(read.keys)} that were read")
    wanted = read.keys.index(key)
    spread = read.vectors.std(axis=0)
    scaled = (read.vectors - read.vectors.mean(axis=0)) / np.where(spread > 0, spread, 1)

    def order(vectors: np.ndarray) -> list[Neighbour]:
        lengths = np.linalg.norm(vectors, axis=1)
        similarity = vectors @ vectors[wanted] / np.maximum(lengths * lengths[wanted], np.finfo(float).tiny)
        others = [track for track in np.argsort(-similarity, kind="stable").tolist() if track != wanted][:count]
        return [
            Neighbour(
                key=read.keys[track], group=read.groups[track], similarity=float(np.clip(similarity[track], -1, 1))
            )
            for track in others
        ]

    return NeighbourSummary(
        location=read.summary.location,
        key=key,
        group=read.groups[wanted],
        compared=len(read.keys) - 1,
        nearest=order(scaled.reshape(len(scaled), -1)),
        by_layer={layer.layer: order(scaled[:, number]) for number, layer in enumerate(read.summary.layers)},
    )
