"""Small probing tasks with features that hold a known share of what is asked."""

from collections.abc import Sequence

import numpy as np

from mert_foundry.model.probing.features import PooledFeatures
from mert_foundry.model.probing.protocol import ProbeProtocol
from mert_foundry.pipeline.probe_sets.task import Kind, Label, LabelledSet, Metric, ProbeClip, ProbeTask, Split

SPLITS: tuple[Split, ...] = ("train", "train", "train", "valid", "test")
QUICK = ProbeProtocol(hidden=16, rates=(1e-3, 1e-2), seeds=2, epochs=8, patience=3, plateau_patience=1, draws=100)


def labelled_set(
    kind: Kind, metrics: Sequence[Metric], classes: Sequence[str], labels: Sequence[Label], folds: int = 0
) -> LabelledSet:
    """One clip for each label; every clip its own track and group; splits or folds in turn."""
    clips = tuple(
        ProbeClip(
            path=f"{index}.wav",
            label=label,
            split=None if folds else SPLITS[index % len(SPLITS)],
            fold=index % folds if folds else None,
            track=f"t{index}",
            group=f"g{index}",
        )
        for index, label in enumerate(labels)
    )
    task = ProbeTask(name="small", kind=kind, classes=tuple(classes), metrics=tuple(metrics), folds=folds)
    return LabelledSet(task=task, root=".", clips=clips)


def clustered(
    clips: int = 200,
    classes: int = 3,
    dim: int = 8,
    strengths: Sequence[float] = (0.3, 1.0),
    seed: int = 0,
    folds: int = 0,
) -> PooledFeatures:
    """A multiclass task: each class a Gaussian around its centre, farther apart in a layer of greater strength."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, clips)
    centres = random.normal(size=(classes, len(strengths), dim)) * np.array(strengths)[:, None]
    values = centres[labels] + random.normal(size=(clips, len(strengths), dim))
    names = [str(name) for name in range(classes)]
    labelled = labelled_set("multiclass", ["accuracy", "macro_accuracy"], names, [names[y] for y in labels], folds)
    return PooledFeatures(labelled, values.astype(np.float32))


def with_clips(features: PooledFeatures, **columns: Sequence[object]) -> PooledFeatures:
    """The same with other values of some fields of the clips."""
    clips = tuple(
        clip.model_copy(update={name: values[index] for name, values in columns.items()})
        for index, clip in enumerate(features.labelled.clips)
    )
    return PooledFeatures(features.labelled.model_copy(update={"clips": clips}), features.values)
