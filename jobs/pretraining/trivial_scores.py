"""What a trivial predictor reaches on the splits of a run, from the sums that the records of its shards hold."""

from collections.abc import Mapping, Sequence

import numpy as np

from mert_foundry.jobs.pretraining.run_description import PretrainConfig
from mert_foundry.jobs.pretraining.target_values import MOST_EXAMPLES, Sampled, ValueMoments
from mert_foundry.model.objective.heads import HeadSpec
from mert_foundry.model.objective.trivial import TrivialScore, TrivialScores, score_mean, score_unigram
from mert_foundry.model.objective.value_scale import ValueScale
from mert_foundry.pipeline.shards.index import ShardIndex, load_records, sum_records
from mert_foundry.pipeline.shards.statistics import DiscreteCounts, Partial, mean_and_variance

MOST_SHARDS = 200  # of a split whose records are read: some 200 hours are enough, and a start waits for it


def measure_trivial(
    config: PretrainConfig, index: ShardIndex, heads: Sequence[HeadSpec], sampled: Sampled
) -> TrivialScores:
    """The constants of the training split, scored on that split and on the one to validate on, in the scale of `heads`.

    index.json has sums over all splits only, so the records are read: at most `MOST_SHARDS` of a split, at even distances.
    Sums are over all frames; a run scores masked frames of crops. Targets in `sampled` are scored by the examples
    that were read for it. Raises as `load_listed_record`.
    """
    train, basis = sum_split(config.shards, index, config.train_split)
    if config.valid_split is not None:
        valid, valid_basis = sum_split(config.shards, index, config.valid_split)
        basis += f", scored on {config.train_split} and on {valid_basis}"
    train_scores, validation = {}, {}
    for spec in heads:
        moments = sampled.get(spec.name, {})
        of_train = moments.get(config.train_split, train[spec.name])
        train_scores[spec.name] = score(of_train, of_train, spec.scale)
        if config.valid_split is not None:
            validation[spec.name] = score(of_train, moments.get(config.valid_split, valid[spec.name]), spec.scale)
    if sampled:
        basis += f"; {', '.join(sampled)}: of at most {MOST_EXAMPLES} examples of a split"
    return TrivialScores(basis=f"the best constants of {basis}", train=train_scores, validation=validation)


def sum_split(shards: str, index: ShardIndex, split: str) -> tuple[Mapping[str, Partial], str]:
    """Sums by target over a split, and which shards they are of. Raises as `load_listed_record`."""
    filled = [entry for entry in index.shards(split) if entry.nsamples]
    count = min(len(filled), MOST_SHARDS)
    chosen = [filled[number * len(filled) // count] for number in range(count)]
    sums, _ = sum_records(index.targets, load_records(shards, chosen))
    return sums, f"{split} ({count} of {len(filled)} shards)"


def score(
    train: Partial | ValueMoments, scored: Partial | ValueMoments, scale: ValueScale | None = None
) -> TrivialScore:
    """What the constant for the frames `train` reaches on the frames `scored`; values in a head's scale."""
    if isinstance(train, DiscreteCounts) and isinstance(scored, DiscreteCounts):
        return score_unigram(np.array(train.counts), np.array(scored.counts))
    if scale is None:
        return score_mean(_mean_and_variance(train)[0], *_mean_and_variance(scored))
    assert isinstance(train, ValueMoments) and isinstance(scored, ValueMoments), "a scale is measured on a sample"
    projection, offset = scale.projection(), np.array(scale.mean)
    variance = np.einsum("bk,bc,ck->k", projection, scored.covariance, projection, optimize=True)
    return score_mean((train.mean - offset) @ projection, (scored.mean - offset) @ projection, variance)


def _mean_and_variance(sums: Partial | ValueMoments) -> tuple[np.ndarray, np.ndarray]:
    """By bin, float64 [bins] each."""
    if isinstance(sums, ValueMoments):
        return sums.mean, np.diag(sums.covariance)
    assert not isinstance(sums, DiscreteCounts), "both are of the same target"
    return mean_and_variance(sums)
