"""The page of `mert inspect RUN_FOLDER [RUN_FOLDER ...] --html`: curves of every number a run wrote, runs overlaid."""

import shlex
from argparse import Namespace
from typing import Any

import numpy as np

from mert_foundry.jobs.command.text import number
from mert_foundry.jobs.inspection.report_page import ReportPage
from mert_foundry.model.runs.history import Curve, RunHistory, RunSummary, curves, load_run, summarise_run
from mert_foundry.pipeline.inspection.difference import flatten
from mert_foundry.pipeline.storage.files import local_path

MOST_POINTS = 1500  # of a curve on the page
UNITS = {
    "learning rate": {"label": "learning rate"},
    "gradient norm": {"label": "norm before clipping"},
    "audio seconds a second": {"label": "audio s/s", "zero": True},
    "share of time waiting for data": {"label": "share", "format": "percent", "zero": True},
}


def report(options: Namespace) -> bytes:
    """The page of --html, for one run or several. Raises as `load_run`, and ValueError as `ReportPage.render`."""
    histories = [load_run(local_path(location)) for location in options.locations]
    names = run_names(histories)
    summaries = [summarise_run(history) for history in histories]
    locations = " ".join(shlex.quote(str(history.folder)) for history in histories)
    page = ReportPage(
        kind="run" if len(names) == 1 else f"{len(names)} runs",
        title=", ".join(names),
        command=f"mert inspect {locations} --html",
    )
    add_overview(page, names, summaries)
    lines = [curves(history) for history in histories]
    plots = list(dict.fromkeys(plot for run in lines for plot in run))
    for title, wanted in (
        ("Losses", lambda plot: plot.startswith("loss")),
        ("Accuracy", lambda plot: "accuracy" in plot),
        ("Optimisation and speed", lambda plot: plot in UNITS),
        ("Diagnostics", lambda plot: plot.startswith("diagnostics")),
    ):
        chosen = [curve_plot(plot, names, lines) for plot in plots if wanted(plot) and "by codebook" not in plot]
        chosen += [
            each
            for plot in plots
            if wanted(plot) and "by codebook" in plot
            for each in codebook_plots(plot, names, lines)
        ]
        if chosen:
            page.plots(page.section(title), *chosen)
    add_settings(page, names, histories)
    return page.render()


def run_names(histories: list[RunHistory]) -> list[str]:
    """Short names: the last parts of the paths that tell the runs apart."""
    paths = [history.folder.resolve().parts for history in histories]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [str(history.folder) for history in histories]


def add_overview(page: ReportPage, names: list[str], summaries: list[RunSummary]) -> None:
    """Steps, best loss and speed of each run."""
    section = page.section("Overview")
    if len(summaries) == 1:
        only = summaries[0]
        section.figures(
            (f"{only.step:,}", f"steps{f' of {only.total_steps:,}' if only.total_steps else ''}"),
            (number(only.best_validation.loss) if only.best_validation else "-", "best validation loss"),
            (number(only.last_validation.loss) if only.last_validation else "-", "last validation loss"),
            (number(only.audio_seconds_per_second), "audio seconds a second"),
            ("-" if only.data_wait_share is None else f"{only.data_wait_share:.1%}", "waiting for data"),
            (f"{only.skipped_steps:,}", "steps skipped"),
        )
    rows = [
        (
            name,
            each.step,
            each.best_validation.step if each.best_validation else "-",
            number(each.best_validation.loss if each.best_validation else None, 5),
            number(each.last_validation.loss if each.last_validation else None, 5),
            number(each.audio_seconds_per_second),
            "-" if each.data_wait_share is None else f"{each.data_wait_share:.1%}",
            each.skipped_steps,
            each.shards or "-",
            (each.index_sha256 or "-")[:16],
            ", ".join(each.checkpoints[:3]) or "none",
        )
        for name, each in zip(names, summaries, strict=True)
    ]
    header = (
        "run",
        "steps",
        "best at step",
        "best loss",
        "last loss",
        "audio s/s",
        "waiting",
        "skipped",
        "shards",
        "index",
        "newest checkpoints",
    )
    section.table("Runs; losses are those of validation", header, rows, "tnnnnnnnttt")
    for name, each in zip(names, summaries, strict=True):
        if each.unreadable_lines:
            section.note(f"{name}: lines of metrics.jsonl that are no record: {each.unreadable_lines}.")


