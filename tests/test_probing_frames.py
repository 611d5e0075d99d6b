"""Probes of frames: chords and activity with unlabelled gaps, beats with known tempi."""

import numpy as np
import pytest
from probing_tasks import labelled_set
from sklearn import metrics as sklearn_metrics

from mert_foundry.model.probing.features import FrameFeatures
from mert_foundry.model.probing.frames import probe_frames
from mert_foundry.model.probing.labels import NO_CLASS, beat_targets, frame_classes
from mert_foundry.model.probing.protocol import ProbeProtocol
from mert_foundry.pipeline.probe_sets.task import Beats, Label, LabelledSet, Metric, Segment

QUICK = ProbeProtocol(
    hidden=16,
    rates=(1e-3, 1e-2),
    seeds=2,
    epochs=10,
    patience=4,
    plateau_patience=1,
    draws=50,
    batch_size=8,
    frames_per_clip=32,
)
RATE = 50.0  # Hz


def features_of(labelled: LabelledSet, values: list[np.ndarray]) -> FrameFeatures:
    lengths = np.array([len(clip) for clip in values])
    return FrameFeatures(labelled, np.concatenate(values).astype(np.float32), lengths, RATE)


def starting_at(seconds: float, labelled: LabelledSet) -> LabelledSet:
    clips = tuple(clip.model_copy(update={"start": seconds}) for clip in labelled.clips)
    return labelled.model_copy(update={"clips": clips})


def chords(clips: int = 20) -> FrameFeatures:
    """Two classes in turn, half a second each, the last half second of each clip without a label; lengths differ."""
    random = np.random.default_rng(0)
    labels: list[Label] = []
    values = []
    for _ in range(clips):
        segments = random.integers(4, 8)
        names = random.integers(0, 2, segments)
        labels.append(tuple(Segment(start=i / 2, end=(i + 1) / 2, label="NC"[names[i]]) for i in range(segments)))
        frames = np.repeat(np.append(names, 5), 25)  # what has no label looks like nothing else
        values.append(random.normal(size=(len(frames), 2, 4)) + np.array([0, 1.5])[:, None] * frames[:, None, None])
    return features_of(labelled_set("frame_classes", ["frame_accuracy", "frame_roc_auc"], "NC", labels), values)


def beats(
    clips: int = 40,
    metrics: tuple[Metric, ...] = ("beat_f_70ms", "beat_f_20ms", "tempo_accuracy_1", "tempo_accuracy_2"),
) -> FrameFeatures:
    random = np.random.default_rng(1)
    labels: list[Label] = []
    values = []
    for _ in range(clips):
        bpm = np.exp(random.uniform(np.log(60), np.log(200)))
        times = np.arange(random.uniform(0, 60 / bpm), 6, 60 / bpm)
        labels.append(Beats(times=tuple(times), tempo=bpm))
        row = random.normal(size=(300, 2, 4))
        row[(times * RATE).astype(int), 1] += 3
        values.append(row)
    return features_of(labelled_set("beats", metrics, (), labels), values)


def test_frames_have_the_class_in_their_middle_and_beats_their_frame():
    segments = (Segment(start=10.0, end=10.05, label="C"), Segment(start=10.1, end=11, label="N"))
    labelled = labelled_set("frame_classes", ["frame_accuracy"], "NC", [segments])
    row = features_of(starting_at(10.0, labelled), [np.zeros((7, 1, 1))])  # middles at 10.01, 10.03, 10.05 and so on
    assert frame_classes(row).tolist() == [1, 1, NO_CLASS, NO_CLASS, NO_CLASS, 0, 0]
    labelled = labelled_set("beats", ["beat_f_70ms"], (), [Beats(times=(9.0, 10.005, 10.085, 10.2))])
    assert beat_targets(features_of(starting_at(10.0, labelled), [np.zeros((8, 1, 1))])).tolist() == [
        1,
        1,
        0,
        1,
        1,
        1,
        0,
        0,
    ]


@pytest.mark.slow
def test_chords_are_learnt_and_unlabelled_frames_do_not_count():
    features = chords()
    result = probe_frames(features, QUICK.model_copy(update={"frame_layers": "all", "batch_size": 4}))
    assert {score.heads for score in result.scores} == {"0", "1", "weighted_sum", "chosen"}
    predictions = result.predictions["1", ""]
    classes, offsets = frame_classes(features), features.offsets
    test = [i for i, clip in enumerate(features.labelled.clips) if clip.split == "test"]
    truth = np.concatenate([classes[offsets[i] : offsets[i + 1]] for i in test])
    assert predictions.truth.tolist() == truth[truth != NO_CLASS].tolist()
    score = result.score("frame_accuracy", "1")
    assert score.value == pytest.approx(
        np.mean([(o.argmax(axis=1) == predictions.truth).mean() for o in predictions.outputs])
    )
    assert score.value > 0.8 > 0.65 > result.score("frame_accuracy", "0").value
    assert score.low <= score.value <= score.high and score.groups == 4
    assert (score.chance, score.constant) == (0.5, pytest.approx(0.5, abs=0.2))
    auc = [sklearn_metrics.roc_auc_score(predictions.truth, o[:, 1] - o[:, 0]) for o in predictions.outputs]
    assert result.score("frame_roc_auc", "1").value == pytest.approx(np.mean(auc), abs=1e-6)


@pytest.mark.slow
def test_beats_are_learnt_from_the_weighted_sum():
    result = probe_frames(beats(), QUICK.model_copy(update={"epochs": 30, "patience": 8, "batch_size": 4}))
    assert result.chosen == ("weighted_sum",)
    f_70, f_20 = result.score("beat_f_70ms"), result.score("beat_f_20ms")
    assert f_70.value > 0.9 and f_20.value > 0.85 and f_20.value <= f_70.value
    assert f_70.low <= f_70.value <= f_70.high
    assert result.score("tempo_accuracy_1").value > 0.8
    assert 0 < f_20.chance < f_70.chance < 0.6 and f_70.constant < 0.6
    assert result.score("tempo_accuracy_1").constant < 0.5
    predictions = result.predictions["weighted_sum", ""]
    np.testing.assert_array_equal(
        predictions.truth[:, 0], [len(c.label.times) for c in beats().labelled.clips if c.split == "test"]
    )


def test_clips_and_frames_that_do_not_fit_are_refused():
    features = chords(5)
    with pytest.raises(ValueError, match="frames in all, the features"):
        FrameFeatures(features.labelled, features.values[1:], features.lengths, RATE)
    with pytest.raises(ValueError, match="task small: 5 clips, but features of 4"):
        FrameFeatures(features.labelled, features.values[features.lengths[0] :], features.lengths[1:], RATE)
    pooled = labelled_set("multiclass", ["accuracy"], "ab", ["a"] * 5)
    with pytest.raises(ValueError, match="task small: multiclass is not probed frame by frame"):
        probe_frames(FrameFeatures(pooled, features.values, features.lengths, RATE), QUICK)
