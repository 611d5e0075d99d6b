"""A run folder read back: its config, every record of metrics.jsonl, its checkpoints, as curves and as a summary."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from mert_foundry.model.runs.checkpoint import CHECKPOINTS, list_checkpoints
from mert_foundry.model.runs.kept import BEST_BY_PROBE, bytes_of, describe_kept, forget_best_after, step_of_best
from mert_foundry.model.runs.stored_config import read_run_config
from mert_foundry.pipeline.storage.files import publish_bytes

PROBES = "probe.jsonl"
FOLLOW_READY = "following "  # how a probe begins its first line, once it has read settings and tasks
TRIVIAL, MOST_FREQUENT = "best constant", "most frequent code"  # lines beside those of a run
Curve = list[tuple[int, float | None]]  # (step, value) in the order written; None where the run wrote no finite number


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Validation(_Model):
    """One validation."""

    step: int = Field(description="Optimiser step")
    loss: float | None = Field(description="Total loss; null where it was not finite")
    losses: dict[str, float | None] = Field(description="Its parts")
    accuracy: dict[str, list[float | None]] = Field(description="By codebook of each discrete target, 0 to 1")
    explained: dict[str, float | None] = Field(
        default={},
        description="1 - loss / trivial loss by part, below 0 where it is worse; none in older runs",
    )
    sets: dict[str, dict[str, float | None]] = Field(
        default={}, description="By folder of each set of a mixture: `loss`, and its parts by name"
    )


class BestProbe(_Model):
    """The checkpoint that is kept for the highest mean of its scores; of equal ones the newest."""

    step: int = Field(description="Optimiser step")
    mean: float = Field(description="Mean of the scores")
    scores: dict[str, float | None] = Field(description="First metric of each task; null where it is not defined")
    checkpoint: str = Field(description="Folder in the run that keeps it")


class KeptCheckpoint(_Model):
    """A checkpoint folder of a run."""

    folder: str = Field(description="Its path in the run folder")
    bytes: int = Field(
        description="Of its files; a copy as the best shares them with the checkpoint while that is there"
    )
    kept: list[str] = Field(description="Why it is there: newest, every n steps, best by validation, best by probe")


class RunSummary(_Model):
    """What `mert inspect RUN_FOLDER --json` prints."""

    kind: str = Field(default="run", description="What the location is")
    location: str = Field(description="Run folder")
    step: int = Field(description="Last step recorded")
    total_steps: int | None = Field(description="Steps of the whole run, from its config")
    shards: str | None = Field(description="Shard folder it was trained on, or several with their shares")
    index_sha256: str | None = Field(description="SHA-256 of that folder's index.json, or of each, one after another")
    hours: dict[str, float] = Field(description="Audio hours of the shard sets, by split; empty of text alone")
    tokens: dict[str, int] = Field(default={}, description="Tokens of shard sets of text alone, by split")
    targets: list[str] = Field(description="Targets it predicts")
    trivial: dict[str, JsonValue] | None = Field(
        default=None, description="What the best constants reach, as in config.yaml; none in older runs"
    )
    first_validation: Validation | None = Field(description="The first")
    last_validation: Validation | None = Field(description="The newest")
    best_validation: Validation | None = Field(description="The one with the smallest loss")
    best_probe: BestProbe | None = Field(default=None, description="The best by probe; null where none was probed")
    last_train: dict[str, JsonValue] | None = Field(description="The newest record of training")
    audio_seconds_per_second: float | None = Field(description="Median over the records; null of text alone")
    tokens_per_second: float | None = Field(
        default=None, description="Of text alone: median over the records; null where there is audio"
    )
    data_wait_share: float | None = Field(description="Median share of time spent waiting for data, 0 to 1")
    seconds: dict[str, float] = Field(
        default={}, description="Of a step and of its parts, medians over the records; none in older runs"
    )
    mfu: float | None = Field(default=None, description="Median used share of the devices; null where no peak is known")
    memory_peak_bytes: float | None = Field(default=None, description="Memory of the rank that took most")
    hours_heard: float | None = Field(
        default=None, description="Audio hours trained on; null in older runs and of text alone"
    )
    tokens_read: int | None = Field(default=None, description="Of text alone: tokens trained on")
    eta_seconds: float | None = Field(default=None, description="Until the last step, as the newest record says")
    skipped_steps: int = Field(
        description="Steps skipped because they were not finite, or were spikes that trainer.on_spike skips"
    )
    checkpoints: list[str] = Field(description="Names of checkpoint folders, newest first; not checked")
    kept: list[KeptCheckpoint] = Field(
        default=[], description="The same and the best, with sizes and why they are kept"
    )
    kept_bytes: int = Field(default=0, description="Of all these; files that folders share by hard links count once")
    unreadable_lines: int = Field(description="Lines of metrics.jsonl that are no record; a killed run may leave one")


@dataclass(frozen=True)
class RunHistory:
    """What a run folder holds."""

    folder: Path
    config: dict[str, Any]
    records: list[dict[str, Any]]
    unreadable_lines: int

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Records of one kind, in order."""
        return [record for record in self.records if record["kind"] == kind]

    def trivial(self, kind: str, target: str) -> dict[str, Any]:
        """What the constant for a target reaches beside records of a kind: `loss`, `most_frequent`; empty if not
        recorded.
        """
        scores = (self.config.get("trivial") or {}).get(kind, {})
        return scores.get(target, {})

    def curve(self, kind: str, value: Callable[[Mapping[str, Any]], float | None]) -> Curve:
        """Step and value of every record of a kind."""
        return [(record["step"], value(record)) for record in self.of_kind(kind)]


