"""Spikes: steps whose loss or gradient norm lies far above those of the steps before, and the examples that they were
made of.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import median
from typing import Any

from mert_foundry.model.training.ranks import gather_from_ranks
from mert_foundry.model.training.train_step import StepResult

WINDOW = 200  # steps
OF_NORMAL = 1.4826  # standard deviation of normal values / median of their distances from the median
LEAST_SPREAD = 0.01  # of the median: values that hardly change would make a spike of any other


class SpikeWatch:
    """Knows the losses and gradient norms of the last `WINDOW` steps; judges none before it has so many.

    A value is a spike above median + band x spread; spread is 1.4826 x median |value - median|, a robust standard
    deviation, and at least 1 % of the median. A spike counts among the last steps too, since the median bears it, so
    that a lasting change is soon no spike.

    Args:
        band: the factor on the spread; None: nothing is a spike.
        earlier: what `state` gave when a checkpoint was written.
    """

    def __init__(self, band: float | None, earlier: Mapping[str, Sequence[float]] | None):
        self._band = band
        self._last = {name: deque((earlier or {}).get(name, ()), WINDOW) for name in ("loss", "gradient_norm")}

    def state(self) -> dict[str, list[float]]:
        """The values of the last steps, for a checkpoint."""
        return {name: list(values) for name, values in self._last.items()}

    def forget(self) -> None:
        """Begin anew: what follows is not to be compared with the steps so far."""
        for values in self._last.values():
            values.clear()

    def beyond(self, loss: float, gradient_norm: float) -> dict[str, dict[str, float]]:
        """Median and limit of what is a spike of these values after the last steps; empty where none is."""
        values = {"loss": loss, "gradient_norm": gradient_norm}
        return {name: limits for name, value in values.items() if (limits := self._exceeded(name, value))}

    def look(self, result: StepResult, keys: Sequence[str]) -> dict[str, Any] | None:
        """What to record of a step that is a spike, with the example keys of each rank; None for another.

        All ranks call it together.

        `rank`: the one whose rows have the largest share in the loss. `beyond`: median and limit of what was a spike.
        """
        if self._band is None or not result.finite:
            return None
        found = {"loss": result.summary["loss"], "gradient_norm": result.gradient_norm}
        beyond = self.beyond(**found)
        for name, value in found.items():
            if isfinite(value):
                self._last[name].append(value)
        if not beyond:
            return None
        shares, keys_of_ranks = zip(*gather_from_ranks((float(result.share), list(keys))))
        worst = max(range(len(shares)), key=lambda index: shares[index])
        return {**found, "beyond": beyond, "rank": worst, "shares": list(shares), "keys": list(keys_of_ranks)}

    def _exceeded(self, name: str, value: float) -> dict[str, float] | None:
        last = self._last[name]
        if self._band is None or len(last) < WINDOW:
            return None
        middle = median(last)
        spread = max(OF_NORMAL * median(abs(each - middle) for each in last), LEAST_SPREAD * abs(middle))
        limit = middle + self._band * spread
        return {"median": middle, "limit": limit} if value > limit else None
