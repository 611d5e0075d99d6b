"""Expected scores of random guesses and of the best constant answer."""

from dataclasses import dataclass

import numpy as np
from sklearn import metrics as sklearn_metrics

from mert_foundry.model.probing.features import FloatArray, Labels
from mert_foundry.model.probing.metrics import agreement, library_score
from mert_foundry.pipeline.probe_sets.task import Metric


@dataclass(frozen=True)
class ReferenceScores:
    """Expected score of guesses drawn at random, and the score of the best constant answer that training labels
    suggest.
    """

    chance: float
    constant: float


def reference_scores(
    metric: Metric,
    truth: Labels,
    training: Labels,
    classes: tuple[str, ...],
    of: int | None = None,
) -> ReferenceScores:
    """Of pooled and frame-class tasks.

    Args:
        truth: test labels, [N] or [N, classes].
        training: labels of training clips or frames in the same form.

    Guesses are uniform over the classes. For AUC and AP they are random scores, and a constant score is worth the same:
    0.5, and the mean prevalence of the scored classes. For R2 a guess is the label of a training clip drawn at random,
    the constant is the training mean.
    """
    if metric in ("roc_auc", "frame_roc_auc"):
        return ReferenceScores(0.5, 0.5)
    if metric == "average_precision":
        flat = np.zeros(truth.shape, dtype=np.float64)
        constant = library_score(metric, flat, truth, classes).value
        return ReferenceScores(constant, constant)
    if metric == "r2":
        return _reference_scores_of_r2(
            truth if of is None else truth[:, [of]], training if of is None else training[:, [of]]
        )
    # [true class, answered class], and how often each class is true.
    value = agreement(metric, classes)
    answer = int(np.argmax(np.bincount(training, minlength=len(classes)) @ value))
    share = np.bincount(truth, minlength=len(classes)) / len(truth)
    if metric == "macro_accuracy":
        share = (share > 0) / (share > 0).sum()
        answer = int(np.argmax(np.bincount(training, minlength=len(classes))))
    return ReferenceScores(float((share @ value).mean()), float(share @ value[:, answer]))


def _reference_scores_of_r2(truth: FloatArray, training: FloatArray) -> ReferenceScores:
    truth, training = truth.astype(np.float64), training.astype(np.float64)
    constant = sklearn_metrics.r2_score(truth, np.broadcast_to(training.mean(axis=0), truth.shape))
    # E (y - g)^2 of a guess g is (y - mean)^2 plus the variance of g.
    errors = ((truth - training.mean(axis=0)) ** 2).mean(axis=0) + training.var(axis=0)
    return ReferenceScores(float((1 - errors / truth.var(axis=0)).mean()), float(constant))
