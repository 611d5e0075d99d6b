"""How a stream reads."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mert_foundry.pipeline.cache.shard_cache import CacheConfig
from mert_foundry.pipeline.stream.crops import crop_frames

Schedule = tuple[tuple[int, int], ...]


class StreamConfig(BaseModel):
    """How a stream reads; only `shuffle_window` must stay the same when a run is resumed.

    A schedule is a list of [step, value]: from that training step on the value holds, until the next entry.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(gt=0, description="Crops in a global batch, over all ranks")
    crop_samples: int = Field(
        default=120_000,
        description="Samples of a crop, a multiple of 320; one longer than a segment of the set joins consecutive"
        " segments of a track",
    )
    batch_size_schedule: Schedule = Field(
        default=(), description="Later values of batch_size, [[step, value], ...]: from that training step on"
    )
    crop_samples_schedule: Schedule = Field(
        default=(),
        description="Later values of crop_samples, [[step, value], ...]; validation keeps batch_size and crop_samples",
    )
    crops_per_visit: int = Field(
        default=1,
        ge=1,
        description="Crops, all in one batch, that are taken of an example when it is read; divides the rows of a"
        " batch on each rank",
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
        description="stop: a shard that is corrupt in the object store ends the run; skip, with stream.cache and on"
        " one node: it is left out and listed",
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

    @property
    def most_visits(self) -> int:
        """Examples visited for the largest global batch of the schedule."""
        return max(stage.visits for stage in self.stages().values())

    def at_step(self, step: int) -> "StreamConfig":
        """The same with `batch_size` and `crop_samples` as the schedules have them at a training step,
        counted from 1.
        """
        values = {
            "batch_size": value_at(self.batch_size, self.batch_size_schedule, step),
            "crop_samples": value_at(self.crop_samples, self.crop_samples_schedule, step),
        }
        return self.model_copy(update=values)

    def stages(self) -> dict[int, "StreamConfig"]:
        """By its first step, the config of each stage: steps with the same batch size and crops.

        The first is from step 1.
        """
        begins = sorted({1, *(step for step, _ in (*self.batch_size_schedule, *self.crop_samples_schedule))})
        return {step: self.at_step(step) for step in begins}

    @model_validator(mode="after")
    def _schedules_rise(self) -> "StreamConfig":
        for name in ("batch_size", "crop_samples"):
            steps = [1, *(step for step, _ in getattr(self, f"{name}_schedule"))]
            if any(later <= earlier for earlier, later in zip(steps, steps[1:])):
                raise ValueError(f"{name}_schedule must have rising steps above 1, not {steps[1:]}")
        for _, samples in self.crop_samples_schedule:
            crop_frames(samples)
        return self

    @model_validator(mode="after")
    def _whole_visits(self) -> "StreamConfig":
        for size in (self.batch_size, *(size for _, size in self.batch_size_schedule)):
            if size < 1:
                raise ValueError(f"batch_size_schedule has batch_size {size}")
            if size % self.crops_per_visit:
                raise ValueError(f"batch_size {size} is not a multiple of crops_per_visit {self.crops_per_visit}")
        return self

    @model_validator(mode="after")
    def _whole_shards(self) -> "StreamConfig":
        if self.on_bad_shard == "skip" and self.cache is None:
            raise ValueError(
                "on_bad_shard: skip needs cache: only there are whole shards verified before they are used"
            )
        return self


def value_at(first: int, schedule: Sequence[tuple[int, int]], step: int) -> int:
    """The value that holds at a training step."""
    return next((value for begin, value in reversed(schedule) if begin <= step), first)
