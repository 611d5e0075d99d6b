"""A task of one's own: `task.yaml` beside a CSV or JSONL file of clips.

The suite that `mert suite` renders has this form.

`task.yaml` holds the fields of `ProbeTask`, and `clips: FILE`. Paths of audio are relative to its folder; in a folder
of several tasks they may lead to a neighbour (`../audio/a.wav`), but not out of that folder.

A CSV has the columns `path,label[,split,fold,group,track,start,end,condition]`. Classes of a multilabel task and values
of a regression are separated by `|`. Each line of a JSONL file is an object of the same names, where a label may have
any form that `ProbeClip` knows. Without `split` (or `fold`) it is drawn by hash of the group: 70 % train, 10 % valid,
20 % test, whatever else is listed. Without `group` a file is a group of its own; without `track` a stretch is a track
of its own.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from mert_foundry.pipeline.probe_sets.checks import FORMS, check_audio, check_clips
from mert_foundry.pipeline.probe_sets.published import share_of_hash
from mert_foundry.pipeline.probe_sets.tables import find, read_json_lines, read_rows, read_text
from mert_foundry.pipeline.probe_sets.task import POOLED_KINDS, LabelledSet, ProbeClip, ProbeTask, Split
from mert_foundry.pipeline.storage.documents import first_error

TASK_FILE = "task.yaml"
COLUMNS = ("path", "label", "split", "fold", "group", "track", "start", "end", "condition")
SEPARATOR = "|"
TRAIN_SHARE, VALID_SHARE = 0.7, 0.1


class TaskFile(ProbeTask):
    """What `task.yaml` holds."""

    clips: str = Field(min_length=1, description="File with the clips beside task.yaml, .csv or .jsonl")


def read_task_file(path: Path) -> TaskFile:
    """Read `task.yaml`. Raises ValueError naming it and the first thing that is wrong."""
    try:
        document = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path}: a task is a mapping with name, kind, classes, metrics and clips")
    try:
        task = TaskFile.model_validate(document)
    except ValidationError as error:
        raise ValueError(f"{path}: {first_error(error)}") from error
    if Path(task.clips).name != task.clips or Path(task.clips).suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{path}: clips: a .csv or .jsonl file beside it, not {task.clips}")
    return task


def read_own_task(path: Path, root: Path) -> LabelledSet:
    """Read a task and its clips.

    Args:
        path: `task.yaml`.
        root: the folder that paths may not leave, which holds `path`.

    Raises:
        ValueError: naming file and line, for what `check_clips` refuses, a path that leaves `root`, and a value of the
            wrong form.
        FolderError: a file that is listed is not there.
    """
    described = read_task_file(path)
    task = ProbeTask.model_validate(described.model_dump(exclude={"clips"}))
    table = find(path.parent, described.clips)
    if table.suffix == ".csv" and task.kind not in POOLED_KINDS:
        raise ValueError(f"{path}: labels of {task.kind} do not fit into a CSV; list the clips in a .jsonl file")
    lines, clips = [], []
    folder = os.path.relpath(path.parent, root)
    for number, values in _lines(task, table):
        try:
            clips.append(_clip(task, values, folder))
        except ValueError as error:
            raise ValueError(f"{table} line {number}: {_fault(task, error)}") from error
        lines.append(number)

    def locate(index: int) -> str:
        return f"{table} line {lines[index]}"

    if not clips:
        raise ValueError(f"{table}: lists no clips")
    check_clips(task, clips, locate)
    check_audio(root, clips, locate)
    return LabelledSet(task=task, root=str(root), clips=tuple(clips))


def draw_split(group: str) -> Split:
    """70 % train, 10 % valid, 20 % test, by a hash of the group alone."""
    share = share_of_hash(group)
    if share < TRAIN_SHARE:
        return "train"
    return "valid" if share < TRAIN_SHARE + VALID_SHARE else "test"


def _lines(task: ProbeTask, table: Path) -> Iterator[tuple[int, dict]]:
    """Fields of each line with its number; of a CSV without empty ones, and with labels and numbers parsed."""
    rows = read_json_lines(table) if table.suffix == ".jsonl" else read_rows(table, ("path", "label"))
    for number, row in rows:
        if strange := [name for name in row if name not in COLUMNS]:
            raise ValueError(f"{table} line {number}: field {strange[0]} is none of {', '.join(COLUMNS)}")
        if table.suffix == ".jsonl":
            yield number, row
        else:
            values: dict = {name: value for name, value in row.items() if value or name == "label"}
            try:
                values["label"] = _parse_cell(task, row["label"])
                values |= {name: float(values[name]) for name in ("start", "end") if name in values}
            except ValueError as error:
                raise ValueError(f"{table} line {number}: {error}") from error
            yield number, values


def _parse_cell(task: ProbeTask, cell: str) -> str | tuple[str, ...] | tuple[float, ...]:
    if task.kind == "multiclass":
        return cell
    parts = [part.strip() for part in cell.split(SEPARATOR)] if cell else []
    return tuple(map(float, parts)) if task.kind == "regression" else tuple(parts)


def _clip(task: ProbeTask, values: dict, folder: str) -> ProbeClip:
    """A clip from the fields of a line, with defaults for those that are absent."""
    values = dict(values)
    if not isinstance(values.get("path"), str) or "label" not in values:
        raise ValueError("a clip needs path and label")
    values["path"] = _join(folder, values["path"])
    if isinstance(values["label"], dict) and task.kind == "separation":
        values["label"] = {stem: _join(folder, str(path)) for stem, path in values["label"].items()}
    values.setdefault("group", values["path"])
    if "track" not in values:
        stretch = [str(values[name]) for name in ("start", "end") if values.get(name) is not None]
        values["track"] = " ".join([values["path"], *stretch])
    if task.folds:
        values.setdefault("fold", int(share_of_hash(str(values["group"])) * task.folds))
    else:
        values.setdefault("split", draw_split(str(values["group"])))
    return ProbeClip.model_validate(values)


def _join(folder: str, path: str) -> str:
    """A path relative to the root, from one relative to the task's folder."""
    if not path or path.startswith("/") or "\\" in path:
        raise ValueError(f"the path {path!r} is not relative with slashes")
    return os.path.normpath(os.path.join(folder, path)).replace(os.sep, "/")


def _fault(task: ProbeTask, error: ValueError) -> str:
    """One line for a clip that could not be made."""
    if not isinstance(error, ValidationError):
        return str(error)
    if error.errors()[0]["loc"][:1] == ("label",):
        return f"a label of {task.kind} is {FORMS[task.kind]}"
    return first_error(error)