def read_probes(folder: Path) -> list[dict[str, Any]]:
    """The probes of a run's checkpoints, in the order made (`mert probe --follow`); none if it was never followed."""
    path = folder / PROBES
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return [record for record in map(_parse, lines) if record is not None]


def forget_probes_after(folder: Path, step: int) -> None:
    """Remove the probes of later steps and the best if it is of one: a run that goes on from this one will do them
    again.
    """
    forget_best_after(folder / BEST_BY_PROBE, step)  # first: after a kill the next call does the rest
    probes = read_probes(folder)
    kept = [record for record in probes if record["step"] <= step]
    if len(kept) < len(probes):
        publish_bytes(str(folder / PROBES), "".join(json.dumps(record) + "\n" for record in kept).encode())


def find_best_probe(folder: Path) -> BestProbe | None:
    """The probe of the checkpoint that `mert probe --follow` keeps as the best of a run; None where it keeps none that
    can be read.
    """
    step = step_of_best(folder / BEST_BY_PROBE)
    probes = [record for record in read_probes(folder) if record["step"] == step and record["mean"] is not None]
    if not probes:
        return None
    best = probes[-1]
    return BestProbe(step=step, mean=best["mean"], scores=best["scores"], checkpoint=BEST_BY_PROBE)


def describe_best_probe(best: BestProbe) -> str:
    """The best of a run's probes in a line."""
    scores = ", ".join(f"{name} {score:.4f}" for name, score in best.scores.items() if score is not None)
    return f"step {best.step}, mean {best.mean:.4f} ({scores}), kept in {best.checkpoint}"


def load_run(folder: Path) -> RunHistory:
    """Read a run folder.

    Raises FileNotFoundError for a folder that is no run, ValueError without any record, or for a config.yaml that is
    not a mapping.
    """
    try:
        lines = (folder / "metrics.jsonl").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: there is no such folder; a run folder is needed") from None
        raise FileNotFoundError(
            f"{folder}: no run folder, it has no metrics.jsonl, which mert pretrain writes"
        ) from None
    records, unreadable = [], 0
    for line in lines:
        record = _parse(line)
        if record is None:
            unreadable += 1
        else:
            records.append(record)
    records += read_probes(folder)
    if not records:
        raise ValueError(f"{folder / 'metrics.jsonl'}: no record of a training step or validation")
    config = folder / "config.yaml"
    document = read_run_config(config) if config.exists() else {}
    if not isinstance(document, dict):
        raise ValueError(f"{config}: not the config of a run")
    return RunHistory(folder=folder, config=document, records=records, unreadable_lines=unreadable)


