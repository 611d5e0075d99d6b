"""One target of a shard set: written into index.json, read by the trainer, which builds its heads from it."""

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from mert_foundry.pipeline.shards.companding import Companding


class TargetSpec(BaseModel):
    """One target of a shard set, as index.json holds it.

    A discrete target is stored as `[codebooks, frames]`, a continuous one as `[frames, bins]`, both in
    `{key}.{name}.npy`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="Member name: {key}.{name}.npy")
    kind: Literal["discrete", "continuous"] = Field(description="Codes to classify, or values to regress")
    dtype: Literal["uint16", "float16", "uint8"] = Field(description="NumPy dtype in the shard, little-endian")
    frame_rate: int = Field(gt=0, description="Frames per second")
    size: int = Field(gt=0, description="Number of codebooks (discrete) or of bins (continuous)")
    codebook_size: int | None = Field(default=None, description="Entries per codebook; none if continuous")
    companding: Companding | None = Field(
        default=None, description="What the levels of a uint8 target mean; none otherwise"
    )
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


def octave_layout(spec: TargetSpec) -> tuple[float, int] | None:
    """Centre of the lowest bin in Hz and bins per octave, when the target's teacher says so (a
    constant-Q transform).
    """
    lowest, per_octave = spec.teacher.get("lowest_frequency"), spec.teacher.get("bins_per_octave")
    if isinstance(lowest, int | float) and isinstance(per_octave, int) and lowest > 0 and per_octave > 0:
        return float(lowest), per_octave
    return None
