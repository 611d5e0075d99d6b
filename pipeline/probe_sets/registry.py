"""The names of all tasks, and what a data folder has of them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mert_foundry.pipeline.probe_sets import (
    emomusic,
    giantsteps_key,
    gtzan,
    magnatagatune,
    mtg_jamendo,
    musdb18,
    nsynth,
    vocalset,
)
from mert_foundry.pipeline.probe_sets.marble_jsonl import names_in, read_marble, task_name
from mert_foundry.pipeline.probe_sets.own_task import TASK_FILE, read_own_task, read_task_file
from mert_foundry.pipeline.probe_sets.published import PublishedTask
from mert_foundry.pipeline.probe_sets.task import LabelledSet
from mert_foundry.pipeline.storage.files import local_path
from mert_foundry.pipeline.storage.folder_kinds import FolderError

MODULES = (magnatagatune, giantsteps_key, gtzan, emomusic, nsynth, vocalset, mtg_jamendo, musdb18)
PUBLISHED: dict[str, PublishedTask] = {task.task.name: task for module in MODULES for task in module.TASKS}
Reader = Callable[[], LabelledSet]


def load_tasks(data: str, names: list[str]) -> list[LabelledSet]:
    """Read tasks with their clips.

    Args:
        data: a folder of published sets (sub-folders as in README.md), of tasks with a `task.yaml` each, or of both;
            the folder of one task, or its `task.yaml`.
        names: which tasks; empty for all that are there.

    Raises:
        FolderError: there is no task, or not the one that was asked for, or a part of its files is missing.
        ValueError: a table is wrong, naming file and line.
    """
    root = local_path(data)
    readers = find_tasks(root)
    if not readers and not names:
        raise FolderError(
            f"{root}: no task is there, neither a {TASK_FILE} nor one of the folders"
            f" {', '.join(sorted({task.folder for task in PUBLISHED.values()}))}; there is {_listing(root)}"
        )
    for name in names:
        if name not in readers and name in PUBLISHED:
            readers[name] = partial(_read_published, PUBLISHED[name], root)  # says which file is missing
        elif name not in readers:
            raise FolderError(f"{root}: no task {name}; there is {', '.join(sorted(readers)) or _listing(root)}")
    return [readers[name]() for name in dict.fromkeys(names or readers)]


def find_tasks(root: Path) -> dict[str, Reader]:
    """Readers of all tasks of a folder, or of the one task that a `task.yaml` describes, by name.

    Raises:
        FolderError: the folder is not there, or two tasks have one name.
        ValueError: a `task.yaml` is wrong.
    """
    if not root.exists():
        raise FolderError(f"{root} is not there")
    if root.is_file() or (root / TASK_FILE).exists():
        path = root if root.is_file() else root / TASK_FILE
        return {read_task_file(path).name: partial(read_own_task, path, path.parent)}
    readers: dict[str, Reader] = {
        name: partial(_read_published, task, root) for name, task in PUBLISHED.items() if task.is_in(root / task.folder)
    }
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        found: dict[str, Reader] = {}
        if (folder / TASK_FILE).exists():
            found[read_task_file(folder / TASK_FILE).name] = partial(read_own_task, folder / TASK_FILE, root)
        found |= {task_name(name): partial(read_marble, folder, name) for name in names_in(folder)}
        if twice := sorted(found.keys() & readers.keys()):
            raise FolderError(f"{folder}: task {twice[0]} is in another folder of {root} too")
        readers |= found
    return readers


def _read_published(task: PublishedTask, root: Path) -> LabelledSet:
    return task.read(root / task.folder)


def _listing(root: Path) -> str:
    """The names in a folder, in short."""
    if root.is_file():
        return root.name
    names = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    return ", ".join([*names[:8], *([f"{len(names) - 8} more"] if len(names) > 8 else [])]) or "nothing"