def curve_plot(plot: str, names: list[str], runs: list[dict[str, dict[str, Curve]]]) -> dict[str, Any]:
    """One plot with every run: a colour a run (or a kind, when there is one run), validation bold."""
    series = []
    for run, (name, plots) in enumerate(zip(names, runs, strict=True)):
        lines = plots.get(plot, {})
        for place, (line, curve) in enumerate(lines.items()):
            many = {"shade": place / (len(lines) - 1)} if len(lines) > 4 else {"color": place}
            series.append(
                {
                    "label": line if len(names) == 1 else f"{name}, {line}",
                    **(many if len(names) == 1 else {"color": run}),
                    "faint": line == "train" and len(lines) > 1,
                    **points(curve),
                }
            )
    return {
        "title": plot,
        "kind": "lines",
        "x": {"label": "step", "format": "count"},
        "y": axis_of(plot),
        "series": series,
    }


def codebook_plots(plot: str, names: list[str], runs: list[dict[str, dict[str, Curve]]]) -> list[dict[str, Any]]:
    """Of one run a plot with every codebook; of several runs a plot a codebook with every run."""
    x, y = {"label": "step", "format": "count"}, axis_of(plot)
    codebooks = list(dict.fromkeys(line for plots in runs for line in plots.get(plot, {})))
    if len(names) == 1:
        shades = np.linspace(0, 1, len(codebooks)) if len(codebooks) > 1 else [0.0]
        series = [
            {"label": codebook, "shade": float(shade), **points(runs[0][plot][codebook])}
            for codebook, shade in zip(codebooks, shades, strict=True)
        ]
        return [{"title": plot, "kind": "lines", "x": x, "y": y, "series": series}]
    return [
        {
            "title": f"{plot.removesuffix(' by codebook')}, {codebook}",
            "kind": "lines",
            "x": x,
            "y": y,
            "series": [
                {"label": name, "color": run, **points(plots[plot][codebook])}
                for run, (name, plots) in enumerate(zip(names, runs, strict=True))
                if codebook in plots.get(plot, {})
            ],
        }
        for codebook in codebooks
    ]


def axis_of(plot: str) -> dict[str, Any]:
    """The y axis of a plot."""
    if "accuracy" in plot:
        return {"label": "share of masked frames", "format": "percent", "zero": True}
    return UNITS.get(plot, {"label": "value" if plot.startswith("diagnostics") else "loss"})


def points(curve: Curve) -> dict[str, list]:
    """Steps and values; of a long curve every k-th point and the last."""
    stride = -(-len(curve) // MOST_POINTS)
    kept = curve[::stride] + ([curve[-1]] if (len(curve) - 1) % stride else [])
    return {"x": [step for step, _ in kept], "y": [value for _, value in kept]}


def add_settings(page: ReportPage, names: list[str], histories: list[RunHistory]) -> None:
    """The config of one run, or the settings in which several differ."""
    settings = [flatten(history.config) for history in histories]
    keys = list(dict.fromkeys(key for run in settings for key in run))
    section = page.section("Settings")
    if len(names) > 1:
        keys = [key for key in keys if any(run.get(key) != settings[0].get(key) for run in settings)]
        if not keys:
            section.note("The runs have the same settings.")
            return
    rows = [(key, *("-" if run.get(key) is None else run[key] for run in settings)) for key in keys]
    caption = "Settings" if len(names) == 1 else "Settings that differ"
    section.table(caption, ("key", *(names if len(names) > 1 else ("value",))), rows, "t" * (len(names) + 1))
