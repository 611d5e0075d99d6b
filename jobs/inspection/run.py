"""What mert inspect shows of run folders: one run, several side by side, or how two runs differ."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from mert_foundry.jobs.command.text import human_bytes, human_duration, number
from mert_foundry.jobs.inspection.coverage import coverage
from mert_foundry.jobs.inspection.curves import curve_sections
from mert_foundry.jobs.inspection.difference import difference_view
from mert_foundry.jobs.inspection.options import RunOptions
from mert_foundry.jobs.inspection.view import (
    Block,
    Cell,
    Facts,
    Figures,
    Note,
    OnPage,
    Section,
    Table,
    View,
)
from mert_foundry.model.runs.history import (
    MOST_FREQUENT,
    TRIVIAL,
    RunHistory,
    RunSummary,
    Validation,
    describe_best_probe,
    load_run,
    summarise_run,
    target_of,
)
from mert_foundry.pipeline.inspection.difference import Difference, compare_settings, difference, flatten
from mert_foundry.pipeline.storage.files import local_path


def build_view(options: RunOptions) -> View:
    """A view of one run, of several, or of how two differ. Raises as `load_run`."""
    histories = [load_run(local_path(location)) for location in options.locations]
    if options.diff:
        return difference_view(compare_runs(histories[0], load_run(local_path(options.diff))))
    summaries = [summarise_run(history) for history in histories]
    names = run_names([history.folder for history in histories])
    if len(summaries) == 1:
        kind, title, data = "run", summaries[0].location, summaries[0].model_dump(mode="json")
        heard, data["coverage"] = coverage(histories[0])
        sections = [
            overview(summaries[0]),
            pace(summaries[0]),
            checkpoints(summaries[0]),
            validations(summaries[0]),
            heard,
        ]
    else:
        kind, title = "runs", ", ".join(names)
        data = {"kind": "runs", "runs": [summary.model_dump(mode="json") for summary in summaries]}
        sections = [side_by_side(names, summaries)]
    settings = Section("Settings", [OnPage(lambda: settings_blocks(names, histories))])
    return View(kind, title, [*sections, *curve_sections(names, histories), settings], data)


def compare_runs(first: RunHistory, second: RunHistory) -> Difference:
    """Settings, fingerprints, progress and final losses that differ; validations by step."""
    settings = compare_settings(*(_settings_and_end(history) for history in (first, second)))
    rows: list[dict[str, dict[str, JsonValue]]] = [
        {
            f"validation at step {record['step']}": {"loss": record.get("loss")}
            for record in history.of_kind("validation")
        }
        for history in (first, second)
    ]
    return difference("run difference", str(first.folder), str(second.folder), settings, "validations", *rows)


def _settings_and_end(history: RunHistory) -> dict[str, JsonValue]:
    """The config without the run folder, and the last losses."""
    summary = summarise_run(history)
    config = {name: value for name, value in history.config.get("config", {}).items() if name != "out"}
    last = summary.last_validation.model_dump(exclude={"accuracy"}) if summary.last_validation else None
    return _settings(history) | {"config": config} | {"last step": summary.step, "last validation": last}


def _settings(history: RunHistory) -> dict[str, Any]:
    """The config.yaml without the trivial scores, which were measured and not chosen."""
    return {name: value for name, value in history.config.items() if name != "trivial"}


def run_names(folders: Sequence[Path]) -> list[str]:
    """Short names: the last parts of the paths that tell the runs apart."""
    paths = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def overview(summary: RunSummary) -> Section:
    """Progress, losses and speed of the run."""
    steps = f"{summary.step:,}" if summary.total_steps is None else f"{summary.step:,} of {summary.total_steps:,}"
    figures = Figures(
        [
            (steps, "steps"),
            (_loss(summary.best_validation, 4), "best validation loss"),
            (_loss(summary.last_validation, 4), "last validation loss"),
            (speed(summary), f"{'tokens' if summary.tokens else 'audio seconds'} per second (median)"),
            (_percent(summary.data_wait_share), "waiting for data (median)"),
            (f"{summary.skipped_steps:,}", "steps skipped"),
        ]
    )
    hours = "".join(f", {split} {value:g} h" for split, value in summary.hours.items())
    hours += "".join(f", {split} {value:,} tokens" for split, value in summary.tokens.items())
    facts: list[tuple[str, Cell]] = [
        ("shards", f"{summary.shards or '-'}{hours}"),
        ("index", summary.index_sha256),
    ]
    if summary.best_probe:
        facts.append(("best by probe", describe_best_probe(summary.best_probe)))
    if summary.last_train:
        shown = {name: summary.last_train.get(name) for name in ("step", "loss", "learning_rate", "gradient_norm")}
        parts = [f"{name.replace('_', ' ')} {_measured(value)}" for name, value in shown.items()]
        facts.append(("last training record", ", ".join(parts)))
    return Section("Overview", [figures, Facts(facts), *unreadable_notes(["metrics.jsonl"], [summary])])


def speed(summary: RunSummary) -> str:
    """Audio seconds a second, or tokens."""
    return number(summary.tokens_per_second if summary.tokens else summary.audio_seconds_per_second)


def pace(summary: RunSummary) -> Section:
    """Where the time of a step goes, and what else a run says of its devices."""
    if not summary.seconds:
        return Section("Pace", [Note("no record says yet how long the parts of a step take")])
    step = summary.seconds["step"]
    rows = [
        (part, f"{1000 * seconds:.4g}", _percent(seconds / step))
        for part, seconds in summary.seconds.items()
        if seconds > 0.0
    ]
    caption = (
        "medians of means over ranks; on a GPU the host prepares the next batch meanwhile; saves are beside the step"
    )
    facts: list[tuple[str, Cell]] = [
        ("MFU", _percent(summary.mfu)),
        ("memory at most", "-" if summary.memory_peak_bytes is None else human_bytes(summary.memory_peak_bytes)),
        ("tokens read", f"{summary.tokens_read:,}")
        if summary.tokens_read is not None
        else ("audio heard", "-" if summary.hours_heard is None else f"{summary.hours_heard:,.4g} h"),
        ("time left at the newest record", "-" if summary.eta_seconds is None else human_duration(summary.eta_seconds)),
    ]
    return Section("Pace", [Table(("part of a step", "ms", "share"), rows, caption), Facts(facts)])


def checkpoints(summary: RunSummary) -> Section:
    """The checkpoint folders, their sizes, and why each is kept."""
    if not summary.kept:
        return Section("Checkpoints", [Note("no checkpoint yet")])
    rows = [(each.folder, human_bytes(each.bytes), ", ".join(each.kept)) for each in summary.kept]
    caption = (
        f"{human_bytes(summary.kept_bytes)} on disk: a copy of the best shares its files with the checkpoint"
        " while that is there"
    )
    return Section("Checkpoints", [Table(("checkpoint", "size", "kept as"), rows, caption)])


def unreadable_notes(names: Sequence[str], summaries: Sequence[RunSummary]) -> Iterator[Note]:
    """Notes of lines in metrics.jsonl that are no records."""
    for name, each in zip(names, summaries, strict=True):
        if each.unreadable_lines:
            yield Note(f"{name}: {each.unreadable_lines:,} lines that are no record of metrics")


def validations(summary: RunSummary) -> Section:
    """Losses and accuracies of the first, best and last validation."""
    named = [
        (name, each)
        for name, each in (
            ("first", summary.first_validation),
            ("best", summary.best_validation),
            ("last", summary.last_validation),
        )
        if each
    ]
    if not named:
        return Section("Validation", [Note("no validation yet")])
    last = named[-1][1]
    trivial = _trivial_of_validation(summary)
    losses: list[Sequence[Cell]] = [
        (name, each.step, each.loss, *(each.losses.get(part) for part in last.losses)) for name, each in named
    ]
    if trivial:
        losses.append((TRIVIAL, None, None, *(trivial.get(target_of(part), {}).get("loss") for part in last.losses)))
    tables: list[Block] = [Table(("validation", "step", "loss", *last.losses), losses)]
    if last.sets:
        parts = ("loss", *last.losses)
        rows_of_sets = [(name, *(found.get(part) for part in parts)) for name, found in last.sets.items()]
        tables.append(Table(("last validation, by set", *parts), rows_of_sets))
    if last.explained:
        header: tuple[str, ...] = ("explained, %", "step", *last.explained)
        tables.append(Table(header, [(name, each.step, *_explained(each, last)) for name, each in named]))
    for target, levels in last.accuracy.items():
        header = (f"accuracy of {target}, %", "step", *(f"codebook {level}" for level in range(len(levels))))
        rows: list[Sequence[Cell]] = [
            (name, each.step, *_percents(each.accuracy.get(target, []))) for name, each in named
        ]
        if rates := trivial.get(target, {}).get("most_frequent"):
            rows.append((MOST_FREQUENT, None, *_percents(rates)))
        tables.append(Table(header, rows))
    return Section("Validation", [*tables, *trivial_notes(summary)])


def trivial_notes(summary: RunSummary) -> Iterator[Note]:
    """Notes that say which constants the losses are compared with, and which losses have none."""
    if summary.trivial is None:
        yield Note("what a trivial predictor reaches is not recorded: the run was last started by an older version")
        return
    yield Note(f"explained: 1 - loss / loss of the best constant; compared with {summary.trivial['basis']}")
    for target, why in _mapping(summary.trivial.get("unknown")).items():
        yield Note(f"{target}: not compared: {why}")


def side_by_side(names: Sequence[str], summaries: Sequence[RunSummary]) -> Section:
    """Several runs, one row for each."""
    header = (
        "run",
        "steps",
        "best step",
        "best loss",
        "last loss",
        "explained at best",
        "audio s/s",
        "waiting",
        "skipped",
    )
    rows = [
        (
            name,
            each.step,
            each.best_validation.step if each.best_validation else None,
            _loss(each.best_validation, 5),
            _loss(each.last_validation, 5),
            _explained_text(each.best_validation),
            speed(each),
            _percent(each.data_wait_share),
            each.skipped_steps,
        )
        for name, each in zip(names, summaries, strict=True)
    ]
    made = [
        (name, each.location, each.shards, (each.index_sha256 or "-")[:16], ", ".join(each.checkpoints[:3]) or "none")
        for name, each in zip(names, summaries, strict=True)
    ]
    blocks: list[Block] = [
        Table(header, rows, "losses are those of validation"),
        Table(("run", "folder", "shards", "index", "newest checkpoints"), made),
    ]
    return Section("Overview", [*blocks, *unreadable_notes(names, summaries)])


def settings_blocks(names: Sequence[str], histories: Sequence[RunHistory]) -> list[Block]:
    """The config of one run, or the settings in which several differ."""
    settings = [flatten(_settings(history)) for history in histories]
    keys = list(dict.fromkeys(key for run in settings for key in run))
    if len(names) > 1:
        keys = [key for key in keys if any(run.get(key) != settings[0].get(key) for run in settings)]
        if not keys:
            return [Note("The runs have the same settings.")]
    rows = [(key, *("-" if run.get(key) is None else str(run[key]) for run in settings)) for key in keys]
    if len(names) == 1:
        return [Table(("key", "value"), rows)]
    return [Table(("key", *names), rows, "settings that differ")]


def _loss(validation: Validation | None, digits: int) -> str:
    return number(validation.loss if validation else None, digits)


def _explained_text(validation: Validation | None) -> str:
    shares = validation.explained if validation else {}
    return ", ".join(f"{part} {_percent(share)}" for part, share in shares.items()) or "-"


def _measured(value: JsonValue) -> str:
    return number(value) if isinstance(value, float) else "-" if value is None else str(value)


def _percents(shares: Iterable[float | None], digits: int = 2) -> list[str]:
    return ["-" if share is None else f"{100 * share:.{digits}f}" for share in shares]


def _explained(validation: Validation, last: Validation) -> list[str]:
    return _percents((validation.explained.get(part) for part in last.explained), 1)


def _trivial_of_validation(summary: RunSummary) -> Mapping[str, Any]:
    return _mapping(_mapping(summary.trivial).get("validation"))


def _mapping(value: JsonValue) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
