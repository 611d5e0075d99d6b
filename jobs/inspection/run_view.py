"""What `mert inspect` shows of run folders: one, several side by side, or how two differ."""

from argparse import Namespace

from mert_foundry.jobs.command.text import number, pairs, table
from mert_foundry.jobs.inspection.difference_view import difference_lines
from mert_foundry.model.runs.history import (
    RunHistory,
    RunSummary,
    Validation,
    load_run,
    summarise_run,
)
from mert_foundry.pipeline.inspection.difference import Difference, compare_settings, difference
from mert_foundry.pipeline.storage.files import local_path

OPTIONS = {"diff", "html"}


def inspect(options: Namespace) -> tuple[dict, list[str]]:
    """The answer for machines and the lines for people."""
    histories = [load_run(local_path(location)) for location in options.locations]
    if options.diff:
        found = compare_runs(histories[0], load_run(local_path(options.diff)))
        return found.model_dump(mode="json"), difference_lines(found)
    summaries = [summarise_run(history) for history in histories]
    if len(summaries) == 1:
        return summaries[0].model_dump(mode="json"), run_lines(summaries[0])
    answer = {"kind": "runs", "runs": [summary.model_dump(mode="json") for summary in summaries]}
    return answer, side_by_side(summaries)


def compare_runs(first: RunHistory, second: RunHistory) -> Difference:
    """Settings, fingerprints, progress and final losses that differ; validations by step."""
    settings = compare_settings(*(_without_place(history) for history in (first, second)))
    rows = [
        {
            f"validation at step {record['step']}": {"loss": record.get("loss")}
            for record in history.of_kind("validation")
        }
        for history in (first, second)
    ]
    return difference("run difference", str(first.folder), str(second.folder), settings, "validations", *rows)


def _without_place(history: RunHistory) -> dict:
    """The config but for the run folder, and the last losses."""
    summary = summarise_run(history)
    config = {name: value for name, value in history.config.get("config", {}).items() if name != "out"}
    last = summary.last_validation.model_dump(exclude={"accuracy"}) if summary.last_validation else None
    return history.config | {"config": config} | {"last step": summary.step, "last validation": last}


def run_lines(summary: RunSummary) -> list[str]:
    """The terminal summary of one run."""
    hours = ", ".join(f"{split} {value:g} h" for split, value in summary.hours.items())
    done = f"{summary.step}" if summary.total_steps is None else f"{summary.step} of {summary.total_steps}"
    waiting = _share(summary.data_wait_share)
    lines = [f"run {summary.location}"]
    lines += pairs(
        [
            ("steps", f"{done}, {summary.skipped_steps} skipped"),
            ("shards", f"{summary.shards or '-'}{', ' if hours else ''}{hours}"),
            ("index", summary.index_sha256 or "-"),
            (
                "throughput",
                f"{number(summary.audio_seconds_per_second)} audio s/s, {waiting} waiting for data (medians)",
            ),
            ("checkpoints", ", ".join(summary.checkpoints) or "none"),
        ]
    )
    if summary.unreadable_lines:
        lines.append(f"  lines of metrics.jsonl that are no record: {summary.unreadable_lines}")
    named = [("first", summary.first_validation), ("best", summary.best_validation), ("last", summary.last_validation)]
    validations = [(name, each) for name, each in named if each]
    if validations:
        parts = list(validations[-1][1].losses)
        rows = [
            (name, each.step, number(each.loss), *(number(each.losses.get(part)) for part in parts))
            for name, each in validations
        ]
        lines += ["", *table(("validation", "step", "loss", *parts), rows)]
    for target in validations[-1][1].accuracy if validations else ():
        levels = range(len(validations[-1][1].accuracy[target]))
        rows = [(name, each.step, *_percents(each, target)) for name, each in validations]
        lines += ["", *table((f"accuracy of {target}, %", "step", *(f"codebook {level}" for level in levels)), rows)]
    if summary.last_train:
        lines += [
            "",
            f"  last training record: step {summary.last_train['step']}, loss {number(summary.last_train.get('loss'))},"
            f" learning rate {number(summary.last_train.get('learning_rate'))},"
            f" gradient norm {number(summary.last_train.get('gradient_norm'))}",
        ]
    return lines


def side_by_side(summaries: list[RunSummary]) -> list[str]:
    """Several runs, a row each."""
    rows = [
        (
            each.location,
            each.step,
            *_loss_at(each.best_validation),
            *_loss_at(each.last_validation)[1:],
            number(each.audio_seconds_per_second),
            _share(each.data_wait_share),
            each.skipped_steps,
        )
        for each in summaries
    ]
    header = ("run", "steps", "best step", "best loss", "last loss", "audio s/s", "waiting", "skipped")
    return [f"{len(summaries)} runs, losses of validation", *table(header, rows)]


def _loss_at(validation: Validation | None) -> tuple[object, str]:
    return ("-", "-") if validation is None else (validation.step, number(validation.loss, 5))


def _percents(validation: Validation, target: str) -> list[str]:
    return ["-" if level is None else f"{level:.2%}".rstrip("%") for level in validation.accuracy.get(target, [])]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
