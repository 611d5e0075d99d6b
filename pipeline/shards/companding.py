"""Continuous targets in one byte a value: a mu-law curve for values from 0 to a peak.

The curve of telephony (ITU-T G.711, there for both signs): nearly linear below peak / mu, logarithmic above, so that
quiet values keep their relative precision. With mu = 10,000 one level is 3.6 % of a loud value.
"""

from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:  # torch takes seconds to import, and who reads shards needs none of it
    from torch import Tensor

LEVELS = 255  # the highest level; the lowest is 0


class Companding(BaseModel):
    """What a uint8 target's levels mean: value = peak / mu * expm1(level / 255 * log1p(mu))."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    peak: float = Field(gt=0, allow_inf_nan=False, description="Value of level 255, in the target's own unit")
    mu: float = Field(gt=0, allow_inf_nan=False, description="Bend: linear below peak / mu, logarithmic above")

    def compress(self, values: "Tensor") -> "Tensor":
        """The nearest levels on the curve, uint8, of float values of any shape.

        Raises:
            ValueError: a value is not within 0 and the peak; nothing is clipped.
        """
        if not ((values >= 0) & (values <= self.peak)).all():
            low, high = values.min().item(), values.max().item()
            raise ValueError(f"values from {low:g} to {high:g}, the companding curve holds 0 to {self.peak:g}")
        levels = (values * (self.mu / self.peak)).log1p() * (LEVELS / np.log1p(self.mu))
        return levels.round().byte()

    def expand(self, levels: np.ndarray) -> np.ndarray:
        """The values of uint8 levels of any shape, float64."""
        curve = self.peak / self.mu * np.expm1(np.arange(LEVELS + 1) / LEVELS * np.log1p(self.mu))
        return curve[levels]
