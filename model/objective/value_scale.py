"""In which scale a head predicts a continuous target, so that small values teach as much as large ones.

The squared error of raw magnitudes is the error of a few loud bins, and it is small beside the nats of codes.
Standardised by bin, every bin counts alike and a constant has a loss of 1; in the logarithm, quiet notes count as loud
ones do.

Bins of a spectrum rise and fall together: half of the variance of log-CQT frames lies along one direction, their level,
and an encoder that knows level and colour has most of that error gone before it knows a pitch; its features then vary
in few directions (docs/experiments.md). Decorrelated, the logarithm is predicted along its principal components, each
over its own standard deviation (ridge whitening): what tells one pitch from another counts beside the level.
"""

import base64
import math
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from torch import Tensor, nn

from mert_foundry.model.autocast import without_autocast

ValueScaleName = Literal["raw", "standardised", "log", "decorrelated"]
LOGARITHMIC = ("log", "decorrelated")
# Of log-CQT frames of rendered music, 64 components hold 93 % of the variance; the sixteenth has a hundredth of the
# first's.
MOST_COMPONENTS = 64
# Share of the largest variance that is added to each, so that components of noise count less than those of music.
RIDGE = 0.01
# Added as well, in nats squared: what rounding leaves of a constant target does not become a value to predict.
LEAST_VARIANCE = 1e-6


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
    """The scale of one target's head, with x the value or its `Companding.logarithm`.

    (x - mean) / deviation by bin, or, with components, (x - mean) times the matrix of components. Older runs have
    deviations beside components; they do not count.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    logarithmic: bool = Field(description="whether x is the logarithm")
    mean: tuple[float, ...] = Field(description="of each bin over encoder frames, in the value's unit or in nats")
    deviation: tuple[Annotated[float, Field(gt=0.0)], ...] | None = Field(
        None, description="standard deviation of each bin, in the same unit; null: there are components"
    )
    components: str | None = Field(
        None, description="base64 of float16 [bins, components], row by row, little-endian; null: bins are predicted"
    )

    @field_validator("components")
    @classmethod
    def _whole(cls, components: str | None, info: ValidationInfo) -> str | None:
        bins = len(info.data.get("mean", ()))
        if components is None or not bins:
            return components
        size = len(base64.b64decode(components, validate=True))
        if not size or size % (2 * bins) or not np.isfinite(_unpack(components, bins)).all():
            raise ValueError(f"components are no finite float16 matrix of {bins} rows")
        return components

    @model_validator(mode="after")
    def _is_given(self) -> "ValueScale":
        if self.deviation is None and self.components is None:
            raise ValueError("a scale needs a deviation of each bin, or components")
        return self

    @model_serializer(mode="wrap")
    def _without_nulls(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A scale by bin reads as it did before there was another.
        return {name: value for name, value in fields(self).items() if value is not None}

    def is_called(self, name: ValueScaleName) -> bool:
        """Whether `objective.value_scale` calls such a scale by this name."""
        return (self.logarithmic, self.components is not None) == (name in LOGARITHMIC, name == "decorrelated")

    def projection(self) -> np.ndarray:
        """What x - mean is multiplied by: float64 [bins, predicted values]."""
        if self.components is not None:
            return _unpack(self.components, len(self.mean))
        return np.diag(1.0 / np.array(self.deviation))

    @property
    def size(self) -> int:
        """Values that the head predicts for a frame."""
        return len(self.mean) if self.components is None else self.projection().shape[1]


def decorrelating_components(covariance: np.ndarray) -> str:
    """`ValueScale.components` for values with this covariance [bins, bins]: at most MOST_COMPONENTS, the largest first.

    Column k is the k-th eigenvector over the root of its eigenvalue plus RIDGE of the largest and LEAST_VARIANCE. Its
    largest entry is positive, so that the sign does not depend on the machine.
    """
    variances, directions = np.linalg.eigh(covariance)
    variances, directions = variances[::-1][:MOST_COMPONENTS].clip(0), directions[:, ::-1][:, :MOST_COMPONENTS]
    directions = directions * np.sign(np.take_along_axis(directions, np.abs(directions).argmax(0)[None], 0))
    scaled = (directions / np.sqrt(variances + RIDGE * variances[0] + LEAST_VARIANCE)).astype("<f2")
    return base64.b64encode(scaled.tobytes()).decode()


def _unpack(components: str, bins: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(components), "<f2").reshape(bins, -1).astype(np.float64)


class Standardise(nn.Module):
    """Values [S, bins] in the target's unit -> what the head predicts, [S, predicted values] fp32. Has no weights."""

    mean: Tensor
    deviation: Tensor | None
    components: Tensor | None

    def __init__(self, scale: ValueScale, companding: Companding | None):
        super().__init__()
        self.companding = companding if scale.logarithmic else None
        components = None if scale.components is None else torch.from_numpy(scale.projection()).float()
        deviation = None if scale.deviation is None else torch.tensor(scale.deviation)
        self.register_buffer("mean", torch.tensor(scale.mean), persistent=False)
        self.register_buffer("deviation", deviation, persistent=False)
        self.register_buffer("components", components, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        values = values.float()
        if self.companding is not None:
            values = self.companding.logarithm(values)
        if self.components is not None:
            with without_autocast(values.device):
                return (values - self.mean) @ self.components
        assert self.deviation is not None, "a scale has components or deviations"
        return (values - self.mean) / self.deviation
