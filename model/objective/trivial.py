"""What predictors that look at nothing reach: the loss of the best constant for each target, beside which a loss can be
read.

Codes: the training split's distribution of codes, the same for every frame. Values: the training split's mean of each
bin, in the scale of the head. Both are scored in the unit and with the reduction of the loss terms
(`PretrainModel.summarise`), before any weight.
"""

from collections.abc import Mapping

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.model.objective.pretrain_model import UNMASKED

# Added to every count (Krichevsky and Trofimov, 1981), so that a code that training never saw costs a finite loss.
UNSEEN = 0.5


class TrivialScore(BaseModel):
    """What the constant for one target reaches on one split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: float = Field(description="its loss: nats summed over codebooks, or squared error, mean over bins")
    codebooks: list[float] = Field([], description="codes: its cross-entropy with each codebook, nats")
    most_frequent: list[float] = Field(
        [], description="codes: how often training's most frequent code is right, 0 to 1"
    )


class TrivialScores(BaseModel):
    """What the constants reach on the splits of a run, by target."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    basis: str = Field(description="which splits and shards the figures are from")
    train: dict[str, TrivialScore] = Field(description="on the split that is trained on")
    validation: dict[str, TrivialScore] = Field({}, description="on the split that is validated on")
    unknown: dict[str, str] = Field({}, description="targets without a figure, and why; in older runs")

    def on(self, kind: str) -> dict[str, TrivialScore]:
        """The scores beside records of a kind, `train` or `validation`."""
        return self.train if kind == "train" else self.validation


def score_unigram(train: np.ndarray, scored: np.ndarray) -> TrivialScore:
    """Cross-entropy and hits of the distribution of counts `train` [K, V] on frames with counts `scored` [K, V].

    With half a count added to every entry; on counts that are large and its own, the cross-entropy is the entropy.
    """
    seen = train + UNSEEN
    shares = scored / scored.sum(1, keepdims=True)
    nats = -(shares * np.log(seen / seen.sum(1, keepdims=True))).sum(1)
    hits = np.take_along_axis(shares, train.argmax(1)[:, None], axis=1)[:, 0]
    return TrivialScore(loss=float(nats.sum()), codebooks=nats.tolist(), most_frequent=hits.tolist())


def score_mean(train_mean: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> TrivialScore:
    """Squared error of a constant `train_mean` [bins] on frames of this mean and variance [bins]: mean over bins.

    On the frames that the constant is the mean of, it is their variance.
    """
    return TrivialScore(loss=float((variance + (mean - train_mean) ** 2).mean()))


def explained_shares(losses: Mapping[str, float], scores: Mapping[str, TrivialScore]) -> dict[str, float]:
    """1 - loss / trivial loss for each loss term that has one: 1 is perfect, 0 no better than the constant.

    Terms over unmasked frames have the same constant. A target that never varies has no share.
    """
    found = {}
    for name, loss in losses.items():
        score = scores.get(name.removeprefix(UNMASKED))
        if score is not None and score.loss > 0.0:
            found[name] = 1.0 - loss / score.loss
    return found
