"""report.json: everything that a probe found, as rows. To read it, the base packages are enough."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.model.probing.protocol import ProbeProtocol
from mert_foundry.pipeline.storage.documents import parse_model

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
    """The difference of two models' scores on the same clips, with its interval by paired bootstrap."""

    compared_with: str = Field(description="The other model")
    above: float | None = Field(description="Share of bootstrap draws in which the difference is above 0")


class UnscoredRow(BaseModel):
    """A model that was not scored on a task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str = Field(description="Name of the task")
    model: str = Field(description="Name of the model")
    reason: str = Field(description="Why its features do not fit the task")


class ModelRow(BaseModel):
    """A model of the report."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    location: str
    step: int | None
    is_baseline: bool
    fingerprint: str = Field(description="SHA-256 over weights and settings; empty for a model that was not scored")


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
    """The content of report.json: the results of a probe, and everything that is needed to repeat it."""

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
    unscored: tuple[UnscoredRow, ...] = Field(default=(), description="Models that were not scored on a task")

    def main_rows(self, task: TaskRow) -> list[ScoreRow]:
        """The task's first metric on the test clips without a condition, one row for each model."""
        main = (task.name, task.metrics[0], "")
        return [row for row in self.rows if (row.task, row.metric, row.condition) == main]


def read_report(folder: Path) -> ProbeReport:
    """The report of a probe folder.

    Raises FileNotFoundError, and ValueError naming the file and the first key that is wrong.
    """
    path = folder / REPORT
    return parse_model(str(path), path.read_bytes(), ProbeReport)
