"""Runs a probe: scores every model on every task and makes the report."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.extraction.models import check_model
from mert_foundry.jobs.probing.features import (
    FeatureTable,
    MisfitError,
    ProbedTask,
    cut_to_length,
    drop_faults,
    extract_features,
    read_frames,
    read_pooled,
)
from mert_foundry.jobs.probing.models import ProbedModel, compared_model
from mert_foundry.jobs.probing.report import ModelRow, ProbeReport, TaskRow, UnscoredRow
from mert_foundry.jobs.probing.rows import difference_rows, layer_rows, score_rows
from mert_foundry.jobs.probing.settings import ProbeConfig
from mert_foundry.jobs.probing.stems import read_stems
from mert_foundry.jobs.probing.stored_result import load_result, result_fingerprint, save_result
from mert_foundry.jobs.probing.validation_basis import on_validation
from mert_foundry.model.probing.frames import probe_frames
from mert_foundry.model.probing.probe import probe
from mert_foundry.model.probing.result import ProbeResult
from mert_foundry.model.probing.separation import probe_separation
from mert_foundry.pipeline.probe_sets.registry import load_tasks
from mert_foundry.pipeline.probe_sets.task import LabelledSet
from mert_foundry.pipeline.storage.documents import fingerprint

RESULTS = "results"


@dataclass
class ProbeFindings:
    """What a probe has found so far.

    fingerprints: of the models that were scored, by name. results: by names of task and model.
    """

    tasks: list[TaskRow] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)
    results: dict[tuple[str, str], ProbeResult] = field(default_factory=dict)
    unscored: list[UnscoredRow] = field(default_factory=list)


def run_probe(config: ProbeConfig, models: list[ProbedModel]) -> ProbeReport:
    """Probe every model on every task.

    A result that is there already for the same data, model and protocol is read instead.

    If a model's features do not fit a task, the report says why, and the other models are scored.

    Raises as `load_tasks`, `cut_to_length`, `extract` and `probe`, and UsageError when `compare_with` is not among the
    models.
    """
    compared = compared_model(config, models)
    for model in models:
        check_model(model.location)  # before time is spent on the features of others
    cut_tasks = load_cut_tasks(config)  # all tasks, before features are extracted for the first
    found = ProbeFindings()
    for number, probed in enumerate(cut_tasks, 1):
        console.say(f"task {number} of {len(cut_tasks)}: {probed.labelled.task.name}")
        score_models(probed, models, config, found)
    return make_report(config, models, compared, found)


def score_models(probed: ProbedTask, models: list[ProbedModel], config: ProbeConfig, found: ProbeFindings) -> None:
    """Score every model whose features fit a task on this task."""
    task = probed.labelled.task
    fitting: dict[ProbedModel, FeatureTable] = {}
    for model in models:
        try:
            fitting[model] = extract_features(probed, model, config)
        except MisfitError as error:
            console.say(f"  {model.name}: not scored: {error}")
            found.unscored.append(UnscoredRow(task=task.name, model=model.name, reason=str(error)))
    probed, tables = drop_faults(probed, list(fitting.values()))
    found.tasks.append(describe_task(probed))
    for model, table in zip(fitting, tables):
        found.fingerprints[model.name] = table.description["model"]["fingerprint"]
        found.results[task.name, model.name] = probe_task(probed, table, model, config)


def make_report(
    config: ProbeConfig, models: list[ProbedModel], compared: ProbedModel, found: ProbeFindings
) -> ProbeReport:
    """The report of all findings."""
    by_name = {model.name: model for model in models}
    scored = [(by_name[name], result) for (_, name), result in found.results.items()]
    return ProbeReport(
        version=version("mert-foundry"),
        data=config.data,
        score=config.score,
        pooling=config.pooling,
        protocol=config.protocol,
        compared_with=compared.name,
        models=tuple(describe_model(model, found.fingerprints.get(model.name, "")) for model in models),
        tasks=tuple(found.tasks),
        rows=tuple(row for model, result in scored for row in score_rows(model, result)),
        layers=tuple(row for model, result in scored for row in layer_rows(model, result)),
        differences=tuple(difference_rows(found.results, compared.name, config.protocol)),
        unscored=tuple(found.unscored),
    )


def load_cut_tasks(config: ProbeConfig) -> list[ProbedTask]:
    """The tasks of the settings, their clips cut to length. Raises as `load_tasks` and `cut_to_length`."""
    listed = load_tasks(config.data, config.tasks)
    return [cut_to_length(on_validation(each) if config.score == "valid" else each, listed=each) for each in listed]


def probe_task(probed: ProbedTask, table: FeatureTable, model: ProbedModel, config: ProbeConfig) -> ProbeResult:
    """Train and score the heads, or read their stored result. Prints the score."""
    task = probed.labelled.task
    folder = Path(config.out) / RESULTS / task.name / model.slug
    key = result_fingerprint(table.description, probed.labelled, config)
    result = load_result(folder, key)
    if result is None:
        result = train_heads(probed, table, config)
        save_result(folder, result, key)
    score = result.score(task.metrics[0])
    console.say(f"  {model.name}: {score.metric} {score.value:.3f} ({score.low:.3f} to {score.high:.3f})")
    return result


def train_heads(probed: ProbedTask, table: FeatureTable, config: ProbeConfig) -> ProbeResult:
    """Train and score the kind of heads that the task needs."""
    match probed.labelled.task.kind:
        case "multiclass" | "multilabel" | "regression":
            return probe(read_pooled(probed, table), config.protocol, config.device)
        case "frame_classes" | "beats":
            return probe_frames(read_frames(probed, table), config.protocol, config.device)
        case "separation":
            features = read_frames(probed, table)
            with tempfile.TemporaryFile(prefix="mert-stems-") as file:
                stems = read_stems(features, file)
                return probe_separation(features, stems, config.protocol, config.separation, config.device)


def describe_model(model: ProbedModel, model_fingerprint: str) -> ModelRow:
    """The report's row of a model."""
    return ModelRow(
        name=model.name,
        location=model.location,
        step=model.step,
        is_baseline=model.is_baseline,
        fingerprint=model_fingerprint,
    )


def describe_task(probed: ProbedTask) -> TaskRow:
    """The report's row of a task."""
    labelled = probed.labelled
    clips: dict[str, int] = {}
    for name in _parts(labelled):
        clips[name] = clips.get(name, 0) + 1
    return TaskRow(
        name=labelled.task.name,
        kind=labelled.task.kind,
        published_as=labelled.task.published_as,
        metrics=labelled.task.metrics,
        classes=len(labelled.task.classes),
        clips=clips,
        fingerprint=fingerprint(labelled.model_dump(mode="json", exclude={"root"})),
        unusable=probed.unusable,
    )


def _parts(labelled: LabelledSet) -> Iterator[str]:
    """The split or fold of each clip, with its condition if it has one."""
    for clip in labelled.clips:
        name = f"fold {clip.fold}" if labelled.task.folds else str(clip.split)
        yield f"{name}, {clip.condition}" if clip.condition else name