def summarise_run(history: RunHistory) -> RunSummary:
    """The summary of a run that was read."""
    config = history.config.get("config", {})
    data = history.config.get("data", {})
    train, validations = history.of_kind("train"), [_validation(record) for record in history.of_kind("validation")]
    finite = [validation for validation in validations if validation.loss is not None]
    trainer = config.get("trainer", {})
    kept = describe_kept(history.folder, trainer.get("keep_checkpoints"), trainer.get("keep_every"))
    return RunSummary(
        location=str(history.folder),
        step=max(record["step"] for record in history.records),
        total_steps=trainer.get("schedule", {}).get("total_steps"),
        shards=_name_shards(config.get("shards"), data.get("sets", [])),
        index_sha256=data.get("index_sha256")
        or " ".join(each["index_sha256"] for each in data.get("sets", []))
        or None,
        hours=data.get("hours", {}),
        tokens=data.get("tokens", {}),
        targets=[head["name"] for head in history.config.get("heads", [])],
        trivial=history.config.get("trivial"),
        first_validation=validations[0] if validations else None,
        last_validation=validations[-1] if validations else None,
        best_validation=min(finite, key=lambda validation: validation.loss or 0.0) if finite else None,
        best_probe=find_best_probe(history.folder),
        last_train={name: value for name, value in train[-1].items() if name != "position"} if train else None,
        audio_seconds_per_second=_median(train, "audio_seconds_per_second"),
        tokens_per_second=_median(train, "tokens_per_second"),
        data_wait_share=_median(train, "data_wait_share"),
        seconds=_median_parts([record["seconds"] for record in train if "seconds" in record]),
        mfu=_median(train, "mfu"),
        memory_peak_bytes=max(_numbers(train, "memory_peak_bytes"), default=None),
        hours_heard=train[-1].get("hours_heard") if train else None,
        tokens_read=round(train[-1]["tokens_read"]) if train and "tokens_read" in train[-1] else None,
        eta_seconds=train[-1].get("eta_seconds") if train else None,
        skipped_steps=max(
            (record.get("skipped_steps", 0) for record in train), default=len(history.of_kind("skipped"))
        ),
        checkpoints=[path.name for path in list_checkpoints(history.folder / CHECKPOINTS)],
        kept=[
            KeptCheckpoint(folder=path.relative_to(history.folder).as_posix(), bytes=bytes_of([path]), kept=why)
            for path, why in kept
        ],
        kept_bytes=bytes_of([path for path, _ in kept]),
        unreadable_lines=history.unreadable_lines,
    )


def _name_shards(shards: Any, sets: list[dict[str, Any]]) -> str | None:
    """The folder, or those of a mixture with their shares of the rows."""
    if not sets:
        return shards[0]["path"] if isinstance(shards, list) else shards
    return ", ".join(f"{each['path']} ({each['share']:.2%})" for each in sets)


def target_of(part: str) -> str:
    """The target that a loss term is of: `codes` for `codes` and for `unmasked/codes`."""
    return part.removeprefix("unmasked/")


def curves(history: RunHistory) -> dict[str, dict[str, Curve]]:
    """Every curve of a run, by plot and then by line: losses, accuracy, learning rate, speed, diagnostics and so on.

    A plot is named by what its axis shows; a line by its part, codebook or split.
    """
    plots: dict[str, dict[str, Curve]] = {"loss": {}}
    for kind in ("train", "validation"):
        plots["loss"][kind] = history.curve(kind, lambda record: record.get("loss"))
        for name in _names(history, kind, "losses"):
            plots.setdefault(f"loss of {name}", {})[kind] = history.curve(kind, _part("losses", name))
        for name in _names(history, kind, "explained"):
            plots.setdefault(f"explained share of {name}", {})[kind] = history.curve(kind, _part("explained", name))
        for name in _names(history, kind, "accuracy"):
            plots.setdefault(f"accuracy of {name}", {})[kind] = history.curve(kind, _mean_accuracy(name))
            plots[f"{kind} accuracy of {name} by codebook"] = {
                f"codebook {level}": history.curve(kind, _level(name, level))
                for level in range(_levels(history, kind, name))
            }
    _add_trivial(history, plots)
    for plot, field in {
        "learning rate": "learning_rate",
        "gradient norm": "gradient_norm",
        "audio seconds a second": "audio_seconds_per_second",
        "tokens a second": "tokens_per_second",
        "share of time waiting for data": "data_wait_share",
        "used share of the devices (MFU)": "mfu",
        "memory at most": "memory_peak_bytes",
    }.items():
        plots[plot] = {"train": history.curve("train", _field(field))}
    plots["seconds of a step"] = {
        part: history.curve("train", _part("seconds", part)) for part in _names(history, "train", "seconds")
    }
    plots["probe"] = {
        name: history.curve("probe", _part("scores", name)) for name in _names(history, "probe", "scores")
    }
    plots |= _diagnostics(history)
    filled = {plot: {line: curve for line, curve in lines.items() if curve} for plot, lines in plots.items()}
    return {plot: lines for plot, lines in filled.items() if lines}


