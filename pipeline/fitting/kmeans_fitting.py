"""Fit centroids to a sample of a manifest, for the k-means teacher.

The sample is drawn from the manifest by seed. Its features go to a temporary file, which scikit-learn's mini-batch
k-means (Sculley 2010, https://doi.org/10.1145/1772690.1772862) reads at random places, so memory does not grow with
the sample. Batches, restarts and stopping are those of HuBERT's script, which MERT refers to
(https://github.com/facebookresearch/fairseq, examples/hubert, simple_kmeans).
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np
import sklearn
import torch
from pydantic import BaseModel, ConfigDict, Field
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

from mert_foundry.pipeline.audio.blocks import float_blocks
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.frames import FRAME_RATE, HOP, seconds_to_frames
from mert_foundry.pipeline.manifest.decode_track import decode_track
from mert_foundry.pipeline.manifest.rows import REST_SPLIT, Manifest, Track
from mert_foundry.pipeline.shards.statistics import DiscreteCounts, summarise_counts
from mert_foundry.pipeline.teachers.kmeans import build_feature

PUBLISHED_CLUSTERS = {"logmel": 300, "chroma": 200}
BATCH_FRAMES = 10_000


class KmeansFittingConfig(BaseModel):
    """What `mert kmeans` needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: str = Field(description="Manifest folder; its train split is used")
    out: str = Field(description="Local folder for the centroids, a teacher's weights")
    feature: Literal["logmel", "chroma"] = Field(default="logmel", description="What to cluster")
    clusters: int | None = Field(
        default=None,
        gt=1,
        le=65536,
        description="Centroids; by default as published, 300 for logmel and 200 for chroma",
    )
    hours: float = Field(default=4.0, gt=0, description="Audio to draw, hours (about 270 MB of temporary file an hour)")
    crop_seconds: float = Field(
        default=30.0, ge=1, allow_inf_nan=False, description="Length of the pieces that are drawn, seconds"
    )
    seed: int = Field(default=0, ge=0, description="Seed of the sample and of the centroids")

    @property
    def num_clusters(self) -> int:
        """The clusters asked for, or the published number."""
        return self.clusters or PUBLISHED_CLUSTERS[self.feature]


@dataclass(frozen=True)
class Crops:
    """The pieces drawn of one track: piece n starts at n times the length of a piece."""

    track: Track
    numbers: list[int]

    def seconds(self, crop_seconds: float) -> float:
        """Audio in all, seconds."""
        return len(self.numbers) * min(crop_seconds, self.track.seconds)


def choose_crops(manifest: Manifest, config: KmeansFittingConfig) -> list[Crops]:
    """Draw pieces of the train split until `hours` are reached, every piece with the same chance.

    A track has a piece every `crop_seconds`, a shorter track one. The choice is a pure function of the manifest and
    the settings.

    Raises:
        ValueError: the train split has no track.
    """
    tracks = [track for track in manifest.tracks if track.split == REST_SPLIT]
    if not tracks:
        raise ValueError(f"the manifest has no track in split {REST_SPLIT!r}; see its group_by and splits")
    pieces = [
        (index, number)
        for index, track in enumerate(tracks)
        for number in range(max(1, int(track.seconds / config.crop_seconds)))
    ]
    chosen, seconds = defaultdict(list), 0.0
    for place in np.random.default_rng(config.seed).permutation(len(pieces)):
        if seconds >= config.hours * 3600:
            break
        index, number = pieces[place]
        chosen[index].append(number)
        seconds += min(config.crop_seconds, tracks[index].seconds)
    return [Crops(tracks[index], sorted(numbers)) for index, numbers in sorted(chosen.items())]


def collect_features(
    file: BinaryIO, root: str, crops: list[Crops], config: KmeansFittingConfig, report: Callable[[float], None]
) -> np.ndarray:
    """Write the features of the drawn pieces to an open file; returns them, float32 `[frames, size]`, mapped from it.

    Each piece is taken as a track of its own. `report` is called after each with the seconds done in all.

    Raises:
        ValueError: the file of a track is not the one of the manifest, or no track has a whole frame.
        OSError: the folder for temporary files (TMPDIR) is full.
    """
    feature = build_feature(config.feature, torch.device("cpu"))
    length = seconds_to_frames(config.crop_seconds) * HOP
    frames = 0
    for drawn in crops:
        try:
            decoded = decode_track(drawn.track, root)
        except DecodeError as error:
            raise ValueError(f"{drawn.track.path}: {error.reason}: {error.detail}") from error
        with decoded:
            for number in drawn.numbers:
                for features in feature.stream(float_blocks(decoded.read(number * length, length))):
                    file.write(features.numpy().tobytes())
                    frames += len(features)
                report(frames / FRAME_RATE)
    if not frames:
        raise ValueError(f"{config.manifest}: no whole frame of {HOP} samples in {len(crops)} tracks")
    file.flush()
    return np.memmap(file, np.float32, "r", shape=(frames, feature.size))


def fit_centroids(sample: np.ndarray, config: KmeansFittingConfig) -> MiniBatchKMeans:
    """Cluster float32 `[frames, size]`, with one thread, so that the same machine gives the same bytes.

    Raises:
        ValueError: there are fewer frames than centroids.
    """
    if len(sample) < config.num_clusters:
        raise ValueError(f"{config.manifest}: {len(sample)} frames drawn, too few for {config.num_clusters} centroids")
    with threadpool_limits(1):
        return MiniBatchKMeans(
            config.num_clusters,
            batch_size=BATCH_FRAMES,
            max_iter=100,
            tol=0.0,
            max_no_improvement=100,
            n_init=20,
            reassignment_ratio=0.0,
            random_state=config.seed,
        ).fit(sample)


def judge_centroids(kmeans: MiniBatchKMeans, sample: np.ndarray) -> dict:
    """Squared error a frame, the same relative to the sample's variance, centroids in use and their perplexity."""
    counts = np.bincount(kmeans.labels_, minlength=kmeans.n_clusters)
    parts = range(0, len(sample), BATCH_FRAMES)
    squares = sum(np.square(sample[part : part + BATCH_FRAMES], dtype=np.float64).sum() for part in parts)
    variance = squares / len(sample) - np.square(sample.mean(axis=0, dtype=np.float64)).sum()
    error = kmeans.inertia_ / len(sample)
    return {
        "squared_error": round(float(error), 4),
        "relative_error": round(float(error / variance), 4),
        "used": int((counts > 0).sum()),
        "perplexity": round(summarise_counts(DiscreteCounts(counts=[counts.tolist()])).perplexity[0], 1),
    }


def describe_fitting(
    manifest: Manifest, config: KmeansFittingConfig, kmeans: MiniBatchKMeans, sample: np.ndarray
) -> dict:
    """How the centroids came about, for people to read."""
    return {
        "manifest_sha256": manifest.sha256,
        "hours": config.hours,
        "crop_seconds": config.crop_seconds,
        "seed": config.seed,
        "frames": len(sample),
        "steps": kmeans.n_steps_,
        "scikit_learn": sklearn.__version__,
    }
