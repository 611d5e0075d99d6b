"""Shows the report of a probe as tables and plots."""

from collections.abc import Iterable

from mert_foundry.jobs.inspection.options import ProbeOptions
from mert_foundry.jobs.inspection.view import (
    Axis,
    BarPlot,
    Bars,
    Block,
    Cell,
    Estimate,
    Facts,
    Line,
    LinePlot,
    Note,
    OnPage,
    Plot,
    Plots,
    Section,
    Table,
    View,
)
from mert_foundry.jobs.probing.report import DifferenceRow, LayerRow, ProbeReport, ScoreRow, TaskRow, read_report
from mert_foundry.model.probing.protocol import WEIGHTED_SUM
from mert_foundry.pipeline.storage.files import local_path


def build_view(options: ProbeOptions) -> View:
    """The report of a probe folder, for mert inspect. Raises as `read_report`."""
    folder = options.locations[0]
    return as_view(read_report(local_path(folder)), folder.rstrip("/"))


def as_view(report: ProbeReport, title: str) -> View:
    """A report as a view: an overview, the differences between models, then a section for each task."""
    sections = [Section("Scores", [_facts(report), *_warnings(report), overview(report)])]
    if report.differences:
        sections.append(Section(f"Differences from {report.compared_with}", [differences(report)]))
    if curves := list(learning_curves(report)):
        sections.append(Section("Over checkpoints", [OnPage(lambda: [Plots(curves)])]))
    sections += [task_section(report, task) for task in report.tasks]
    return View("probe", title, sections, report.model_dump(mode="json"))


def _facts(report: ProbeReport) -> Block:
    protocol = report.protocol
    head = f"one hidden layer of {protocol.hidden}" if protocol.hidden else "linear"
    return Facts(
        [
            ("data", report.data),
            ("scored on", f"{report.score} clips"),
            (
                "head",
                f"{head}, {protocol.seeds} seeds, the best of {len(protocol.rates)} learning rates by validation",
            ),
            ("intervals", f"{protocol.confidence:.0%} of {protocol.draws} bootstrap draws of pieces and seeds"),
        ]
    )


def _warnings(report: ProbeReport) -> Iterable[Block]:
    for task in report.tasks:
        if task.unusable:
            path, reason = next(iter(task.unusable.items()))
            count = len(task.unusable)
            skipped = "1 file was skipped" if count == 1 else f"{count} files were skipped"
            text = f"{task.name}: {skipped}: no features could be extracted; {path}: {reason}"
            yield Note(text, warning=True)
    for row in report.unscored:
        yield Note(f"{row.task}: {row.model} was not scored: {row.reason}", warning=True)


def overview(report: ProbeReport) -> Table:
    """The first metric of each task: a row for each task, a column for each model."""
    rows: list[list[Cell]] = []
    for task in report.tasks:
        found = {row.model: row for row in report.main_rows(task)}
        first = next(iter(found.values()), None)
        references = (first.chance, first.constant) if first else (None, None)
        scores = [_estimate(found.get(model.name)) for model in report.models]
        rows.append([task.name, task.metrics[0], *references, *scores])
    return Table(("task", "metric", "chance", "constant", *(model.name for model in report.models)), rows)


def differences(report: ProbeReport) -> Table:
    """Differences from the compared model: a row for each task, a column for each other model."""
    names = [model.name for model in report.models if model.name != report.compared_with]
    found = {(row.task, row.model): row for row in report.differences}
    rows = [[task.name, *(_estimate(found.get((task.name, name))) for name in names)] for task in report.tasks]
    return Table(("task", *names), rows, caption="score minus score, on the same pieces in each bootstrap draw")


def learning_curves(report: ProbeReport) -> Iterable[Plot]:
    """Score over optimiser steps: a plot for each task that was probed with several checkpoints."""
    for task in report.tasks:
        rows = [row for row in report.main_rows(task) if row.step is not None]
        if rows:
            rows.sort(key=lambda row: row.step or 0)
            line = Line(
                task.metrics[0],
                [float(row.step or 0) for row in rows],
                [row.value for row in rows],
                [row.low for row in rows],
                [row.high for row in rows],
            )
            yield LinePlot(task.name, [line], Axis("optimiser steps"), Axis(task.metrics[0]))


def task_section(report: ProbeReport, task: TaskRow) -> Section:
    """Every score of one task, and its plots."""
    twin = f" (as {task.published_as})" if task.published_as else ""
    clips = ", ".join(f"{count:,} {name}" for name, count in task.clips.items())
    rows = [
        (
            row.model,
            _metric(row),
            _estimate(row),
            row.chance,
            row.constant,
            row.layer,
            row.rate,
            row.tracks,
        )
        for row in _rows(report, task)
    ]
    header = ("model", "metric", "score", "chance", "constant", "layer", "rate", "tracks")
    return Section(
        f"{task.name}{twin}",
        [Facts([("clips", clips)]), Table(header, rows), OnPage(lambda: [Plots(list(_task_plots(report, task)))])],
    )


def _task_plots(report: ProbeReport, task: TaskRow) -> Iterable[Plot]:
    metric = task.metrics[0]
    rows = [row for row in report.main_rows(task) if row.value is not None]
    values = [row.value for row in rows if row.value is not None]
    low, high = ([row.low for row in rows if row.low is not None], [row.high for row in rows if row.high is not None])
    whiskers = {"low": low, "high": high} if len(low) == len(high) == len(values) else {}
    drawn = [Bars(metric, values, **whiskers)] if values else []
    yield BarPlot(f"{metric} by model", [row.model for row in rows], drawn, x=Axis(metric), sideways=True)
    layers = [row for row in report.layers if row.task == task.name and row.layer != WEIGHTED_SUM]
    lines = [_layer_line(model.name, [row for row in layers if row.model == model.name]) for model in report.models]
    if deep := [line for line in lines if len(line.x) > 1]:
        yield LinePlot(f"{metric} by layer", deep, Axis("layer"), Axis(metric))


def _layer_line(model: str, rows: list[LayerRow]) -> Line:
    return Line(
        model,
        [float(row.layer) for row in rows],
        [row.value for row in rows],
        [row.low for row in rows],
        [row.high for row in rows],
    )


def _rows(report: ProbeReport, task: TaskRow) -> list[ScoreRow]:
    return [row for row in report.rows if row.task == task.name]


def _metric(row: ScoreRow) -> str:
    return f"{row.metric}, {row.condition}" if row.condition else row.metric


def _estimate(row: ScoreRow | LayerRow | DifferenceRow | None) -> Cell:
    if row is None or row.value is None or row.low is None or row.high is None:
        return None if row is None else row.value
    return Estimate(row.value, row.low, row.high)
