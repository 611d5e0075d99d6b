"""Scores by scikit-learn and mir_eval, what chance reaches, and the same scores of resampled tracks.

`library_score` calls the libraries once. A bootstrap needs a score thousands of times, so `weighted_scores` computes
the same scores with a weight for each track, for many heads and many draws at once; tests hold them equal to the
libraries'.
"""

from dataclasses import dataclass

import mir_eval
import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn import metrics as sklearn_metrics

from mert_foundry.model.probing.features import FloatArray, Labels
from mert_foundry.pipeline.probe_sets.task import Metric

BEAT_WINDOWS: dict[Metric, float] = {"beat_f_70ms": 0.07, "beat_f_20ms": 0.02}  # seconds
TEMPO_TOLERANCE = 0.04
OCTAVES: dict[Metric, tuple[float, ...]] = {
    "tempo_accuracy_1": (1,),
    "tempo_accuracy_2": (1 / 3, 1 / 2, 1, 2, 3),
}
# What is known of an excerpt's beats: outputs of `Predictions` hold the first four of these, its truth the last two.
HITS_70, HITS_20, ESTIMATED_BEATS, ESTIMATED_TEMPO = range(4)
REFERENCE_BEATS, REFERENCE_TEMPO = range(2)


@dataclass(frozen=True)
class LibraryScore:
    """A score, and of how many classes it is the mean (all that could be scored); 0 where it is no mean
    over classes.
    """

    value: float
    classes: int = 0


def agreement(metric: Metric, classes: tuple[str, ...]) -> FloatArray:
    """float64 [true class, predicted class]: what a metric of single decisions gives for each pair.

    Raises:
        ValueError: class names that are no keys (`C# minor`) or no MIDI pitches (`60`), where the metric needs them.
    """
    if metric == "weighted_key_score":
        return np.array([[mir_eval.key.weighted_score(true, predicted) for predicted in classes] for true in classes])
    if metric == "octave_free_accuracy":
        unfit = [name for name in classes if not name.isdecimal()]
        if unfit:
            raise ValueError(f"octave_free_accuracy needs classes that are MIDI pitches, such as 60, not {unfit[0]!r}")
        pitch_class = np.array([int(name) % 12 for name in classes])
        return (pitch_class[:, None] == pitch_class).astype(np.float64)
    return np.eye(len(classes))


def library_score(metric: Metric, outputs: FloatArray, truth: Labels, classes: tuple[str, ...]) -> LibraryScore:
    """The score of one head.

    Args:
        outputs: [N, classes], before softmax or sigmoid; of beats and separation as `Predictions` says.
        truth: [N] class numbers, or [N, classes].

    AUC and AP drop a class that has no positive or no negative among the N, R2 a value that is the same for all N; the
    score says how many are left.
    """
    if metric in ("accuracy", "frame_accuracy"):
        return LibraryScore(float(sklearn_metrics.accuracy_score(truth, outputs.argmax(axis=1))))
    if metric == "macro_accuracy":
        score = sklearn_metrics.recall_score(
            truth, outputs.argmax(axis=1), labels=np.unique(truth), average="macro", zero_division=0
        )
        return LibraryScore(float(score), len(np.unique(truth)))
    if metric in ("weighted_key_score", "octave_free_accuracy"):
        return LibraryScore(float(agreement(metric, classes)[truth, outputs.argmax(axis=1)].mean()))
    if metric in ("roc_auc", "average_precision", "frame_roc_auc"):
        return _macro_ranking_score(metric, outputs, truth)
    if metric == "r2":
        scored = np.flatnonzero(np.ptp(truth, axis=0) > 0)  # R2 of a value that does not vary is undefined
        if not len(scored):
            return LibraryScore(float("nan"), 0)
        return LibraryScore(float(sklearn_metrics.r2_score(truth[:, scored], outputs[:, scored])), len(scored))
    ones = np.ones((1, len(outputs)))
    return LibraryScore(float(weighted_scores(metric, outputs[None], truth, classes, ones)[0, 0]))


def _macro_ranking_score(metric: Metric, outputs: FloatArray, truth: Labels) -> LibraryScore:
    values, positive = _ranked(metric, outputs[None], truth)
    score = sklearn_metrics.average_precision_score if metric == "average_precision" else sklearn_metrics.roc_auc_score
    scored = np.flatnonzero(positive.any(axis=0) & ~positive.all(axis=0))
    if not len(scored):
        return LibraryScore(float("nan"), 0)
    return LibraryScore(float(np.mean([score(positive[:, c], values[0, :, c]) for c in scored])), len(scored))


