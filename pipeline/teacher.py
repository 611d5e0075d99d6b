"""What a teacher is: audio of a whole track in, one target out, with a specification that travels.

A `TargetSpec` is written into index.json and read by the trainer, which builds its heads from it;
the teacher itself is needed only where labels are made or checked.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from pipeline.companding import Companding


class TargetSpec(BaseModel):
    """One target of a shard set, as index.json holds it.

    A discrete target is stored as `[codebooks, frames]`, a continuous one as `[frames, bins]`, both in
    `{key}.{name}.npy`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="Member name: {key}.{name}.npy")
    kind: Literal["discrete", "continuous"] = Field(description="Codes to classify, or values to regress")
    dtype: Literal["uint16", "float16", "uint8"] = Field(description="NumPy dtype in the shard, little-endian")
    frame_rate: int = Field(gt=0, description="Frames a second")
    size: int = Field(gt=0, description="Number of codebooks (discrete) or of bins (continuous)")
    codebook_size: int | None = Field(default=None, description="Entries per codebook; none if continuous")
    companding: Companding | None = Field(default=None, description="What the levels of a uint8 target mean; none otherwise")
    fingerprint: str = Field(description="SHA-256 over the teacher's weights and settings")
    teacher: dict = Field(description="The teacher's settings, for people to read")

    def shape(self, num_frames: int) -> tuple[int, int]:
        """Shape of the stored array for a segment of `num_frames` frames."""
        return (self.size, num_frames) if self.kind == "discrete" else (num_frames, self.size)

    def values(self, stored: np.ndarray) -> np.ndarray:
        """A continuous target's stored array in the target's own unit, float64."""
        return self.companding.expand(stored) if self.companding else stored.astype(np.float64)

    @property
    def frame_axis(self) -> int:
        """The axis of the stored array that runs over frames."""
        return 1 if self.kind == "discrete" else 0

    @model_serializer(mode="wrap")
    def _without_companding(self, fields: SerializerFunctionWrapHandler) -> dict:
        # A set without it keeps the index.json, and so the digest, of before there was companding.
        return {name: value for name, value in fields(self).items() if name != "companding" or value is not None}


class Teacher(Protocol):
    """Labels whole tracks of any length. Building one loads its weights; `spec` says what it writes.

    A teacher that can compute in several ways also has a `backend`, a mapping from its target's name to what
    computes it; the shard's record keeps it. One that labels several tracks at once has `label_tracks`, see the
    function of that name.
    """

    spec: TargetSpec

    def label(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Targets of a whole track, piece by piece; memory is bounded whatever the track's length.

        Args:
            blocks: float32 `[n]` in [-1, 1), 24 kHz mono, in order, together the track; every n is a positive
                multiple of the hop (320 samples). The labels must not depend on where the blocks are cut.

        Yields:
            Arrays of `spec.dtype` and `spec.shape(f)` for consecutive frames, together as many frames as the
            blocks hold; never changed afterwards, since they are encoded while the next ones are made.
        """
        ...


def label_tracks(teacher: Teacher, tracks: Iterable[Iterable[np.ndarray]]) -> Iterator[Iterator[np.ndarray]]:
    """Targets of track after track, each as `Teacher.label` gives them and to be read before the next.

    A teacher's own `label_tracks` may read blocks of the tracks after it meanwhile; what it yields for a track must
    not depend on the others.
    """
    together = getattr(teacher, "label_tracks", None)
    return together(tracks) if together else map(teacher.label, tracks)


def fingerprint(settings: dict, weights: dict[str, np.ndarray] | None = None) -> str:
    """SHA-256 over settings (canonical JSON) and weights (name, dtype, shape, bytes; by name)."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(weights or {}):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
