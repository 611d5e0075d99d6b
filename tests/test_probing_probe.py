"""A whole probe of pooled features: choices by validation alone, clips averaged, folds, conditions, what is refused."""

from collections import Counter

import numpy as np
import pytest
from probing_tasks import QUICK, clustered, labelled_set, with_clips

from mert_foundry.model.probing.features import PooledFeatures, partitions
from mert_foundry.model.probing.probe import probe
from mert_foundry.model.probing.result import ProbeResult, paired_difference


@pytest.fixture(scope="module")
def found() -> ProbeResult:
    return probe(clustered(300), QUICK)


def test_the_layer_that_knows_more_is_chosen_and_every_layer_is_scored(found: ProbeResult):
    assert found.chosen in (("1",), ("weighted_sum",))
    assert {score.heads for score in found.scores} == {"0", "1", "weighted_sum", "chosen"}
    assert found.score("accuracy", "1").value > found.score("accuracy", "0").value + 0.15
    best = max(found.choices, key=lambda choice: choice.validation)
    assert found.chosen == (best.heads,)
    assert found.score("accuracy").value == found.score("accuracy", best.heads).value
    for choice in found.choices:
        assert choice.rate == QUICK.rates[int(np.argmax(choice.by_rate))]
        assert choice.validation == pytest.approx(np.mean([max(curve) for curve in choice.curves]))
    for score in found.scores:
        assert score.low <= score.value <= score.high and len(score.seeds) == 2
        assert (score.tracks, score.groups, score.chance) == (60, 60, pytest.approx(1 / 3))


def test_the_same_probe_gives_the_same_result(found: ProbeResult):
    assert probe(clustered(300), QUICK).scores == found.scores


def test_differences_between_layers_are_paired(found: ProbeResult):
    ours, baseline = (found.predictions[heads, ""] for heads in ("1", "0"))
    difference = paired_difference(found.task, "accuracy", ours, baseline, QUICK)
    assert difference.value == pytest.approx(found.score("accuracy", "1").value - found.score("accuracy", "0").value)
    assert 0 < difference.low < difference.high


@pytest.mark.parametrize("folds", [0, 4])
def test_test_labels_never_influence_a_choice(folds: int):
    features = clustered(120, folds=folds)
    before = probe(features, QUICK)
    # With folds, the clips of fold 2 train or validate in the other partitions: only partition 2 must stay.
    fold = 2 if folds else 0
    moved = [i for i, clip in enumerate(features.labelled.clips) if clip.split == "test" or clip.fold == 2]
    labels = [clip.label for clip in features.labelled.clips]
    for old, new in zip(moved, np.random.default_rng(5).permutation(moved)):
        labels[old] = features.labelled.clips[new].label
    after = probe(with_clips(features, label=labels), QUICK)
    assert [c for c in after.choices if c.fold == fold] == [c for c in before.choices if c.fold == fold]
    assert after.chosen[fold] == before.chosen[fold]
    assert after.score("accuracy", "1").value < before.score("accuracy", "1").value


def test_features_without_information_score_as_chance():
    features = clustered(400)
    shuffled = features.values[np.random.default_rng(6).permutation(len(features.values))]
    result = probe(PooledFeatures(features.labelled, shuffled), QUICK)
    for heads in ("0", "1", "weighted_sum", "chosen"):
        score = result.score("accuracy", heads)
        assert abs(score.value - score.chance) < 0.17  # of 80 clips: three standard errors
        assert score.high > score.chance - 0.05 and score.low < score.chance + 0.05


def test_outputs_of_a_tracks_clips_are_averaged():
    random = np.random.default_rng(7)
    plain = clustered(300, strengths=(0.8,))
    # Each clip becomes five of one track, each with more noise; the mean over them knows more than one of them.
    clips = np.repeat(np.arange(300), 5)
    values = plain.values[clips] + random.normal(0, 2, size=(1500, 1, 8)).astype(np.float32)
    labelled = plain.labelled.model_copy(update={"clips": tuple(plain.labelled.clips[clip] for clip in clips)})
    together = probe(PooledFeatures(labelled, values), QUICK)
    alone = probe(PooledFeatures(plain.labelled, values[::5]), QUICK)
    assert together.predictions["0", ""].outputs.shape == (2, 60, 3)
    assert together.score("accuracy").tracks == 60
    assert together.score("accuracy").value > alone.score("accuracy").value + 0.1


