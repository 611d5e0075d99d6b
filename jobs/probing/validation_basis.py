"""Scores a task on its validation clips, so that its test clips stay unseen while a model is still being chosen."""

import hashlib

from mert_foundry.pipeline.probe_sets.task import LabelledSet, ProbeClip

HELD_OUT = 8  # one in this many training groups is used for validation


def on_validation(labelled: LabelledSet) -> LabelledSet:
    """The task without its test clips.

    Its validation clips are scored, and one in 8 training groups is used for validation instead.

    A hash of the names chooses the groups, so that they are the same for every model and every checkpoint.

    Raises:
        ValueError: the task has folds, so every clip of it is a test clip.
    """
    task = labelled.task
    if task.folds:
        raise ValueError(
            f"task {task.name} has {task.folds} folds and no validation clips, so score=valid is not possible"
        )
    groups = sorted({clip.group for clip in labelled.clips if clip.split == "train"}, key=_digest)
    held_out = set(groups[: -(-len(groups) // HELD_OUT)])
    clips = tuple(_moved(clip, held_out) for clip in labelled.clips if clip.split != "test")
    return labelled.model_copy(update={"clips": clips})


def _moved(clip: ProbeClip, held_out: set[str]) -> ProbeClip:
    if clip.split == "valid":
        return clip.model_copy(update={"split": "test"})
    return clip.model_copy(update={"split": "valid"}) if clip.group in held_out else clip


def _digest(group: str) -> str:
    return hashlib.sha256(group.encode()).hexdigest()
