"""What the heads of a task see: features of clips or of their frames, their labels, and who belongs to which split."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mert_foundry.pipeline.probe_sets.task import SPLITS, LabelledSet

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.integer]
Labels = NDArray[Any]  # numbers of classes, or values
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class PooledFeatures:
    """One vector a layer for each clip.

    Attributes:
        labelled: the task and its clips, as a reader of `pipeline.probe_sets` gives them; its kind is multiclass,
            multilabel or regression.
        values: float32 [clips, layers, dim], clip i being `labelled.clips[i]`; may be memory-mapped.
    """

    labelled: LabelledSet
    values: FloatArray

    def __post_init__(self) -> None:
        _check_values(self.labelled, self.values, "clips")
        _check_count(self.labelled, len(self.values))
        _check_finite(self.labelled.task.name, self.values)


@dataclass(frozen=True)
class FrameFeatures:
    """One vector a layer for each frame of each clip.

    Frame i of a clip covers the seconds [i / frame_rate, (i + 1) / frame_rate) from the clip's start.

    Attributes:
        labelled: the task and its clips, as a reader of `pipeline.probe_sets` gives them; its kind is frame_classes,
            beats or separation.
        values: float32 [frames of all clips, layers, dim], one clip after the other; may be memory-mapped.
        lengths: int [clips], frames of each clip, clip i being `labelled.clips[i]`.
        frame_rate: Hz.
    """

    labelled: LabelledSet
    values: FloatArray
    lengths: IntArray
    frame_rate: float

    def __post_init__(self) -> None:
        name = self.labelled.task.name
        _check_values(self.labelled, self.values, "frames")
        if int(self.lengths.sum()) != len(self.values) or (len(self.lengths) and self.lengths.min() < 1):
            raise ValueError(
                f"task {name}: the clips have {int(self.lengths.sum())} frames in all, the features {len(self.values)}"
            )
        _check_count(self.labelled, len(self.lengths))
        _check_finite(name, self.values)

    @property
    def offsets(self) -> IntArray:
        """int [clips + 1]: clip i has the frames [offsets[i], offsets[i + 1]) of `values`."""
        return np.concatenate(([0], np.cumsum(self.lengths)))


def _check_values(labelled: LabelledSet, values: FloatArray, of: str) -> None:
    if values.ndim != 3 or values.dtype != np.float32:
        raise ValueError(
            f"task {labelled.task.name}: features are {values.dtype} {values.shape}, not float32 [{of}, layers, dim]"
        )


def _check_count(labelled: LabelledSet, found: int) -> None:
    if found != len(labelled.clips):
        raise ValueError(f"task {labelled.task.name}: {len(labelled.clips)} clips, but features of {found}")


def _check_finite(name: str, values: FloatArray) -> None:
    for first in range(0, len(values), _ROWS_AT_ONCE):
        finite = np.isfinite(values[first : first + _ROWS_AT_ONCE]).all(axis=(1, 2))
        if not finite.all():
            raise ValueError(f"task {name}: features at {first + int(np.argmin(finite))} are not finite")


@dataclass(frozen=True)
class Partition:
    """Indices of the clips that a head is trained on, chosen by and tested on."""

    train: IntArray
    valid: IntArray
    test: IntArray


def partitions(labelled: LabelledSet) -> tuple[Partition, ...]:
    """The one partition of a task with splits, or one for each fold.

    In partition k of a task with folds, fold k is tested, fold k + 1 (the first after the last) validates, the others
    train. Clips of an extra condition are tested and nothing else.

    Raises:
        ValueError: a part without clips, such as a fold whose files could not be read, or no plain test clip.
    """
    task, clips = labelled.task, labelled.clips
    if not task.folds:
        parts: list[list[int]] = [[i for i, clip in enumerate(clips) if clip.split == split] for split in SPLITS]
        result = [Partition(*(np.array(part, dtype=np.int64) for part in parts))]
    else:
        fold = np.array([clip.fold for clip in clips])
        plain = np.array([clip.condition == "" for clip in clips])
        result = []
        for test in range(task.folds):
            valid = (test + 1) % task.folds
            others = plain & (fold != test) & (fold != valid)
            parts_of_fold = (others, plain & (fold == valid), fold == test)
            result.append(Partition(*(np.flatnonzero(part) for part in parts_of_fold)))
    for partition in result:
        sizes = {"train": len(partition.train), "valid": len(partition.valid), "test": len(partition.test)}
        if not all(sizes.values()):
            raise ValueError(f"task {task.name}: a part without clips: {sizes}")
        if all(clips[index].condition for index in partition.test):
            raise ValueError(f"task {task.name}: every test clip has a condition; plain ones are needed too")
    return tuple(result)


@dataclass(frozen=True)
class Tracks:
    """Tracks of some clips: what is scored.

    Attributes:
        names, groups, conditions: of each track, in the order of their first clips.
        clip: int [tracks], the index of a clip of the track.
        of_clip: track of each clip index.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    conditions: tuple[str, ...]
    clip: IntArray
    of_clip: dict[int, int]

    def of(self, clips: IntArray) -> IntArray:
        """int [clips]: number of the track of each of these clips."""
        return np.array([self.of_clip[clip] for clip in clips.tolist()], dtype=np.int64)


def tracks_of(labelled: LabelledSet, clips: IntArray) -> Tracks:
    """Tracks of the clips with these indices; the same track in another condition is another one."""
    number: dict[tuple[str, str], int] = {}
    first: list[int] = []
    of_clip: dict[int, int] = {}
    for index in map(int, clips):
        clip = labelled.clips[index]
        track = number.setdefault((clip.track, clip.condition), len(first))
        if track == len(first):
            first.append(index)
        of_clip[index] = track
    examples = [labelled.clips[i] for i in first]
    return Tracks(
        names=tuple(clip.track for clip in examples),
        groups=tuple(clip.group for clip in examples),
        conditions=tuple(clip.condition for clip in examples),
        clip=np.array(first, dtype=np.int64),
        of_clip=of_clip,
    )
