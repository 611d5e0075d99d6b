"""A run that is being trained, probed checkpoint by checkpoint on validation clips, in a process of its own.

RUN/probe.jsonl          a record for each checkpoint: the first metric of each task, and their mean
RUN/tensorboard          the same numbers
RUN/best_by_probe        a copy of the checkpoint with the highest mean; `mert export` and `mert extract` take it
"""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from mert_foundry.jobs.command.config import UsageError
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.probing.models import ProbedModel
from mert_foundry.jobs.probing.report import ProbeReport
from mert_foundry.jobs.probing.run import run_probe
from mert_foundry.jobs.probing.settings import ProbeConfig
from mert_foundry.jobs.probing.validation_basis import on_validation
from mert_foundry.model.runs.checkpoint import CHECKPOINTS, checkpoint_step, find_fault, list_checkpoints
from mert_foundry.model.runs.history import FOLLOW_READY, PROBES, find_best_probe, read_probes
from mert_foundry.model.runs.kept import BEST_BY_PROBE, hold_checkpoint, keep_as_best
from mert_foundry.model.runs.stored_config import read_run_config
from mert_foundry.pipeline.probe_sets.registry import load_tasks

HELD = ".followed"
LOOK_EVERY = 2.0  # seconds


def follow(run: Path, config: ProbeConfig) -> int:
    """Probe the checkpoints of a run as they appear, until that of its last step; returns how many were probed.

    Each one, or those at multiples of the run's `trainer.probe_every` and the last.
    Raises UsageError for settings that do not fit, ValueError when the checkpoint of the last step was removed, and as
    `run_probe` and `hold_checkpoint`.
    """
    check_settings(config)
    last, every = steps_to_probe(run)
    for labelled in load_tasks(config.data, config.tasks):
        on_validation(labelled)  # what does not fit is said before there is a checkpoint
    console.say(f"{FOLLOW_READY}{run} to step {last}")
    known = {record["step"] for record in read_probes(run)}
    probed = 0
    for checkpoint in new_checkpoints(run, known, last, every):
        step = checkpoint_step(checkpoint)
        # The trainer keeps its newest checkpoints only, and may remove this one before it is probed.
        held = hold_checkpoint(checkpoint, run / HELD)
        if held is None:
            if step == last:
                raise ValueError(f"step {step}, the last, is not probed: {checkpoint} was removed before its turn")
            console.warn(f"step {step} is passed over: {checkpoint} was removed before its turn")
            continue
        console.say(f"step {step} of {last}")
        # One name for all: the features of a checkpoint take the place of those of the one before.
        report = run_probe(config, [ProbedModel("followed", str(held), step)])
        if report.unscored:
            raise ValueError(f"{run}: {report.unscored[0].task} cannot be probed: {report.unscored[0].reason}")
        scores = main_scores(report)
        keep_best(run, held, scores)
        record_probe(run, step, scores)  # last: a kill before it makes the next call probe this checkpoint again
        probed += 1
    shutil.rmtree(run / HELD, ignore_errors=True)
    return probed


def main_scores(report: ProbeReport) -> dict[str, float | None]:
    """By task: its first metric on the plain clips."""
    return {task.name: row.value for task in report.tasks for row in report.main_rows(task)}


def mean_of(scores: dict[str, float | None]) -> float | None:
    """Mean of the scores that are defined; None when none is."""
    known = [score for score in scores.values() if score is not None]
    return sum(known) / len(known) if known else None


def record_probe(run: Path, step: int, scores: dict[str, float | None]) -> None:
    """Append the scores of a checkpoint to the run's probes and to its TensorBoard events."""
    line = {"kind": "probe", "step": step, "mean": mean_of(scores), "scores": scores}
    with open(run / PROBES, "a") as file:
        file.write(json.dumps(line) + "\n")
    board = SummaryWriter(str(run / "tensorboard"))
    for task, score in scores.items():
        if score is not None:
            board.add_scalar(f"probe/{task}", score, step)
    board.close()


def keep_best(run: Path, held: Path, scores: dict[str, float | None]) -> None:
    """Keep the checkpoint that was just probed, unless the one that is kept has a higher mean over the same tasks."""
    mean, kept = mean_of(scores), find_best_probe(run)
    if mean is None or (kept and kept.scores.keys() == scores.keys() and kept.mean > mean):
        return
    keep_as_best(held, run / BEST_BY_PROBE)


def check_settings(config: ProbeConfig) -> None:
    """Raise UsageError for settings that do not go together with --follow."""
    if config.score != "valid":
        raise UsageError("--follow chooses a checkpoint, so it must not see test clips: score=valid is needed")
    if config.model or config.baselines or config.every_checkpoint:
        raise UsageError(
            "--follow probes the checkpoints of one run: do not set model and every_checkpoint, and set baselines=[]"
        )


def steps_to_probe(run: Path) -> tuple[int, int]:
    """The step at which the run is done, and the steps between probes, 1 where the run names none.

    Raises UsageError for a folder that is no run, or none yet.
    """
    if not (run / "config.yaml").is_file():
        raise UsageError(f"--follow {run}: no run folder, it has no config.yaml (mert pretrain writes it as it starts)")
    document = read_run_config(run / "config.yaml")
    try:
        trainer = document["config"]["trainer"]
        return trainer["schedule"]["total_steps"], trainer.get("probe_every") or 1
    except (KeyError, TypeError) as error:
        raise UsageError(f"{run}: its config.yaml is not that of a run") from error


def new_checkpoints(run: Path, known: set[int], last: int, every: int) -> Iterator[Path]:
    """Whole checkpoints at multiples of `every` in the order of their steps, waiting for the next until that of the
    last step.

    Damaged ones are named and passed over. It also ends, and says so, where the run is past the last step without a
    checkpoint of it.
    """
    known = set(known)
    damaged: dict[Path, int] = {}
    while last not in known:
        steps = {path: checkpoint_step(path) for path in reversed(list_checkpoints(run / CHECKPOINTS))}
        due = [path for path, step in steps.items() if step not in known and (step % every == 0 or step == last)]
        found = next((path for path in due if is_whole(path, damaged)), None)
        if found is not None:
            known.add(steps[found])
            yield found
        elif any(step > last and is_whole(path, damaged) for path, step in steps.items()):
            console.warn(f"{run} is past step {last}, and has no whole checkpoint of that step: it is not probed")
            return
        else:
            time.sleep(LOOK_EVERY)


def is_whole(checkpoint: Path, damaged: dict[Path, int]) -> bool:
    """Whether a checkpoint is whole.

    One that is damaged is hashed and named once, until something of it is written again.

    damaged: when each that was found damaged was last written; it is added to.
    """
    try:
        written = max(path.stat().st_mtime_ns for path in (checkpoint, *checkpoint.iterdir()))
        if damaged.get(checkpoint) == written:
            return False
        fault = find_fault(checkpoint)
    except FileNotFoundError:  # the trainer has just removed it
        return False
    if fault is not None and checkpoint.exists():
        damaged[checkpoint] = written
        console.warn(f"passed over, since it is damaged: {fault}")
    return fault is None
