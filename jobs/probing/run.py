"""A probe from its settings to its report: every task, every model."""

import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.extraction.models import check_model
from mert_foundry.jobs.probing.features import (
    FeatureTable,
    ProbedTask,
    cut_to_length,
    drop_faults,
    extract_features,
    read_frames,
    read_pooled,
)
from mert_foundry.jobs.probing.models import ProbedModel, compared_model
from mert_foundry.jobs.probing.report import (
    ModelRow,
    ProbeReport,
    TaskRow,
    difference_rows,
    layer_rows,
    score_rows,
)
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


def run_probe(config: ProbeConfig, models: list[ProbedModel]) -> ProbeReport:
    """Probe every model on every task; what was probed before with the same data, model and protocol is read back.

    Raises as `load_tasks`, `extract` and `probe`, and UsageError when `compare_with` is not among the models.
    """
    compared = compared_model(config, models)
    for model in models:
        check_model(model.location)  # before the features of others take their time
    sets = [on_validation(each) if config.score == "valid" else each for each in load_tasks(config.data, config.tasks)]
    tasks: list[TaskRow] = []
    fingerprints: dict[str, str] = {}
    results: dict[tuple[str, str], ProbeResult] = {}
    for number, labelled in enumerate(sets, 1):
        console.say(f"task {number} of {len(sets)}: {labelled.task.name}")
        probed, tables = collect_features(labelled, models, config)
        tasks.append(describe_task(probed))
        for model, table in zip(models, tables):
            fingerprints[model.name] = table.description["model"]["fingerprint"]
            results[labelled.task.name, model.name] = probe_task(probed, table, model, config)
    by_name = {model.name: model for model in models}
    return ProbeReport(
        version=version("mert-foundry"),
        data=config.data,
        score=config.score,
        pooling=config.pooling,
        protocol=config.protocol,
        compared_with=compared.name,
        models=tuple(describe_model(model, fingerprints[model.name]) for model in models),
        tasks=tuple(tasks),
        rows=tuple(row for (_, name), result in results.items() for row in score_rows(by_name[name], result)),
        layers=tuple(row for (_, name), result in results.items() for row in layer_rows(by_name[name], result)),
        differences=tuple(difference_rows(results, compared.name, config.protocol)),
    )


def collect_features(
    labelled: LabelledSet, models: list[ProbedModel], config: ProbeConfig
) -> tuple[ProbedTask, list[FeatureTable]]:
    """The features of every model for the clips that all models have features for."""
    probed = cut_to_length(labelled)
    return drop_faults(probed, [extract_features(probed, model, config) for model in models])


def probe_task(probed: ProbedTask, table: FeatureTable, model: ProbedModel, config: ProbeConfig) -> ProbeResult:
    """Train and score the heads, or read what they gave before; says the score."""
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
    """The probe that the task's kind asks for."""
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
    """The model as the report has it."""
    return ModelRow(
        name=model.name,
        location=model.location,
        step=model.step,
        is_baseline=model.is_baseline,
        fingerprint=model_fingerprint,
    )


def describe_task(probed: ProbedTask) -> TaskRow:
    """The task as the report has it."""
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
    """For each clip the split or fold that it is in, with its condition."""
    for clip in labelled.clips:
        name = f"fold {clip.fold}" if labelled.task.folds else str(clip.split)
        yield f"{name}, {clip.condition}" if clip.condition else name