def _add_trivial(history: RunHistory, plots: dict[str, dict[str, Curve]]) -> None:
    """Level lines for what constants reach, into the plots of losses and accuracies, over the steps of each kind."""
    for kind in ("train", "validation"):
        steps = [record["step"] for record in history.of_kind(kind)]
        for name in _names(history, kind, "losses"):
            score = history.trivial(kind, target_of(name))
            if steps and score:
                plots[f"loss of {name}"][f"{TRIVIAL}, {kind}"] = _level_line(steps, score["loss"])
        for name in _names(history, kind, "accuracy"):
            rates = history.trivial(kind, name).get("most_frequent")
            if steps and rates:
                line = _level_line(steps, math.fsum(rates) / len(rates))
                plots[f"accuracy of {name}"][f"{MOST_FREQUENT}, {kind}"] = line


def _level_line(steps: list[int], value: float) -> Curve:
    return [(step, value) for step in dict.fromkeys((min(steps), max(steps)))]


def _diagnostics(history: RunHistory) -> dict[str, dict[str, Curve]]:
    """Every number of the diagnostics records (model/training/diagnostics.py): a plot a field, a line a
    part or layer.
    """
    plots: dict[str, dict[str, Curve]] = {}
    for record in history.of_kind("diagnostics"):
        for name, value in record.items():
            for line, number in _parts(value) if name not in ("kind", "step") else ():
                plots.setdefault(f"diagnostics: {name.replace('_', ' ')}", {}).setdefault(line, []).append(
                    (record["step"], number)
                )
    return plots


def _parts(value: Any) -> list[tuple[str, float | None]]:
    """Lines of one field: by name of a mapping, by position in a list, or one."""
    if isinstance(value, Mapping):
        named = [(str(name), part) for name, part in value.items()]
    elif isinstance(value, list):
        named = [(f"layer {number}", part) for number, part in enumerate(value)]
    else:
        named = [("value", value)]
    return [(name, part) for name, part in named if part is None or isinstance(part, int | float)]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line, parse_constant=lambda name: None)  # NaN and the infinities
    except ValueError:
        return None
    whole = isinstance(record, dict) and isinstance(record.get("kind"), str) and isinstance(record.get("step"), int)
    return record if whole else None


def _validation(record: Mapping[str, Any]) -> Validation:
    return Validation(
        step=record["step"],
        loss=record.get("loss"),
        losses=record.get("losses", {}),
        accuracy=record.get("accuracy", {}),
        explained=record.get("explained", {}),
        sets={name: {"loss": part["loss"], **part["losses"]} for name, part in record.get("sets", {}).items()},
    )


def _median_parts(records: list[Mapping[str, float]]) -> dict[str, float]:
    return {part: median(record[part] for record in records) for part in records[-1]} if records else {}


def _median(records: list[dict[str, Any]], field: str) -> float | None:
    values = _numbers(records, field)
    return median(values) if values else None


def _numbers(records: list[dict[str, Any]], field: str) -> list[float]:
    """The values of a field in the records that have a number there."""
    return [record[field] for record in records if isinstance(record.get(field), int | float)]


def _names(history: RunHistory, kind: str, field: str) -> list[str]:
    return list(dict.fromkeys(name for record in history.of_kind(kind) for name in record.get(field, {})))


def _levels(history: RunHistory, kind: str, name: str) -> int:
    return max(len(record.get("accuracy", {}).get(name, [])) for record in history.of_kind(kind))


def _field(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda record: record.get(name)


def _part(field: str, name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda record: record.get(field, {}).get(name)


def _level(name: str, level: int) -> Callable[[Mapping[str, Any]], float | None]:
    def value(record: Mapping[str, Any]) -> float | None:
        levels = record.get("accuracy", {}).get(name, [])
        return levels[level] if level < len(levels) else None

    return value


def _mean_accuracy(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    def value(record: Mapping[str, Any]) -> float | None:
        levels = [level for level in record.get("accuracy", {}).get(name, []) if level is not None]
        return math.fsum(levels) / len(levels) if levels else None

    return value
