"""Labels as numbers: of clips, and of frames. Their form is what `pipeline.probe_sets.checks` has checked."""

import numpy as np

from mert_foundry.model.probing.features import FloatArray, FrameFeatures, IntArray, Labels
from mert_foundry.pipeline.probe_sets.task import Beats, LabelledSet, Segment

NO_CLASS = -1
# In training, frames this near to that of a beat count as beats too: one frame of 75 Hz on each side, as in MARBLE.
WIDENED_BY = 1 / 75  # seconds


def clip_labels(labelled: LabelledSet) -> Labels:
    """Labels of all clips: int64 [clips] (multiclass), float32 [clips, classes] (multilabel, regression)."""
    task = labelled.task
    number = {name: index for index, name in enumerate(task.classes)}
    labels = [clip.label for clip in labelled.clips]
    if task.kind == "multiclass":
        return np.array([number[str(label)] for label in labels], dtype=np.int64)
    if task.kind == "regression":
        return np.array(labels, dtype=np.float32)
    values = np.zeros((len(labels), len(task.classes)), dtype=np.float32)
    for row, label in zip(values, labels):
        assert isinstance(label, tuple)
        row[[number[str(name)] for name in label]] = 1
    return values


def frame_classes(features: FrameFeatures) -> IntArray:
    """int64 [frames of all clips]: the class of the segment that the middle of the frame lies in, or `NO_CLASS`."""
    number = {name: index for index, name in enumerate(features.labelled.task.classes)}
    offsets = features.offsets
    result = np.full(len(features.values), NO_CLASS, dtype=np.int64)
    for index, clip in enumerate(features.labelled.clips):
        middles = clip.start + (np.arange(features.lengths[index]) + 0.5) / features.frame_rate
        view = result[offsets[index] : offsets[index + 1]]
        assert isinstance(clip.label, tuple)
        for segment in clip.label:
            assert isinstance(segment, Segment)
            view[(middles >= segment.start) & (middles < segment.end)] = number[segment.label]
    return result


def beat_targets(features: FrameFeatures) -> FloatArray:
    """float32 [frames of all clips]: 1 in the frame of a beat and in those within `WIDENED_BY` of it, else 0."""
    offsets = features.offsets
    margin = round(WIDENED_BY * features.frame_rate)
    result = np.zeros(len(features.values), dtype=np.float32)
    for clip in range(len(features.lengths)):
        view = result[offsets[clip] : offsets[clip + 1]]
        frames = np.floor(beats_of_clip(features, clip) * features.frame_rate).astype(int)
        widened = (frames[:, None] + np.arange(-margin, margin + 1)).ravel()
        view[widened[(widened >= 0) & (widened < len(view))]] = 1
    return result


def beats_of_clip(features: FrameFeatures, clip: int) -> FloatArray:
    """float64 [beats]: the beats within the clip, seconds from its start."""
    start = features.labelled.clips[clip].start
    times = np.array(_beats(features, clip).times, dtype=np.float64)
    end = start + features.lengths[clip] / features.frame_rate
    return times[(times >= start) & (times < end)] - start


def tempo_of_clip(features: FrameFeatures, clip: int) -> float:
    """Beats per minute as the label says, or else by the median distance of its beats; NaN for fewer than two beats."""
    beats = _beats(features, clip)
    if beats.tempo is not None:
        return beats.tempo
    return 60 / float(np.median(np.diff(beats.times))) if len(beats.times) > 1 else float("nan")


def _beats(features: FrameFeatures, clip: int) -> Beats:
    label = features.labelled.clips[clip].label
    assert isinstance(label, Beats)
    return label
