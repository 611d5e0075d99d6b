"""Scores against scikit-learn and mir_eval, what chance reaches, intervals that hold what they promise."""

import mir_eval
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from mert_foundry.model.probing.bootstrap import drawn_scores, group_draws, interval, seed_draws
from mert_foundry.model.probing.chance import reference_scores
from mert_foundry.model.probing.metrics import library_score, weighted_scores
from mert_foundry.model.probing.protocol import ProbeProtocol
from mert_foundry.model.probing.result import Predictions, paired_difference, score_predictions
from mert_foundry.pipeline.probe_sets.task import Metric, ProbeTask

ITEMS, HEADS, DRAWS = 90, 3, 4
KEYS = tuple(f"{tonic} {mode}" for mode in ("major", "minor") for tonic in "C C# D Eb E F F# G Ab A Bb B".split())
PITCHES = tuple(str(pitch) for pitch in range(36, 85))
TAGS = ("a", "b", "c", "d")


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def drawn(random: np.random.Generator) -> np.ndarray:
    return random.integers(0, 4, (DRAWS, ITEMS)).astype(float)


def multiclass(random: np.random.Generator, classes: int) -> tuple[np.ndarray, np.ndarray]:
    return random.normal(size=(HEADS, ITEMS, classes)), random.integers(0, classes, ITEMS)


