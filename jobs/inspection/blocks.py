"""Blocks for several kinds of folder: how numbers are distributed, and what was rejected or dropped."""

from collections.abc import Mapping, Sequence

import numpy as np

from mert_foundry.jobs.command.text import number
from mert_foundry.jobs.inspection.view import Axis, BarPlot, Bars, Cell, HistogramPlot, Table
from mert_foundry.pipeline.inspection.spread import Spread, histogram


def spread_table(what: str, spreads: Mapping[str, Spread | None]) -> Table:
    """A table of quantiles, one row for each name that has numbers. `what` is the header above the names."""
    header = (what, "count", "lowest", "5 %", "median", "mean", "95 %", "highest")
    rows: list[Sequence[Cell]] = []
    for name, each in spreads.items():
        if each:
            values = (each.minimum, each.percentile_5, each.median, each.mean, each.percentile_95, each.maximum)
            rows.append((name, each.count, *(number(value, 5) for value in values)))
    return Table(header, rows)


def histogram_plot(
    title: str, label: str, unit: str, counted: str, values: Sequence[float] | np.ndarray, hint: str = ""
) -> HistogramPlot:
    """A histogram; `counted` says what is counted."""
    bars = histogram(values)
    x, y = Axis(label, unit=unit), Axis(counted, format="count")
    return HistogramPlot(title, bars.edges, bars.counts, x, y, hint)


def reasons_plot(title: str, counted: str, counts: Mapping[str, int]) -> BarPlot:
    """A bar for each reason, the longest first."""
    reasons = sorted(counts, key=lambda reason: (-counts[reason], reason))
    bars = Bars(counted, [counts[reason] for reason in reasons])
    return BarPlot(title, reasons, [bars], Axis("reason"), Axis(counted, format="count"), sideways=True)


def reasons_text(counts: Mapping[str, int]) -> str:
    """`2 silent, 1 truncated`, or `none`."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items()) or "none"


def settings_text(settings: Mapping[str, object]) -> str:
    """`name=value` for each setting."""
    return ", ".join(f"{name}={value}" for name, value in settings.items())
