"""Plots of everything that runs recorded, with several runs in the same plot."""

import functools
from collections.abc import Callable, Sequence

from mert_foundry.jobs.inspection.view import Axis, Block, Line, LinePlot, OnPage, Plots, Section
from mert_foundry.model.runs.history import Curve, RunHistory, curves

MOST_POINTS = 1500  # of a curve on the page
STEPS = Axis("step", format="count")
AXES = {
    "learning rate": Axis("learning rate"),
    "gradient norm": Axis("norm before clipping"),
    "audio seconds a second": Axis("audio s/s", zero=True),
    "share of time waiting for data": Axis("share", format="percent", zero=True),
    "used share of the devices (MFU)": Axis("share", format="percent", zero=True),
    "seconds of a step": Axis("seconds", zero=True),
    "memory at most": Axis("bytes", zero=True),
}
CurvesOfRun = dict[str, dict[str, Curve]]
SECTIONS: dict[str, Callable[[str], bool]] = {
    "Losses": lambda plot: plot.startswith(("loss", "explained")),
    "Accuracy": lambda plot: "accuracy" in plot,
    "Optimisation and speed": lambda plot: plot in AXES,
    "Diagnostics": lambda plot: plot.startswith("diagnostics"),
}


def curve_sections(names: Sequence[str], histories: Sequence[RunHistory]) -> list[Section]:
    """Sections of curves, which only a page shows."""
    read_curves = functools.cache(lambda: [curves(history) for history in histories])
    return [
        Section(title, [OnPage(functools.partial(curve_blocks, names, read_curves, wanted))])
        for title, wanted in SECTIONS.items()
    ]


def curve_blocks(
    names: Sequence[str], read_curves: Callable[[], Sequence[CurvesOfRun]], wanted: Callable[[str], bool]
) -> list[Block]:
    """Plots of the curves whose names are `wanted`; curves by codebook come last."""
    runs = read_curves()
    chosen = [plot for plot in dict.fromkeys(plot for run in runs for plot in run) if wanted(plot)]
    plots = [curve_plot(plot, names, runs) for plot in chosen if "by codebook" not in plot]
    for plot in chosen:
        if "by codebook" in plot:
            plots += codebook_plots(plot, names, runs)
    return [Plots(plots)] if plots else []


def curve_plot(plot: str, names: Sequence[str], runs: Sequence[CurvesOfRun]) -> LinePlot:
    """One plot with every run: a colour for each run (or for each line, when there is one run), training faint."""
    series = []
    for run, (name, plots) in enumerate(zip(names, runs, strict=True)):
        lines = plots.get(plot, {})
        for index, (label, curve) in enumerate(lines.items()):
            faint = label == "train" and len(lines) > 1
            if len(names) > 1:
                series.append(line(f"{name}, {label}", curve, color=run, faint=faint))
            elif len(lines) > 4:
                series.append(line(label, curve, shade=index / (len(lines) - 1), faint=faint))
            else:
                series.append(line(label, curve, color=index, faint=faint))
    return LinePlot(plot, series, STEPS, y_axis(plot))


def codebook_plots(plot: str, names: Sequence[str], runs: Sequence[CurvesOfRun]) -> list[LinePlot]:
    """Of one run a plot with every codebook; of several runs a plot for each codebook with every run."""
    codebooks = list(dict.fromkeys(label for plots in runs for label in plots.get(plot, {})))
    if len(names) == 1:
        curves_of_run = runs[0][plot]
        last = max(len(codebooks) - 1, 1)
        series = [line(label, curves_of_run[label], shade=index / last) for index, label in enumerate(codebooks)]
        return [LinePlot(plot, series, STEPS, y_axis(plot))]
    found = []
    for codebook in codebooks:
        series = [
            line(name, plots[plot][codebook], color=run)
            for run, (name, plots) in enumerate(zip(names, runs, strict=True))
            if codebook in plots.get(plot, {})
        ]
        found.append(LinePlot(f"{plot.removesuffix(' by codebook')}, {codebook}", series, STEPS, y_axis(plot)))
    return found


def y_axis(plot: str) -> Axis:
    """The axis of the values of a plot."""
    if "accuracy" in plot:
        return Axis("share of masked frames", format="percent", zero=True)
    if plot.startswith("explained"):
        return Axis("share of the best constant's loss", format="percent", zero=True)
    return AXES.get(plot, Axis("value" if plot.startswith("diagnostics") else "loss"))


def line(label: str, curve: Curve, color: int | None = None, shade: float | None = None, faint: bool = False) -> Line:
    """A line of a plot; of a long curve every k-th point and the last."""
    stride = -(-len(curve) // MOST_POINTS)
    kept = curve[::stride] + ([curve[-1]] if (len(curve) - 1) % stride else [])
    steps, values = [step for step, _ in kept], [value for _, value in kept]
    return Line(label, steps, values, color=color, shade=shade, faint=faint)
