"""Checks of the clips of any task: labels, splits, groups, paths, and whether the audio is there."""

import math
import os
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path, PurePosixPath

from mert_foundry.pipeline.probe_sets.task import (
    POOLED_KINDS,
    SPLITS,
    Beats,
    Kind,
    Label,
    ProbeClip,
    ProbeTask,
    Segment,
)
from mert_foundry.pipeline.storage.folder_kinds import FolderError

SHOWN_CHARACTERS = 100  # of a value in an error
FORMS: dict[Kind, str] = {
    "multiclass": "a class",
    "multilabel": "a list of classes",
    "regression": "a list of numbers, one for each of the task's values",
    "frame_classes": "a list of {start, end, label}",
    "beats": "{times, tempo}",
    "separation": "{stem: path} with all stems",
}


def check_clips(task: ProbeTask, clips: Sequence[ProbeClip], locate: Callable[[int], str]) -> None:
    """Refuse clips that cannot be learnt from or would leak.

    Args:
        locate: what names the clip of an index in a message, such as a file and a line.

    Raises:
        ValueError: a label that does not fit the task, a path out of the set's folder, a clip without a split, a
            stretch listed twice, a group in two splits, a track in two groups or with two labels, a condition outside
            the test split, a split without clips.
    """
    stretches: dict[Hashable, int] = {}
    groups: dict[Hashable, int] = {}
    tracks: dict[Hashable, int] = {}
    for index, clip in enumerate(clips):
        if fault := label_fault(task, clip) or _split_fault(task, clip) or _path_fault(clip):
            raise ValueError(f"{locate(index)}: {fault}")
        stretch = (clip.path, clip.start, clip.end)
        if stretches.setdefault(stretch, index) != index:
            raise ValueError(f"{locate(index)}: the same stretch of {clip.path} as {locate(stretches[stretch])}")
        first = clips[groups.setdefault(clip.group, index)]
        if _part(task, first) != _part(task, clip):
            raise ValueError(
                f"{locate(index)}: group {clip.group} is in {_part(task, clip)}, but in {_part(task, first)} by"
                f" {locate(groups[clip.group])}"
            )
        first = clips[tracks.setdefault(clip.track, index)]
        if fault := _track_fault(task, first, clip):
            raise ValueError(f"{locate(index)}: {fault} by {locate(tracks[clip.track])}")
    there = {_part(task, clip) for clip in clips}
    for part in [f"fold {fold}" for fold in range(task.folds)] or SPLITS:
        if part not in there:
            raise ValueError(f"{locate(0) if clips else 'no clips'}: task {task.name} has no clip in {part}")


def label_fault(task: ProbeTask, clip: ProbeClip) -> str:
    """What is wrong with a clip's label; empty when it fits its task."""
    label = clip.label
    if not _has_form(task, label):
        return f"a label of {task.kind} is {FORMS[task.kind]}, not {_shorten(label)}"
    strange = sorted(set(_names(label)) - set(task.classes))
    if strange:
        return f"label {strange[0]!r} is none of the classes {_shorten(', '.join(task.classes))}"
    return ""


def paths_of(clip: ProbeClip) -> list[str]:
    """The audio of a clip, stems included."""
    return [clip.path, *(clip.label.values() if isinstance(clip.label, dict) else ())]


def check_audio(root: Path, clips: Sequence[ProbeClip], locate: Callable[[int], str]) -> None:
    """Refuse a set whose audio is not all there; each folder is listed once.

    Raises FolderError naming the first file.
    """
    listings: dict[str, set[str]] = {}
    missing: list[tuple[int, str]] = []
    wanted: set[str] = set()
    for index, clip in enumerate(clips):
        for path in paths_of(clip):
            if path in wanted:
                continue
            wanted.add(path)
            folder, name = str(PurePosixPath(path).parent), PurePosixPath(path).name
            if folder not in listings:
                listings[folder] = set(os.listdir(root / folder)) if (root / folder).is_dir() else set()
            if name not in listings[folder]:
                missing.append((index, path))
    if missing:
        index, path = missing[0]
        raise FolderError(
            f"{locate(index)}: {len(missing)} of {len(wanted)} audio files are not there, the first is {root / path}"
        )


def _names(label: Label) -> list[str]:
    """Classes that a label names; a regression, beats and stems name none here."""
    if isinstance(label, str):
        return [label]
    if not isinstance(label, tuple):
        return []
    return [part.label if isinstance(part, Segment) else part for part in label if isinstance(part, str | Segment)]


def _has_form(task: ProbeTask, label: object) -> bool:
    if task.kind == "multiclass":
        return isinstance(label, str)
    if task.kind == "beats":
        return isinstance(label, Beats)
    if task.kind == "separation":
        return isinstance(label, dict) and set(label) == set(task.classes)
    if not isinstance(label, tuple):
        return False
    if task.kind == "multilabel":
        return all(isinstance(name, str) for name in label) and len(set(label)) == len(label)
    if task.kind == "regression":
        return len(label) == len(task.classes) and all(isinstance(x, float) and math.isfinite(x) for x in label)
    return all(isinstance(segment, Segment) for segment in label)


def _path_fault(clip: ProbeClip) -> str:
    for path in paths_of(clip):
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts or not parts or "\0" in path:
            return f"the path {path!r} leads out of its folder"
    return ""


def _split_fault(task: ProbeTask, clip: ProbeClip) -> str:
    if task.folds and (clip.fold is None or clip.fold >= task.folds):
        return f"fold {clip.fold} of task {task.name}, which has {task.folds} folds"
    if not task.folds and clip.split is None:
        return f"no split, and task {task.name} has no folds"
    if clip.condition and not task.folds and clip.split != "test":
        return f"condition {clip.condition} in {clip.split}: only test clips have one"
    return ""


def _track_fault(task: ProbeTask, first: ProbeClip, clip: ProbeClip) -> str:
    """How a clip differs from the first one of its track."""
    if task.kind in POOLED_KINDS and first.label != clip.label:
        return f"track {clip.track} has the label {clip.label!r}, but {first.label!r}"
    if first.group != clip.group:
        return f"track {clip.track} is in group {clip.group}, but in group {first.group}"
    return ""


def _part(task: ProbeTask, clip: ProbeClip) -> str:
    return f"fold {clip.fold}" if task.folds else str(clip.split)


def _shorten(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
