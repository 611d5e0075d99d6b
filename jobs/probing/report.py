"""Everything a probe found, as rows: scores, scores by layer, choices, differences."""

import math

from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.jobs.probing.models import ProbedModel
from mert_foundry.model.probing.protocol import ProbeProtocol
from mert_foundry.model.probing.result import CHOSEN, ProbeResult, Score, paired_difference

REPORT = "report.json"
SCHEMA_VERSION = 1


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str = Field(description="Name of the task")
    model: str = Field(description="Name of the model")
    metric: str = Field(description="Name of the metric; with the value or stem in brackets, where it is of one")
    value: float | None = Field(description="Mean over head seeds; 0 to 1, R2 up to 1, SDR in dB")
    low: float | None = Field(description="Lower end of the interval; null without one")
    high: float | None = Field(description="Upper end of the interval; null without one")


class ScoreRow(_Row):
    """The score of the heads that validation chose."""

    condition: str = Field(description="Condition of the test clips; empty: the plain one")
    chance: float | None = Field(description="Score of random guesses")
    constant: float | None = Field(description="Score of the best answer that is the same for every clip")
    layer: str = Field(description="Layer that validation chose, or weighted_sum; one for each fold, with commas")
    rate: str = Field(description="Learning rate that validation chose; one for each fold, with commas")
    step: int | None = Field(description="Optimiser steps of the checkpoint, where every checkpoint was probed")
    seeds: tuple[float | None, ...] = Field(description="The score of each head seed")
    tracks: int = Field(description="Tracks tested")
    groups: int = Field(description="Pieces tested, which intervals are drawn over")
    classes: int = Field(description="Classes that could be scored; 0 where the score is no mean over classes")


class LayerRow(_Row):
    """The score of the heads on one layer, by the task's first metric."""

    layer: str = Field(description="Layer, or weighted_sum")
    validation: float | None = Field(description="Validation score at the chosen rate, mean over seeds and folds")


class DifferenceRow(_Row):
    """The score minus that of another model on the same tracks, by paired bootstrap."""

    compared_with: str = Field(description="The other model")
    above: float | None = Field(description="Share of bootstrap draws in which the difference is above 0")


class ModelRow(BaseModel):
    """A model of the report."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    location: str
    step: int | None
    is_baseline: bool
    fingerprint: str = Field(description="SHA-256 over weights and settings")


class TaskRow(BaseModel):
    """A task of the report."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: str
    published_as: str
    metrics: tuple[str, ...]
    classes: int
    clips: dict[str, int] = Field(description="Clips by split or fold")
    fingerprint: str = Field(description="SHA-256 over task and clips")
    unusable: dict[str, str] = Field(description="Clips that no model was probed on, by file: the reason")


class ProbeReport(BaseModel):
    """report.json: all that is needed to read a probe, and to repeat it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = "probe"
    schema_version: int = SCHEMA_VERSION
    version: str = Field(description="Version of mert-foundry")
    data: str = Field(description="Folder of the labelled audio")
    score: str = Field(description="Split that is scored")
    pooling: str = Field(description="What a head sees of a clip")
    protocol: ProbeProtocol
    compared_with: str = Field(description="The model that differences are taken from")
    models: tuple[ModelRow, ...]
    tasks: tuple[TaskRow, ...]
    rows: tuple[ScoreRow, ...]
    layers: tuple[LayerRow, ...]
    differences: tuple[DifferenceRow, ...]

    def main_rows(self, task: TaskRow) -> list[ScoreRow]:
        """A row for each model: the task's first metric on the plain test clips."""
        main = (task.name, task.metrics[0], "")
        return [row for row in self.rows if (row.task, row.metric, row.condition) == main]


def metric_name(score: Score) -> str:
    """The metric, with the value or stem that it is of."""
    return f"{score.metric}[{score.of}]" if score.of else score.metric


def score_rows(model: ProbedModel, result: ProbeResult) -> list[ScoreRow]:
    """A row for each metric, condition, and value or stem of the chosen heads."""
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
    """A row for each layer and the weighted sum: the first metric on the plain test clips."""
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
    """The first metric of each task: every other model minus one. Results by (task, model).

    Without bootstrap draws there are none.
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
