"""How a task is probed: the head, its training, the choice, the intervals."""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

WEIGHTED_SUM = "weighted_sum"  # in place of the number of a layer


class ProbeProtocol(BaseModel):
    """MARBLE's constrained track (arXiv 2306.10548, appendix A): frozen features, a small head, everything chosen on
    validation.

    Two things are ours, for all models alike: features are standardised, and there are several seeds and intervals.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden: int | None = Field(512, ge=1, description="Units of the hidden layer; null: a linear head")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout of the hidden units")
    standardise: bool = Field(
        True,
        description="Shift and scale each dimension of each layer by its mean and standard deviation over training"
        " clips",
    )
    rates: tuple[float, ...] = Field(
        (5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2), min_length=1, description="Learning rates; validation chooses one"
    )
    seeds: int = Field(3, ge=1, description="Heads for each layer and rate, seeds 0 to seeds - 1")
    batch_size: int = Field(64, ge=1, description="Clips in a batch")
    epochs: int = Field(100, ge=1, description="Most epochs of a head")
    patience: int = Field(
        10, ge=1, description="A head stops when its validation score has not risen for so many epochs"
    )
    plateau_patience: int = Field(
        3, ge=0, description="A head's rate is lowered when its score has not risen for more epochs than this"
    )
    plateau_factor: float = Field(0.5, gt=0, lt=1, description="Factor by which a rate is lowered")
    draws: int = Field(1000, ge=0, description="Bootstrap draws of groups and seeds; 0: no intervals")
    confidence: float = Field(0.95, gt=0, lt=1, description="Confidence of an interval")
    frames_per_clip: int = Field(
        16, ge=1, description="Frame tasks: frames drawn from each clip of a batch, from anywhere in the clip"
    )
    frame_layers: Literal["weighted_sum", "all"] = Field(
        "weighted_sum",
        description="Frame tasks: heads on the weighted sum of all layers only, or on each layer as well",
    )

    @field_validator("rates")
    @classmethod
    def _are_rates(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if wrong := [rate for rate in rates if not 0 < rate < math.inf]:
            raise ValueError(f"a learning rate is above 0 and finite, not {wrong[0]}")
        return rates
