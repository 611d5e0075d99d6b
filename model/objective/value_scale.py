"""In which scale a head predicts a continuous target, so that small values teach as much as large ones.

The squared error of raw magnitudes is the error of a few loud bins, and it is small beside the nats of codes. Standardised
by bin, every bin counts alike and a constant has a loss of 1; in the logarithm, quiet notes count as loud ones do.
"""

import math
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

ValueScaleName = Literal["raw", "standardised", "log"]


class Companding(BaseModel):
    """How values from 0 to `peak` are stored as levels 0 to 255: mu-law for what is never negative."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    peak: float = Field(gt=0.0, description="value of level 255, in the target's unit")
    mu: float = Field(gt=0.0, description="strength: the larger, the finer are small values")

    def expand(self, levels: Tensor) -> Tensor:
        """Levels uint8 of any shape -> values float32: peak / mu * expm1(level / 255 * log1p(mu))."""
        if levels.device.type != "cpu":
            return self._curve(levels)
        # Each of the 256 values once: NumPy looks one up in a quarter of the time that computing it takes.
        table = self._curve(torch.arange(256, dtype=torch.uint8))
        return torch.from_numpy(np.asarray(np.take(table.numpy(), levels.numpy())))

    def _curve(self, levels: Tensor) -> Tensor:
        return torch.expm1(levels.float() * (math.log1p(self.mu) / 255.0)) * (self.peak / self.mu)

    def logarithm(self, values: Tensor) -> Tensor:
        """log1p(mu * value / peak), in nats: linear far below peak / mu, logarithmic far above, 0 at 0."""
        return torch.log1p(values * (self.mu / self.peak))


class ValueScale(BaseModel):
    """The scale of one target's head: (x - mean) / deviation by bin, with x the value or its `Companding.logarithm`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    logarithmic: bool = Field(description="whether mean and deviation are those of the logarithm")
    mean: tuple[float, ...] = Field(description="of each bin over encoder frames, in the value's unit or in nats")
    deviation: tuple[Annotated[float, Field(gt=0.0)], ...] = Field(description="of each bin, in the same unit")


class Standardise(nn.Module):
    """Values [S, bins] in the target's unit -> what the head predicts, [S, bins] fp32. Has no weights."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, scale: ValueScale, companding: Companding | None):
        super().__init__()
        self.companding = companding if scale.logarithmic else None
        self.register_buffer("mean", torch.tensor(scale.mean), persistent=False)
        self.register_buffer("deviation", torch.tensor(scale.deviation), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        values = values.float()
        if self.companding is not None:
            values = self.companding.logarithm(values)
        return (values - self.mean) / self.deviation
