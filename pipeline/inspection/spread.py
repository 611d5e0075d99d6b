"""How lengths, levels or other numbers spread: a few quantiles for people, a histogram for a plot."""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class Spread(BaseModel):
    """Quantiles of a list of numbers, in their own unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(ge=0, description="How many numbers")
    minimum: float = Field(description="Smallest")
    percentile_5: float = Field(description="5 % are below")
    median: float = Field(description="Half are below")
    mean: float = Field(description="Mean")
    percentile_95: float = Field(description="95 % are below")
    maximum: float = Field(description="Largest")


class Histogram(BaseModel):
    """Counts between neighbouring edges; the last bar holds its upper edge too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    edges: list[float] = Field(description="Edges of the bars, one more than there are bars")
    counts: list[int] = Field(description="Numbers in each bar")


def spread(values: Sequence[float] | np.ndarray) -> Spread | None:
    """Quantiles of `values`; None when there are none."""
    if not len(values):
        return None
    low, middle, high = np.percentile(values, [5, 50, 95])
    return Spread(
        count=len(values),
        minimum=np.min(values),
        percentile_5=low,
        median=middle,
        mean=np.mean(values),
        percentile_95=high,
        maximum=np.max(values),
    )


def histogram(values: Sequence[float] | np.ndarray, most_bars: int = 40) -> Histogram:
    """Counts of `values` in at most `most_bars` bars of a round width (1, 2 or 5 times a power of ten)."""
    if not len(values):
        return Histogram(edges=[0.0, 1.0], counts=[0])
    low, high = float(np.min(values)), float(np.max(values))
    width = _round_width((high - low) / most_bars)
    first = int(np.floor(low / width))
    last = max(first + 1, int(np.ceil(high / width)))
    edges = np.arange(first, last + 1) * width
    counts, _ = np.histogram(values, edges)
    return Histogram(edges=edges.tolist(), counts=counts.tolist())


def _round_width(width: float) -> float:
    """The smallest of 1, 2, 5, 10, ... times a power of ten that leaves room at both ends; 1 for no width at all."""
    if width <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(width))
    return float(next(power * step for step in (1, 2, 5, 10, 20) if power * step >= width * 40 / 38))
