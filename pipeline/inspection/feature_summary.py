"""What each layer of a feature store holds: statistics, a two-dimensional view of the tracks, and who is near whom.

A store may be far larger than memory. Of a store of frames, the middle of at most 500 tracks is read; of one of pooled
features, the rows of at most 5,000 tracks, in both cases evenly over the store. The summary says how much was read.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from pydantic import Field, JsonValue
from zarr.errors import GroupNotFoundError

from mert_foundry.pipeline.features.older_names import present_names
from mert_foundry.pipeline.features.resume import KIND, SCHEMA_VERSION
from mert_foundry.pipeline.features.store import TABLE
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.documents import Document

MOST_FRAME_TRACKS, MOST_POOLED_TRACKS = 500, 5_000
MOST_VALUES = 2_000_000_000  # that are read: frames of a track times tracks, layers and dimensions
READ_AT_ONCE = 1024  # rows: of MERT 330M, all layers, 0.2 GB
DEAD_SHARE = 0.01
ATTRIBUTES = ("frame_rate", "model", "settings")


class LayerSummary(Document):
    """One layer, over the rows that were read."""

    layer: int = Field(description="Hidden state: 0 is the input of the first layer, i the output of layer i")
    mean: float = Field(description="Mean of all values")
    standard_deviation: float = Field(description="Standard deviation of all values")
    largest: float = Field(description="Largest magnitude")
    effective_rank: float = Field(
        description="exp of the entropy of the singular values' shares, of centred rows (Roy & Vetterli 2007); 1 to dim"
    )
    dead_share: float = Field(
        description="Share of dimensions whose standard deviation is at most 1 % of the layer's (root mean square)"
    )


class FeatureSummary(Document):
    """What `mert inspect STORE.zarr --json` prints."""

    kind: str = Field(default="features", description="What the location is")
    location: str = Field(description="Feature store")
    array: str = Field(description="What was summarised: features (frames) or mean (pooled)")
    dtype: str = Field(description="As stored")
    rows: int = Field(description="Frames, or tracks when pooled")
    dim: int = Field(description="Features of a layer")
    frame_rate: float = Field(description="Frames per second of the model")
    tracks: int = Field(description="Tracks")
    hours: float | None = Field(description="Audio hours; null of documents")
    tokens: int | None = Field(default=None, description="Of documents: their tokens; null of audio")
    dropped: dict[str, str] = Field(description="Tracks without features, by key: the reason")
    model: dict[str, JsonValue] = Field(description="What computed them")
    settings: dict[str, JsonValue] = Field(description="Settings of mert extract")
    tracks_read: int = Field(description="Tracks that the statistics are from")
    rows_read: int = Field(description="Rows that the statistics are from")
    layers: list[LayerSummary] = Field(description="In the order of the store")


@dataclass(frozen=True)
class FeatureRows:
    """What was read of a store: statistics of layers, and a vector a track (the mean of its rows that were read).

    `vectors` float64 `[tracks, layers, dim]`, of the tracks `keys` with their `groups`.
    """

    summary: FeatureSummary
    keys: list[str]
    groups: list[str]
    vectors: np.ndarray


def read_features(location: str, wanted: Sequence[str] = ()) -> FeatureRows:
    """Read an even share of the tracks, and the tracks `wanted`, by key.

    Raises:
        ValueError: not a feature store, an unfinished or damaged one, no track with features, or none of such a key.
    """
    with warnings.catch_warnings():
        # Text columns are a convention of zarr v3 that its core text does not have yet.
        warnings.filterwarnings("ignore", "(?s).*not part in the Zarr format 3 specification.*", UserWarning)
        return _read(location, open_features(location), wanted)


def _read(location: str, group: zarr.Group, wanted: Sequence[str]) -> FeatureRows:
    table = {name: read_column(location, group, name) for name in TABLE}
    layers = read_column(location, group, "layer")
    array = feature_array(location, group)
    is_frames = array.basename == "features"
    check_sizes(location, table, layers, array, int(str(group.attrs.get("missing_frames", 0))))
    chosen = sample_tracks(
        table["key"], table["dropped"], MOST_FRAME_TRACKS if is_frames else MOST_POOLED_TRACKS, wanted
    )
    if not chosen:
        raise ValueError(f"{location}: no track with features")
    sums = _LayerSums(location, *array.shape[1:])
    if is_frames:
        vectors = _read_frames(array, [(table["offset"][track], table["length"][track]) for track in chosen], sums)
    else:
        vectors = _read_pooled(array, chosen, sums)
    described = present_names(group.attrs.asdict())  # an older store may have older names
    of_documents = described.get("input", {}).get("kind") == "documents"
    summary = FeatureSummary(
        location=location,
        array=array.basename,
        dtype=str(array.dtype),
        rows=array.shape[0],
        dim=array.shape[2],
        frame_rate=described["frame_rate"],
        tracks=len(table["key"]),
        hours=None if of_documents else sum(table["seconds"]) / 3600,
        tokens=sum(table["length"]) if of_documents else None,
        dropped={key: reason for key, reason in zip(table["key"], table["dropped"], strict=True) if reason},
        model=described["model"],
        settings=described["settings"],
        tracks_read=len(chosen),
        rows_read=sums.rows,
        layers=[sums.summarise(number, layer) for number, layer in enumerate(layers)],
    )
    return FeatureRows(
        summary, [table["key"][track] for track in chosen], [table["group"][track] for track in chosen], vectors
    )


def open_features(location: str) -> zarr.Group:
    """A finished feature store, for reading. Raises ValueError naming what it is instead."""
    try:
        group = zarr.open_group(_zarr_store(location), mode="r")
    except (GroupNotFoundError, ValueError) as error:
        raise ValueError(f"{location}: not a zarr group ({error})") from error
    found = (group.attrs.get("kind"), group.attrs.get("schema_version"))
    if found != (KIND, SCHEMA_VERSION):
        raise ValueError(f"{location}: a zarr group of kind and version {found}, this reads {(KIND, SCHEMA_VERSION)}")
    if not group.attrs.get("complete"):
        raise ValueError(f"{location}: not finished; the same mert extract command goes on with it")
    for name in ATTRIBUTES:
        if name not in group.attrs:
            raise ValueError(f"{location}: damaged, the attribute {name} is missing")
    return group


def read_column(location: str, group: zarr.Group, name: str) -> list[Any]:
    """A column of the track table, or the layers. Raises ValueError when it, or its chunk, is not there."""
    column = group.get(name)
    # Without its chunk a column would read as empty texts or zeros.
    if not isinstance(column, zarr.Array) or column.ndim != 1 or column.nchunks_initialized < column.nchunks:
        raise ValueError(f"{location}: damaged, the array {name} is missing")
    return np.asarray(column[:]).tolist()


def feature_array(location: str, group: zarr.Group) -> zarr.Array:
    """The frames, or the means of pooled features. Raises ValueError when there are neither."""
    for name in ("features", "mean"):
        array = group.get(name)
        if isinstance(array, zarr.Array) and array.ndim == 3:
            return array
    raise ValueError(f"{location}: damaged, the array features (or mean, of pooled ones) is missing")


def check_sizes(
    location: str, table: Mapping[str, list[Any]], layers: list[int], array: zarr.Array, missing_frames: int = 0
) -> None:
    """Raise ValueError, naming both values, when the columns do not fit each other or the features."""
    tracks = len(table["key"])
    for name, column in table.items():
        if len(column) != tracks:
            raise ValueError(f"{location}: damaged, {len(column)} values in the array {name}, {tracks} in key")
    rows = sum(table["length"]) + missing_frames if array.basename == "features" else tracks
    if array.shape[:2] != (rows, len(layers)):
        found = f"{array.shape[0]} rows and {array.shape[1]} layers in {array.basename}"
        raise ValueError(f"{location}: damaged, {found}, {rows} and {len(layers)} in the table")


def sample_tracks(keys: list[str], dropped: list[str], most: int, wanted: Sequence[str] = ()) -> list[int]:
    """Rows, in the track table, of at most `most` tracks with features, evenly over the store, and of those `wanted`.

    Raises ValueError when one of these is not there, or has no features.
    """
    usable = [track for track, reason in enumerate(dropped) if not reason]
    if len(usable) > most:
        usable = [usable[number * len(usable) // most] for number in range(most)]
    for key in wanted:
        if key not in keys:
            raise ValueError(f"no track {key!r} among the {len(keys)} of the store")
        track = keys.index(key)
        if dropped[track]:
            raise ValueError(f"track {key!r} has no features: {dropped[track]}")
        usable.append(track)
    return sorted(set(usable))


def _zarr_store(location: str) -> zarr.storage.StoreLike:
    if files.is_local(location):
        return zarr.storage.LocalStore(files.local_path(location), read_only=True)
    return zarr.storage.FsspecStore.from_url(location, read_only=True)


def _read_frames(array: zarr.Array, spans: list[tuple[int, int]], sums: "_LayerSums") -> np.ndarray:
    """The middle of each track, a bounded number of frames; returns the tracks' means."""
    most = max(1, MOST_VALUES // (len(spans) * array.shape[1] * array.shape[2]))
    vectors = []
    for offset, length in spans:
        frames = min(length, most)
        start = offset + (length - frames) // 2
        total = np.zeros(array.shape[1:])
        for first in range(start, start + frames, READ_AT_ONCE):
            rows = np.asarray(array[first : min(first + READ_AT_ONCE, start + frames)], np.float64)
            sums.add(rows)
            total += rows.sum(axis=0)
        vectors.append(total / frames)
    return np.array(vectors)


def _read_pooled(array: zarr.Array, tracks: list[int], sums: "_LayerSums") -> np.ndarray:
    """The rows of these tracks."""
    vectors = []
    for start in range(0, len(tracks), READ_AT_ONCE):
        rows = np.asarray(array.oindex[np.array(tracks[start : start + READ_AT_ONCE])], np.float64)
        sums.add(rows)
        vectors.append(rows)
    return np.concatenate(vectors)


class _LayerSums:
    """Sums from which every statistic of a layer follows, so that rows need not be kept."""

    def __init__(self, location: str, layers: int, dim: int):
        self.location = location
        self.rows = 0
        self.total = np.zeros((layers, dim))
        self.products = np.zeros((layers, dim, dim))
        self.largest = np.zeros(layers)

    def add(self, rows: np.ndarray) -> None:
        """Count rows `[n, layers, dim]`. Raises ValueError when one is not finite, as missing chunks are not."""
        if not np.isfinite(rows).all():
            raise ValueError(
                f"{self.location}: a track that was not dropped has rows of NaN; chunks are missing or damaged"
            )
        self.rows += len(rows)
        self.total += rows.sum(axis=0)
        self.largest = np.maximum(self.largest, np.abs(rows).max(axis=(0, 2)))
        for layer in range(rows.shape[1]):
            self.products[layer] += rows[:, layer].T @ rows[:, layer]

    def summarise(self, number: int, layer: int) -> LayerSummary:
        """Statistics of the layer that is stored as `number` of the array, and is hidden state `layer` of the model."""
        mean = self.total[number] / self.rows
        covariance = self.products[number] / self.rows - np.outer(mean, mean)
        variance = np.maximum(np.diag(covariance), 0)
        second_moment = np.trace(self.products[number]) / self.rows / len(mean)
        floor = DEAD_SHARE * np.sqrt(variance.mean())
        return LayerSummary(
            layer=layer,
            mean=mean.mean(),
            standard_deviation=np.sqrt(max(second_moment - mean.mean() ** 2, 0)),
            largest=self.largest[number],
            effective_rank=_effective_rank(covariance),
            dead_share=float(np.mean(np.sqrt(variance) <= floor)),
        )


def _effective_rank(covariance: np.ndarray) -> float:
    """From the roots of the eigenvalues, which are the singular values of the centred rows but for a factor."""
    eigenvalues = np.linalg.eigvalsh(covariance)
    # Where nothing varies, rounding errors of the sums are not zero.
    singular = np.sqrt(np.where(eigenvalues > 1e-12 * max(eigenvalues[-1], 0), eigenvalues, 0))
    if not singular.any():
        return 1.0
    shares = singular[singular > 0] / singular.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