def test_every_track_is_tested_once_in_a_task_with_folds():
    features = clustered(120, folds=4)
    for partition in partitions(features.labelled):
        everyone = Counter(np.concatenate([partition.train, partition.valid, partition.test]).tolist())
        assert set(everyone.values()) == {1} and len(everyone) == 120
    result = probe(features, QUICK)
    predictions = result.predictions["1", ""]
    assert sorted(predictions.tracks) == sorted(clip.track for clip in features.labelled.clips)
    assert len(result.chosen) == 4 and len(result.choices) == 4 * 3
    label_of = {clip.track: int(str(clip.label)) for clip in features.labelled.clips}
    assert [label_of[track] for track in predictions.tracks] == predictions.truth.tolist()
    assert result.score("accuracy", "1").tracks == 120 and result.score("accuracy", "1").value > 0.6


def test_other_conditions_are_scored_apart_by_the_same_heads():
    features = clustered(300)
    test = [i for i, clip in enumerate(features.labelled.clips) if clip.split == "test"]
    noisy = set(test[::2])
    values = features.values.copy()
    values[sorted(noisy)] += np.random.default_rng(8).normal(0, 5, size=(len(noisy), 2, 8)).astype(np.float32)
    conditions = ["noisy" if i in noisy else "" for i in range(300)]
    result = probe(with_clips(PooledFeatures(features.labelled, values), condition=conditions), QUICK)
    plain = probe(features, QUICK)
    assert result.choices == plain.choices
    assert result.score("accuracy", condition="noisy").tracks == result.score("accuracy").tracks == 30
    assert result.score("accuracy", condition="noisy").value < result.score("accuracy").value - 0.1
    kept = [track for track in plain.predictions["1", ""].tracks if track in result.predictions["1", ""].tracks]
    assert tuple(kept) == result.predictions["1", ""].tracks


def test_multilabel_tasks_are_learnt():
    random = np.random.default_rng(9)
    values = random.normal(size=(400, 1, 6)).astype(np.float32)
    labels = [tuple(name for name, on in zip("abc", row > 0.5) if on) for row in values[:, 0, :3]]
    labelled = labelled_set("multilabel", ["roc_auc", "average_precision"], "abc", labels)
    result = probe(PooledFeatures(labelled, values), QUICK)
    score = result.score("average_precision")
    assert result.score("roc_auc").value > 0.93 and score.value > 0.85 and score.classes == 3
    assert score.chance == pytest.approx(0.31, abs=0.1)
    assert {score.heads for score in result.scores} == {"0", "chosen"}  # one layer needs no weighted sum


def test_regression_gives_values_in_their_own_unit():
    random = np.random.default_rng(10)
    values = random.normal(size=(500, 1, 4)).astype(np.float32)
    labels = [(1000 + 300 * float(x[0]), float(random.normal())) for x in values[:, 0]]
    labelled = labelled_set("regression", ["r2"], ["loudness", "noise"], labels)
    result = probe(PooledFeatures(labelled, values), QUICK.model_copy(update={"epochs": 30}))
    assert result.score("r2", of="loudness").value > 0.8
    assert result.score("r2", of="noise").value < 0.15
    both = [result.score("r2", of=name).value for name in ("loudness", "noise")]
    assert result.score("r2").value == pytest.approx(np.mean(both))
    assert 900 < result.predictions["0", ""].outputs[:, :, 0].mean() < 1100


def test_standardised_features_serve_a_baseline_in_decibels_as_well():
    features = clustered(300, strengths=(1.0,))
    decibels = features.values * np.linspace(0.01, 20, 8, dtype=np.float32) - 60
    as_they_are = PooledFeatures(features.labelled, decibels)
    standardised = probe(as_they_are, QUICK).score("accuracy").value
    raw = probe(as_they_are, QUICK.model_copy(update={"standardise": False})).score("accuracy").value
    assert standardised == pytest.approx(probe(features, QUICK).score("accuracy").value, abs=0.02)
    assert standardised > raw + 0.05


def test_what_cannot_be_probed_is_refused_by_name():
    features = clustered(50)
    clips, values = features.labelled.clips, features.values
    with pytest.raises(ValueError, match="a part without clips: {'train': 40, 'valid': 10, 'test': 0}"):
        probe(with_clips(features, split=["valid" if c.split == "test" else "train" for c in clips]), QUICK)
    with pytest.raises(ValueError, match="features at 7 are not finite"):
        PooledFeatures(features.labelled, np.where(np.arange(50)[:, None, None] == 7, np.nan, values))
    with pytest.raises(ValueError, match="task small: 50 clips, but features of 49"):
        PooledFeatures(features.labelled, values[:49])
    with pytest.raises(ValueError, match="float64"):
        PooledFeatures(features.labelled, values.astype(np.float64))
