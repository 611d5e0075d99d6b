"""A task scored on its validation clips, so that its test clips stay unseen while a model is still being chosen."""

import hashlib

from mert_foundry.pipeline.probe_sets.task import LabelledSet, ProbeClip

HELD_OUT = 8  # one group of so many is held out of training


def on_validation(labelled: LabelledSet) -> LabelledSet:
    """The task without its test clips: the validation clips are tested, one training group of 8 is used for validation instead.

    The group is chosen by a hash of its name, so that it is the same for every model and every checkpoint.

    Raises:
        ValueError: the task has folds, in which every clip is tested.
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
