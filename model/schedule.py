"""Learning rate as a pure function of the step: linear warm-up, then linear decay (polynomial of power 1) to 0."""

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ScheduleConfig(BaseModel):
    """How long training runs and at what rate; the defaults are MERT 95M's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(5e-4, gt=0.0, description="highest rate, reached at the end of the warm-up")
    warmup_steps: int = Field(32_000, ge=0, description="optimiser steps from rate 0 to the highest")
    total_steps: int = Field(400_000, ge=1, description="optimiser steps in all; the rate is 0 at the last")

    @model_validator(mode="after")
    def _warmup_ends(self) -> "ScheduleConfig":
        if self.warmup_steps >= self.total_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} is not below total_steps {self.total_steps}")
        return self


def learning_rate(config: ScheduleConfig, step: int) -> float:
    """Rate of optimiser step `step`, counted from 1."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    left = max(config.total_steps - step, 0) / (config.total_steps - config.warmup_steps)
    return config.learning_rate * left
