"""What a teacher is: audio of a whole track in, one target out, with a specification that travels.

A `TargetSpec` is written into index.json and read by the trainer, which builds its heads from it;
the teacher itself is needed only where labels are made or checked.
"""

import hashlib
import json
from typing import Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class TargetSpec(BaseModel):
    """One target of a shard set, as index.json holds it.

    A discrete target is stored as `[codebooks, frames]`, a continuous one as `[frames, bins]`, both in
    `{key}.{name}.npy`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="Member name: {key}.{name}.npy")
    kind: Literal["discrete", "continuous"] = Field(description="Codes to classify, or values to regress")
    dtype: Literal["uint16", "float16"] = Field(description="NumPy dtype in the shard, little-endian")
    frame_rate: int = Field(gt=0, description="Frames a second")
    size: int = Field(gt=0, description="Number of codebooks (discrete) or of bins (continuous)")
    codebook_size: int | None = Field(default=None, description="Entries per codebook; none if continuous")
    fingerprint: str = Field(description="SHA-256 over the teacher's weights and settings")
    teacher: dict = Field(description="The teacher's settings, for people to read")

    def shape(self, num_frames: int) -> tuple[int, int]:
        """Shape of the stored array for a segment of `num_frames` frames."""
        return (self.size, num_frames) if self.kind == "discrete" else (num_frames, self.size)

    @property
    def frame_axis(self) -> int:
        """The axis of the stored array that runs over frames."""
        return 1 if self.kind == "discrete" else 0


class Teacher(Protocol):
    """Labels whole tracks. Building one loads its weights; `spec` says what it writes."""

    spec: TargetSpec

    def label(self, audio: np.ndarray) -> np.ndarray:
        """Targets of a whole track.

        Args:
            audio: float32 `[T]` in [-1, 1), 24 kHz mono, T a multiple of the hop (320 samples).

        Returns:
            An array of `spec.dtype` and `spec.shape(T // 320)`.
        """
        ...


def fingerprint(settings: dict, weights: dict[str, np.ndarray] | None = None) -> str:
    """SHA-256 over settings (canonical JSON) and weights (name, dtype, shape, bytes; by name)."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(weights or {}):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
