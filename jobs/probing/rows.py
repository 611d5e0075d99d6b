"""Turns the results of heads into the rows of a report."""

import math

from mert_foundry.jobs.probing.models import ProbedModel
from mert_foundry.jobs.probing.report import DifferenceRow, LayerRow, ScoreRow
from mert_foundry.model.probing.protocol import ProbeProtocol
from mert_foundry.model.probing.result import CHOSEN, ProbeResult, Score, paired_difference


def metric_name(score: Score) -> str:
    """Name of a metric, with the value or stem that it scores."""
    return f"{score.metric}[{score.of}]" if score.of else score.metric


def score_rows(model: ProbedModel, result: ProbeResult) -> list[ScoreRow]:
    """Scores of the chosen heads, one row for each metric, condition, and value or stem."""
    rates = [
        next(choice.rate for choice in result.choices if (choice.fold, choice.heads) == (fold, heads))
        for fold, heads in enumerate(result.chosen)
    ]
    return [
        ScoreRow(
            **_measured(model, result, score),
            condition=score.condition,
            chance=_finite(score.chance),
            constant=_finite(score.constant),
            layer=", ".join(result.chosen),
            rate=", ".join(f"{rate:g}" for rate in rates),
            step=model.step,
            seeds=tuple(map(_finite, score.seeds)),
            tracks=score.tracks,
            groups=score.groups,
            classes=score.classes,
        )
        for score in result.scores
        if score.heads == CHOSEN
    ]


def layer_rows(model: ProbedModel, result: ProbeResult) -> list[LayerRow]:
    """The first metric on the test clips without a condition, one row for each layer and one for the weighted sum."""
    rows = []
    for score in result.scores:
        if score.heads != CHOSEN and (score.metric, score.condition, score.of) == (result.task.metrics[0], "", ""):
            validations = [choice.validation for choice in result.choices if choice.heads == score.heads]
            validation = _finite(math.fsum(validations) / len(validations))
            rows.append(LayerRow(**_measured(model, result, score), layer=score.heads, validation=validation))
    return rows


def difference_rows(
    results: dict[tuple[str, str], ProbeResult], compared_with: str, protocol: ProbeProtocol
) -> list[DifferenceRow]:
    """Differences in the first metric of each task: each model minus the model that the settings compare with.

    `results` are by (task, model). Without bootstrap draws there are no differences.
    """
    rows = []
    for (task, model), result in results.items():
        other = results.get((task, compared_with))
        if other is None or model == compared_with or not protocol.draws:
            continue
        metric = result.task.metrics[0]
        found = paired_difference(
            result.task, metric, result.predictions[CHOSEN, ""], other.predictions[CHOSEN, ""], protocol
        )
        rows.append(
            DifferenceRow(
                task=task,
                model=model,
                metric=metric,
                value=_finite(found.value),
                low=_finite(found.low),
                high=_finite(found.high),
                compared_with=compared_with,
                above=_finite(found.above),
            )
        )
    return rows


def _measured(model: ProbedModel, result: ProbeResult, score: Score) -> dict[str, str | float | None]:
    return {
        "task": result.task.name,
        "model": model.name,
        "metric": metric_name(score),
        "value": _finite(score.value),
        "low": _finite(score.low),
        "high": _finite(score.high),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