def _ranked(metric: Metric, outputs: FloatArray, truth: Labels) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Values [H, N, classes] that rank, and which of [N, classes] are positive."""
    if metric != "frame_roc_auc":
        return outputs, truth > 0.5
    shifted = outputs - outputs.max(axis=2, keepdims=True)
    # The log of one class's probability against all others': it ranks frames as the probability does, without ties at
    # 1.
    exponentials = np.exp(shifted)
    others = exponentials.sum(axis=2, keepdims=True) - exponentials
    tiny = np.finfo(exponentials.dtype).tiny
    return shifted - np.log(np.maximum(others, tiny)), truth[:, None] == np.arange(outputs.shape[2])


def weighted_scores(
    metric: Metric,
    outputs: FloatArray,
    truth: Labels,
    classes: tuple[str, ...],
    weights: FloatArray,
    of: int | None = None,
) -> FloatArray:
    """Scores [H, B] of H heads in B draws.

    Args:
        outputs: [H, N, ...], truth [N, ...] as of `library_score`.
        weights: [B, N], how often each of the N is drawn.
        of: only this value of a regression, or stem of a separation.

    A draw in which nothing can be scored gives NaN. A class without a positive or a negative in a draw does not count
    in it.
    """
    if metric in ("accuracy", "frame_accuracy", "weighted_key_score", "octave_free_accuracy"):
        return _mean(agreement(metric, classes)[truth, outputs.argmax(axis=2)], weights)
    if metric == "macro_accuracy":
        hits = (outputs.argmax(axis=2) == truth).astype(np.float64)
        recalls = [_mean(hits[:, truth == c], weights[:, truth == c]) for c in np.unique(truth)]
        return _nanmean(np.stack(recalls))
    if metric in ("roc_auc", "average_precision", "frame_roc_auc"):
        values, positive = _ranked(metric, outputs, truth)
        return _macro_ranking_scores(metric == "average_precision", values, positive, weights)
    if metric == "r2":
        values_of = range(outputs.shape[2]) if of is None else [of]
        return _nanmean(np.stack([_r2(outputs[:, :, value], truth[:, value], weights) for value in values_of]))
    if metric in BEAT_WINDOWS:
        hits_at = HITS_70 if metric == "beat_f_70ms" else HITS_20
        hits, estimated = outputs[:, :, hits_at] @ weights.T, outputs[:, :, ESTIMATED_BEATS] @ weights.T
        return _ratio(2 * hits, estimated + weights @ truth[:, REFERENCE_BEATS])
    if metric in OCTAVES:
        return _mean(_tempo_hits(metric, outputs[:, :, ESTIMATED_TEMPO], truth[:, REFERENCE_TEMPO]), weights)
    return _mean(outputs.mean(axis=2) if of is None else outputs[:, :, of], weights)


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / below, np.nan)


def _mean(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Weighted means [H, B] of values [H, N], without those that are NaN."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0) @ weights.T, known @ weights.T)


def _nanmean(values: FloatArray) -> FloatArray:
    """Mean over the first axis of what is not NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(axis=0), known.sum(axis=0))


def _r2(outputs: FloatArray, truth: FloatArray, weights: FloatArray) -> FloatArray:
    """[H, B] of outputs [H, N] and truth [N]: 1 - sum w (y - p)^2 / sum w (y - mean)^2, the mean being that of the
    draw.
    """
    truth = truth.astype(np.float64)
    centred = truth - truth.mean()
    variance = _mean(centred[None] ** 2, weights) - _mean(centred[None], weights) ** 2
    return 1 - _ratio(_mean((outputs - truth) ** 2, weights), np.broadcast_to(variance, (len(outputs), len(weights))))


def _tempo_hits(metric: Metric, estimated: FloatArray, reference: FloatArray) -> FloatArray:
    """1 or 0 for tempi [H, N] in beats per minute, by mir_eval; NaN where no reference [N] is known."""
    hits = np.full(estimated.shape, np.nan)
    for head, row in np.ndindex(*estimated.shape):
        if not np.isnan(reference[row]):
            found = np.array([estimated[head, row], 0.0])
            hits[head, row] = any(
                mir_eval.tempo.detection(np.array([octave * reference[row], 0.0]), 1.0, found, TEMPO_TOLERANCE)[1]
                for octave in OCTAVES[metric]
            )
    return hits


def _macro_ranking_scores(
    precision: bool, values: FloatArray, positive: NDArray[np.bool_], weights: FloatArray
) -> FloatArray:
    if not precision and weights.shape[0] == 1 and (weights == 1).all():
        return _roc_auc_by_ranks(values, positive)[:, None]
    by_item = np.ascontiguousarray(weights.T)
    score = _average_precision if precision else _roc_auc
    scores = np.full((values.shape[2], len(values), len(weights)), np.nan)
    for c in np.flatnonzero(positive.any(axis=0) & ~positive.all(axis=0)):
        for head in range(len(values)):
            order = np.argsort(-values[head, :, c], kind="stable")
            ranked = values[head, order, c]
            starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))  # of equal values
            drawn, right = by_item[order], positive[order, c, None]
            scores[c, head] = score(np.add.reduceat(drawn * right, starts), np.add.reduceat(drawn * ~right, starts))
    return _nanmean(scores)


def _roc_auc_by_ranks(values: FloatArray, positive: NDArray[np.bool_]) -> FloatArray:
    """[H]: the area is the Mann-Whitney statistic, the share of pairs of a positive and a negative in
    the right order.
    """
    scored = positive.any(axis=0) & ~positive.all(axis=0)
    if not scored.any():
        return np.full(len(values), np.nan)
    ranks, chosen = rankdata(values[:, :, scored], axis=1), positive[:, scored]
    positives = chosen.sum(axis=0)
    above = (ranks * chosen).sum(axis=1) - positives * (positives + 1) / 2
    return (above / (positives * (len(chosen) - positives))).mean(axis=1)


def _roc_auc(positives: FloatArray, negatives: FloatArray) -> FloatArray:
    """[B], from weights [distinct values, B] of positives and negatives, highest value first."""
    above = np.cumsum(positives, axis=0) - positives / 2  # an equal value counts half
    return _ratio((above * negatives).sum(axis=0), positives.sum(axis=0) * negatives.sum(axis=0))


def _average_precision(positives: FloatArray, negatives: FloatArray) -> FloatArray:
    """[B]: the mean over positives of the precision at their value; NaN for a draw without a positive or a negative."""
    found = np.cumsum(positives, axis=0)
    precision = np.nan_to_num(_ratio(found, found + np.cumsum(negatives, axis=0)))
    score = _ratio((precision * positives).sum(axis=0), positives.sum(axis=0))
    return np.where(negatives.sum(axis=0) > 0, score, np.nan)
