"""How a stream reads."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mert_foundry.pipeline.cache.shard_cache import CacheConfig
from mert_foundry.pipeline.stream.crops import crop_frames


class StreamConfig(BaseModel):
    """How a stream reads; only `shuffle_window` must stay the same when a run is resumed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(gt=0, description="Crops in a global batch, over all ranks")
    crop_samples: int = Field(
        default=120_000,
        description="Samples of a crop, a multiple of 320; one longer than a segment of the set joins consecutive segments of a track",
    )
    crops_per_visit: int = Field(
        default=1,
        ge=1,
        description="Crops, all in one batch, that are taken of an example when it is read; divides the rows of a batch on each rank",
    )
    shuffle_window: int = Field(
        default=16, ge=1, le=256, description="Shards whose examples are shuffled together, and kept open"
    )
    threads: int = Field(default=4, ge=1, description="Threads that read and decode")
    prefetch: int = Field(default=4, ge=1, description="Batches made ahead")
    patience: float = Field(
        default=600.0,
        ge=0.0,
        allow_inf_nan=False,
        description="Seconds that an object store may be out of reach, in one go, before the run ends",
    )
    cache: CacheConfig | None = Field(
        default=None, description="Where whole shards of an object store are kept for training; null: ranges are read"
    )
    on_bad_shard: Literal["stop", "skip"] = Field(
        default="stop",
        description="stop: a shard that is corrupt in the object store ends the run; skip, with stream.cache and on one node: it is left"
        " out and listed",
    )

    @field_validator("crop_samples")
    @classmethod
    def _on_the_grid(cls, value: int) -> int:
        crop_frames(value)
        return value

    @property
    def visits(self) -> int:
        """Examples visited for a global batch."""
        return self.batch_size // self.crops_per_visit

    @model_validator(mode="after")
    def _whole_visits(self) -> "StreamConfig":
        if self.batch_size % self.crops_per_visit:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of crops_per_visit {self.crops_per_visit}"
            )
        return self

    @model_validator(mode="after")
    def _whole_shards(self) -> "StreamConfig":
        if self.on_bad_shard == "skip" and self.cache is None:
            raise ValueError(
                "on_bad_shard: skip needs cache: only there are whole shards verified before they are used"
            )
        return self
