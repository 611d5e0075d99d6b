"""What a probe found: scores with intervals, choices, and predictions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ConfigDict

from mert_foundry.model.probing.bootstrap import drawn_scores, group_draws, interval, seed_draws
from mert_foundry.model.probing.chance import ReferenceScores
from mert_foundry.model.probing.features import FloatArray, IntArray, Labels
from mert_foundry.model.probing.metrics import library_score, weighted_scores
from mert_foundry.model.probing.protocol import ProbeProtocol
from mert_foundry.pipeline.probe_sets.task import Metric, ProbeTask

CHOSEN = "chosen"
# Scores and choices written as JSON by pydantic keep NaN and infinities, as strings.
_AS_JSON = ConfigDict(ser_json_inf_nan="strings")


@dataclass(frozen=True)
class Predictions:
    """What the heads of all seeds predict of the test items of one condition.

    An item is a track, or a frame of one, or an excerpt (beats, separation).

    Attributes:
        outputs: float [seeds, items, n]. n classes, before softmax or sigmoid; values in their own unit (regression);
            beats found within 70 and within 20 ms, beats estimated, tempo in beats per minute (beats); SDR of each stem
            in dB (separation).
        truth: [items] class numbers, or [items, n]; of beats: their number and the tempo (NaN: not known).
        track: int [items], number of the item's track.
        tracks, groups: name and group of each track.
    """

    outputs: FloatArray
    truth: Labels
    track: IntArray
    tracks: tuple[str, ...]
    groups: tuple[str, ...]

    @property
    def group(self) -> IntArray:
        """int [items]: number of the item's group."""
        number = {name: index for index, name in enumerate(sorted(set(self.groups)))}
        return np.array([number[name] for name in self.groups], dtype=np.int64)[self.track]

    def save(self, path: Path) -> None:
        """Write as .npz."""
        np.savez_compressed(
            path,
            outputs=self.outputs,
            truth=self.truth,
            track=self.track,
            tracks=np.array(self.tracks),
            groups=np.array(self.groups),
        )

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            tracks, groups = tuple(map(str, stored["tracks"])), tuple(map(str, stored["groups"]))
            return cls(stored["outputs"], stored["truth"], stored["track"], tracks, groups)


def joined(parts: list[Predictions]) -> Predictions:
    """Predictions of several folds as one."""
    first = np.cumsum([0, *(len(part.tracks) for part in parts)])
    return Predictions(
        outputs=np.concatenate([part.outputs for part in parts], axis=1),
        truth=np.concatenate([part.truth for part in parts]),
        track=np.concatenate([part.track + offset for part, offset in zip(parts, first)]),
        tracks=tuple(name for part in parts for name in part.tracks),
        groups=tuple(name for part in parts for name in part.groups),
    )


@dataclass(frozen=True)
class Score:
    """One line of a report.

    Attributes:
        heads: "0", "1", ... (a layer), "weighted_sum", or "chosen": what validation chose among these.
        condition: of the test clips; "" is the plain one.
        of: a value of a regression or a stem of a separation; "" for the score over all.
        value: mean over seeds of the score by scikit-learn or mir_eval.
        low, high: bootstrap interval; NaN if not asked for.
        chance, constant: scores of random guesses and of the best constant answer; NaN where there is none.
        seeds: the score of each seed.
        tracks, groups: how many were tested.
        classes: how many classes could be scored (AUC, AP, macro accuracy, R2); 0 where the score is no mean over
            classes.
    """

    __pydantic_config__ = _AS_JSON

    heads: str
    condition: str
    metric: Metric
    of: str
    value: float
    low: float
    high: float
    chance: float
    constant: float
    seeds: tuple[float, ...]
    tracks: int
    groups: int
    classes: int


@dataclass(frozen=True)
class Choice:
    """What validation says of the heads on one layer, or on the weighted sum, in one fold.

    Attributes:
        rate: the learning rate with the highest mean over seeds of the best validation scores; it is tested.
        validation: that mean.
        by_rate: the mean for each rate of the protocol; minus infinity where a head diverged from the start.
        curves: for each seed at the chosen rate, the validation score after each epoch.
    """

    __pydantic_config__ = _AS_JSON

    heads: str
    fold: int
    rate: float
    validation: float
    by_rate: tuple[float, ...]
    curves: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class ProbeResult:
    """Of one task and one model.

    Attributes:
        chosen: for each fold (or the one split), the heads that validation chose.
        choices: for each fold and each layer and weighted sum.
        scores: for each of these and for "chosen"; each condition; each metric.
        predictions: by (heads, condition).
    """

    task: ProbeTask
    protocol: ProbeProtocol
    chosen: tuple[str, ...]
    choices: tuple[Choice, ...]
    scores: tuple[Score, ...]
    predictions: dict[tuple[str, str], Predictions]

    def score(self, metric: Metric, heads: str = CHOSEN, condition: str = "", of: str = "") -> Score:
        """The one score of these.

        Raises:
            KeyError: there is none.
        """
        for score in self.scores:
            if (score.metric, score.heads, score.condition, score.of) == (metric, heads, condition, of):
                return score
        raise KeyError((metric, heads, condition, of))


