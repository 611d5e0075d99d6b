"""Which checkpoints of a run stay, and why: the newest, every n-th for good, and copies of the best by validation and
by probe.

RUN/checkpoints/step_{n}/      the newest `trainer.keep_checkpoints`, and those of every `trainer.keep_every` steps
RUN/best_by_validation/        the checkpoint with the smallest validation loss (written by the trainer)
RUN/best_by_probe/             the checkpoint with the highest mean score (written by `mert probe --follow`)
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mert_foundry.model.runs.checkpoint import (
    CHECKPOINTS,
    CHECKSUMS,
    list_checkpoints,
    load_state,
    reasons_to_keep,
)
from mert_foundry.model.runs.publish import retire_folder

BEST_BY_VALIDATION, BEST_BY_PROBE = "best_by_validation", "best_by_probe"
HELD = ".best"
VALIDATION = "validation.json"  # in the best by validation: what it is the best by


def hold_checkpoint(checkpoint: Path, target: Path) -> Path | None:
    """Hard links to a checkpoint's files, which take no room on disk, or copies on a disk without them; None when it is
    gone meanwhile.

    Raises OSError when the files can neither be linked nor copied.
    """
    shutil.rmtree(target, ignore_errors=True)
    try:
        shutil.copytree(checkpoint, target, copy_function=_link_or_copy)
    except (FileNotFoundError, shutil.Error):
        if checkpoint.exists():
            raise
        return None
    return target


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def keep_as_best(held: Path, best: Path) -> None:
    """Let a held checkpoint take the place of the one that was the best."""
    if best.exists():
        retire_folder(best)
    os.replace(held, best)


def step_of_best(best: Path) -> int | None:
    """The step of the checkpoint that is kept as the best; None where there is none that can be read."""
    try:
        return load_state(best).step
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget_best_after(best: Path, step: int) -> None:
    """Remove the best if it is of a later step: a run that goes on from this one comes there again."""
    found = step_of_best(best)
    if found is not None and found > step:
        retire_folder(best)


def check_begins_anew(run: Path) -> None:
    """Refuse to begin a run at step 0 where the best of an earlier one would go (ValueError)."""
    for name in (BEST_BY_VALIDATION, BEST_BY_PROBE):
        step = step_of_best(run / name)
        if step is not None:
            raise ValueError(
                f"{run / CHECKPOINTS} has no whole checkpoint, {run / name} has that of step {step}: move it to"
                f" {run / CHECKPOINTS / f'step_{step}'} to go on from there, or away to begin anew"
            )


def keep_best_by_validation(run: Path, step: int, found: Mapping[str, Any]) -> Path | None:
    """Keep the checkpoint of a step that was just validated, unless the one that is kept has a smaller loss of the same
    terms and sets.

    `found`: the summary of the validation. Returns the folder that has the checkpoint now; None when it is not the
    best, or has no checkpoint. Raises OSError when it cannot be kept.
    """
    checkpoint, best = run / CHECKPOINTS / f"step_{step}", run / BEST_BY_VALIDATION
    if not _is_number(found["loss"]) or not checkpoint.is_dir():
        return None
    kept = _validation_of(best)
    if kept is not None and _terms(kept) == _terms(found) and kept["loss"] < found["loss"]:
        return None
    held = hold_checkpoint(checkpoint, run / HELD)
    if held is None:
        return None
    terms = {"loss": found["loss"], "losses": found["losses"], "sets": dict.fromkeys(found.get("sets", {}))}
    (held / VALIDATION).write_text(json.dumps({"step": step, **terms}, indent=2) + "\n")
    keep_as_best(held, best)
    return best


def _validation_of(best: Path) -> dict[str, Any] | None:
    """The validation for which a checkpoint was kept as the best; None where there is none that can be read."""
    try:
        found = json.loads((best / VALIDATION).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and _is_number(found.get("loss")) else None


def describe_kept(run: Path, keep: int | None, every: int | None) -> list[tuple[Path, list[str]]]:
    """The checkpoint folders of a run, newest step first and the best last, with why each is kept.

    keep, every: the settings of the run; None where its config does not say (`every` also where it has none).
    """
    paths = list_checkpoints(run / CHECKPOINTS)
    reasons = reasons_to_keep(paths, len(paths) if keep is None else keep, every)
    rows = [(path, reasons[path] or ["until the next checkpoint is written"]) for path in paths]
    best = {BEST_BY_VALIDATION: "best by validation", BEST_BY_PROBE: "best by probe"}
    rows += [(run / name, [why]) for name, why in best.items() if (run / name).is_dir()]
    return [(path, why if is_complete(path) else ["incomplete: passed over"]) for path, why in rows]


def is_complete(path: Path) -> bool:
    """Whether all files of a checkpoint are there; their contents are not read."""
    try:
        return all((path / name).is_file() for name in json.loads((path / CHECKSUMS).read_text()))
    except (OSError, ValueError):
        return False


def bytes_of(paths: Sequence[Path]) -> int:
    """Bytes of all files in folders; a file that several folders share by hard links counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # a run that goes on meanwhile removes checkpoints
            for file in path.iterdir():
                stat = file.stat()
                sizes[stat.st_dev, stat.st_ino] = stat.st_size
    return sum(sizes.values())


def _terms(record: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    return set(record["losses"]), set(record.get("sets", {}))


def _is_number(value: object) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)