def repeated(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.repeat(values, weights.astype(int), axis=0)


@pytest.mark.parametrize(
    ("metric", "classes"),
    [("accuracy", TAGS), ("macro_accuracy", TAGS), ("weighted_key_score", KEYS), ("octave_free_accuracy", PITCHES)],
)
def test_weighted_scores_of_decisions_are_those_of_repeated_tracks(
    random: np.random.Generator, metric: Metric, classes: tuple[str, ...]
):
    outputs, truth = multiclass(random, len(classes))
    weights = drawn(random)
    ours = weighted_scores(metric, outputs, truth, classes, weights)
    for head, draw in np.ndindex(*ours.shape):
        peer = library_score(metric, repeated(outputs[head], weights[draw]), repeated(truth, weights[draw]), classes)
        assert ours[head, draw] == pytest.approx(peer.value, abs=1e-12)


@pytest.mark.parametrize("metric", ["roc_auc", "average_precision"])
@pytest.mark.parametrize("ties", [False, True])
def test_weighted_ranking_scores_are_scikit_learns(random: np.random.Generator, metric: Metric, ties: bool):
    outputs = random.normal(size=(HEADS, ITEMS, 4))
    if ties:
        outputs = outputs.round()
    truth = (random.random((ITEMS, 4)) < 0.3).astype(np.float32)
    weights = np.concatenate([drawn(random), np.ones((1, ITEMS))])
    ours = weighted_scores(metric, outputs, truth, TAGS, weights)
    reference = sklearn_metrics.roc_auc_score if metric == "roc_auc" else sklearn_metrics.average_precision_score
    for head, draw in np.ndindex(*ours.shape):
        peer = reference(truth, outputs[head], average="macro", sample_weight=weights[draw])
        assert ours[head, draw] == pytest.approx(peer, abs=1e-9)
    alone = weighted_scores(metric, outputs, truth, TAGS, np.ones((1, ITEMS)))
    np.testing.assert_allclose(alone[:, 0], ours[:, -1], atol=1e-12)


def test_frame_auc_ranks_by_the_probability_of_a_class(random: np.random.Generator):
    outputs, truth = multiclass(random, 4)
    probability = np.exp(outputs) / np.exp(outputs).sum(axis=2, keepdims=True)
    ours = weighted_scores("frame_roc_auc", outputs, truth, TAGS, np.ones((1, ITEMS)))
    for head in range(HEADS):
        peer = sklearn_metrics.roc_auc_score(truth, probability[head], multi_class="ovr")
        assert ours[head, 0] == pytest.approx(peer, abs=1e-9)
        assert library_score("frame_roc_auc", outputs[head], truth, TAGS).value == pytest.approx(peer, abs=1e-9)


def test_a_value_that_does_not_vary_has_no_r2_and_no_part_in_the_mean():
    outputs = np.array([[0.1, 1.0], [0.9, 2.0], [2.1, 0.5]])
    truth = np.array([[0.0, 4.0], [1.0, 4.0], [2.0, 4.0]])
    alone = library_score("r2", outputs[:, :1], truth[:, :1], ("a",))
    both = library_score("r2", outputs, truth, ("a", "b"))
    assert both == alone and both.classes == 1
    assert weighted_scores("r2", outputs[None], truth, ("a", "b"), np.ones((1, 3)))[0, 0] == pytest.approx(both.value)
    constant = library_score("r2", outputs[:, 1:], truth[:, 1:], ("b",))
    assert np.isnan(constant.value) and constant.classes == 0


def test_r2_is_scikit_learns_for_each_value_and_over_all(random: np.random.Generator):
    outputs = random.normal(size=(HEADS, ITEMS, 2)) + 100
    truth = (outputs[0] + random.normal(size=(ITEMS, 2))).astype(np.float32)
    weights = drawn(random)
    for of in (None, 0, 1):
        ours = weighted_scores("r2", outputs, truth, ("valence", "arousal"), weights, of)
        chosen = [0, 1] if of is None else [of]
        for head, draw in np.ndindex(*ours.shape):
            peer = sklearn_metrics.r2_score(truth[:, chosen], outputs[head][:, chosen], sample_weight=weights[draw])
            assert ours[head, draw] == pytest.approx(peer, abs=1e-6)


def test_a_class_without_a_positive_is_left_out_and_counted(random: np.random.Generator):
    outputs = random.normal(size=(ITEMS, 4))
    truth = (random.random((ITEMS, 4)) < 0.5).astype(float)
    truth[:, 1], truth[:, 2] = 0, 1
    for metric in ("roc_auc", "average_precision"):
        score = library_score(metric, outputs, truth, TAGS)
        kept = library_score(metric, outputs[:, [0, 3]], truth[:, [0, 3]], TAGS[:2])
        assert score.classes == 2 and score.value == pytest.approx(kept.value)
        assert library_score(metric, outputs[:, 1:3], truth[:, 1:3], TAGS[:2]).classes == 0


def test_key_scores_are_mir_evals(random: np.random.Generator):
    outputs, truth = multiclass(random, 24)
    score = library_score("weighted_key_score", outputs[0], truth, KEYS).value
    predicted = outputs[0].argmax(axis=1)
    peer = np.mean([mir_eval.key.weighted_score(KEYS[t], KEYS[s]) for t, s in zip(truth, predicted)])
    assert score == pytest.approx(peer)
    with pytest.raises(ValueError, match="octave_free_accuracy needs classes that are MIDI pitches.*'C major'"):
        library_score("octave_free_accuracy", outputs[0], truth, KEYS)
    with pytest.raises(ValueError):
        library_score("weighted_key_score", outputs[0][:, :4], truth % 4, TAGS)


def test_beat_and_tempo_scores_count_over_all_excerpts():
    # hits at 70 ms, at 20 ms, beats found, tempo; beats, tempo
    outputs = np.array([[[8, 4, 10, 120], [0, 0, 5, 61], [5, 5, 5, 300]]], dtype=float)
    truth = np.array([[9, 120], [5, 120], [5, np.nan]])
    ones = np.ones((1, 3))

    def score(metric: Metric) -> float:
        return float(weighted_scores(metric, outputs, truth, (), ones)[0, 0])

    assert score("beat_f_70ms") == pytest.approx(2 * 13 / (20 + 19))
    assert score("beat_f_20ms") == pytest.approx(2 * 9 / (20 + 19))
    assert score("tempo_accuracy_1") == 0.5  # of two with a known tempo
    assert score("tempo_accuracy_2") == 1.0  # 61 is half of 120 within 4 %


@pytest.mark.parametrize(
    ("metric", "classes"),
    [
        ("accuracy", TAGS),
        ("macro_accuracy", TAGS),
        ("weighted_key_score", KEYS),
        ("octave_free_accuracy", PITCHES),
        ("roc_auc", TAGS),
        ("average_precision", TAGS),
        ("r2", TAGS),
    ],
)
def test_chance_is_what_guesses_reach(random: np.random.Generator, metric: Metric, classes: tuple[str, ...]):
    items, guesses = 400, 300
    if metric in ("roc_auc", "average_precision"):
        truth = (random.random((items, 4)) < (0.1, 0.3, 0.5, 0.8)).astype(float)
        training = truth
        outputs = random.normal(size=(guesses, items, 4))
    elif metric == "r2":
        truth, training = random.normal(size=(items, 4)), random.normal(1, 2, size=(items, 4))
        outputs = np.stack([random.permuted(training, axis=0) for _ in range(guesses)])
    else:
        truth, training = (np.minimum(random.geometric(0.3, items) - 1, len(classes) - 1) for _ in range(2))
        outputs = random.normal(size=(guesses, items, len(classes)))
    reference = reference_scores(metric, truth, training, classes)
    reached = weighted_scores(metric, outputs, truth, classes, np.ones((1, items)))
    # Average precision of few positives lies a little above prevalence.
    assert reached.mean() == pytest.approx(
        reference.chance, abs=0.012 if metric == "average_precision" else 0.006, rel=0.01
    )


def test_the_constant_answer_is_the_best_of_training(random: np.random.Generator):
    truth, training = np.array([0, 0, 1, 2]), np.array([1, 1, 0, 2])
    assert reference_scores("accuracy", truth, training, ("a", "b", "c")).constant == 0.25
    assert reference_scores("macro_accuracy", truth, training, ("a", "b", "c")).constant == pytest.approx(1 / 3)
    # F major earns a fifth (0.5) from each C major below it; C major is answered for songs in F and C.
    songs = np.array([KEYS.index(key) for key in ("C major", "C major", "F major", "F major", "F major")])
    reference = reference_scores("weighted_key_score", songs, songs, KEYS)
    best = max(np.mean([mir_eval.key.weighted_score(KEYS[song], answer) for song in songs]) for answer in KEYS)
    assert reference.constant == pytest.approx(best)
    values = random.normal(size=(50, 2))
    assert reference_scores("r2", values, values, ("x", "y")).constant == pytest.approx(0, abs=1e-9)


def random_predictions(random: np.random.Generator, groups: int, of_group: int, seeds: int = 3) -> Predictions:
    """Guesses among four classes; all tracks of a group are alike in label and guess, so only groups count."""
    guess = random.normal(size=(seeds, groups, 4)).repeat(of_group, axis=1)
    truth = random.integers(0, 4, groups).repeat(of_group)
    names = tuple(str(track) for track in range(groups * of_group))
    owners = tuple(str(group) for group in np.arange(groups).repeat(of_group))
    return Predictions(guess, truth, np.arange(len(names)), names, owners)


TASK = ProbeTask(name="guesses", kind="multiclass", classes=TAGS, metrics=("accuracy",))
BOOTSTRAP = ProbeProtocol(draws=300)


@pytest.mark.slow
def test_intervals_of_guesses_cover_chance_95_times_in_100():
    random, covered, runs = np.random.default_rng(1), 0, 300
    for _ in range(runs):
        predictions = random_predictions(random, groups=80, of_group=3, seeds=1)
        reference = reference_scores("accuracy", predictions.truth, predictions.truth, TAGS)
        score = score_predictions(TASK, "accuracy", predictions, BOOTSTRAP, reference, "0", "")
        assert score.low <= score.value <= score.high and (score.tracks, score.groups) == (240, 80)
        covered += score.low <= 0.25 <= score.high
    # 285 of 300 are expected, with a standard deviation of 3.8.
    assert 270 <= covered <= 297


def test_paired_differences_are_of_the_same_draws(random: np.random.Generator):
    ours = random_predictions(np.random.default_rng(2), 100, 1)
    better = np.eye(4)[ours.truth]
    other = Predictions(
        np.where(np.arange(100)[None, :, None] < 20, better, ours.outputs),
        ours.truth,
        ours.track,
        ours.tracks,
        ours.groups,
    )
    same = paired_difference(TASK, "accuracy", ours, ours, BOOTSTRAP)
    assert same.value == 0 and -0.1 < same.low <= 0 <= same.high < 0.1  # what is left is the seeds'
    difference = paired_difference(TASK, "accuracy", other, ours, BOOTSTRAP)
    assert difference.value == pytest.approx(0.15, abs=0.05) and 0 < difference.low and difference.above > 0.95
    elsewhere = Predictions(ours.outputs, ours.truth, ours.track, ours.tracks[::-1], ours.groups)
    with pytest.raises(ValueError, match="guesses: the two models were tested on other tracks"):
        paired_difference(TASK, "accuracy", ours, elsewhere, BOOTSTRAP)


def test_a_draw_takes_whole_groups_and_its_seeds():
    group = np.array([0, 0, 1, 2, 2, 2])
    draws = group_draws(group, 500)
    assert (draws[:, 0] == draws[:, 1]).all() and (draws[:, 3] == draws[:, 5]).all()
    assert ((draws[:, 0] + draws[:, 2] + draws[:, 3]) == 3).all()
    np.testing.assert_allclose(draws.mean(axis=0), 1, atol=0.15)
    shares = seed_draws(4, 500)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    constant = np.arange(4.0)[:, None].repeat(500, axis=1)
    bounds = interval(drawn_scores(constant, shares), 0.95)
    assert bounds.low < 1.5 < bounds.high


def test_predictions_are_read_as_they_were_written(random: np.random.Generator, tmp_path):
    predictions = random_predictions(np.random.default_rng(3), 4, 2)
    predictions.save(tmp_path / "predictions.npz")
    read = Predictions.load(tmp_path / "predictions.npz")
    assert read.tracks == predictions.tracks and read.groups == predictions.groups
    for name in ("outputs", "truth", "track"):
        np.testing.assert_array_equal(getattr(read, name), getattr(predictions, name))