def parts_of(task: ProbeTask, metric: Metric) -> tuple[int | None, ...]:
    """What a metric is scored of: of all, and for R2 and SDR of each value or stem as well."""
    return (None, *range(len(task.classes))) if metric in ("r2", "sdr") else (None,)


def score_predictions(
    task: ProbeTask,
    metric: Metric,
    predictions: Predictions,
    protocol: ProbeProtocol,
    reference: ReferenceScores,
    heads: str,
    condition: str,
    of: int | None = None,
) -> Score:
    """The score of some predictions with its interval."""
    outputs, truth = predictions.outputs, predictions.truth
    part = (outputs, truth) if of is None else (outputs[:, :, [of]], truth[:, [of]])
    by_seed = [library_score(metric, output, part[1], task.classes) for output in part[0]]
    scores = _drawn(metric, predictions, task.classes, protocol.draws, of)
    bounds = interval(drawn_scores(scores, seed_draws(len(outputs), protocol.draws)), protocol.confidence)
    return Score(
        heads=heads,
        condition=condition,
        metric=metric,
        of="" if of is None else task.classes[of],
        value=float(np.mean([score.value for score in by_seed])),
        low=bounds.low,
        high=bounds.high,
        chance=reference.chance,
        constant=reference.constant,
        seeds=tuple(score.value for score in by_seed),
        tracks=len(predictions.tracks),
        groups=len(set(predictions.groups)),
        classes=by_seed[0].classes,
    )


def _drawn(
    metric: Metric, predictions: Predictions, classes: tuple[str, ...], draws: int, of: int | None = None
) -> FloatArray:
    """Scores [seeds, draws] of the drawn groups. Frames of thousands of draws would not fit in memory: in parts."""
    weights = group_draws(predictions.group, draws)
    size = max(1, 4_000_000 // max(1, weights.shape[1]))
    parts = [
        weighted_scores(metric, predictions.outputs, predictions.truth, classes, weights[first : first + size], of)
        for first in range(0, draws, size)
    ]
    return np.concatenate(parts, axis=1) if parts else np.empty((len(predictions.outputs), 0))


@dataclass(frozen=True)
class PairedDifference:
    """Score of one model minus that of another, with its interval and the share of draws in which it is above 0."""

    value: float
    low: float
    high: float
    above: float


def paired_difference(
    task: ProbeTask, metric: Metric, ours: Predictions, baseline: Predictions, protocol: ProbeProtocol
) -> PairedDifference:
    """Ours minus baseline on the same test items: each draw takes the same groups for both, and seeds for each on their
    own.

    Raises:
        ValueError: the two were not tested on the same tracks, or a draw count of 0.
    """
    same = ours.tracks == baseline.tracks and ours.groups == baseline.groups
    if not same or not _same_groups(ours, baseline):
        raise ValueError(
            f"task {task.name}: the two models were tested on other tracks: "
            f"{len(ours.tracks)} tracks and {len(baseline.tracks)}, first {ours.tracks[:1]} and {baseline.tracks[:1]}"
        )
    if not protocol.draws:
        raise ValueError(f"task {task.name}: draws is 0, but a difference needs bootstrap draws")
    drawn, values = [], []
    for seed, predictions in enumerate((ours, baseline)):
        scores = _drawn(metric, predictions, task.classes, protocol.draws)
        drawn.append(drawn_scores(scores, seed_draws(len(scores), protocol.draws, seed)))
        by_seed = [library_score(metric, output, predictions.truth, task.classes) for output in predictions.outputs]
        values.append(float(np.mean([score.value for score in by_seed])))
    differences = drawn[0] - drawn[1]
    bounds = interval(differences, protocol.confidence)
    known = differences[~np.isnan(differences)]
    above = float((known > 0).mean()) if len(known) else float("nan")
    return PairedDifference(values[0] - values[1], bounds.low, bounds.high, above)


def _same_groups(ours: Predictions, baseline: Predictions) -> bool:
    """Whether both have items of the same groups; models of other frame rates have other numbers of frames."""
    return set(ours.group) == set(baseline.group)
