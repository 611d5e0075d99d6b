"""What a trivial predictor reaches on the splits of a run, from the sums that the records of its shards hold."""

from collections.abc import Mapping, Sequence

import numpy as np

from mert_foundry.jobs.pretraining.run_description import PretrainConfig
from mert_foundry.jobs.pretraining.target_values import MOST_EXAMPLES, Sampled, ValueMoments, row_shares
from mert_foundry.model.objective.heads import HeadSpec
from mert_foundry.model.objective.trivial import TrivialScore, TrivialScores, score_mean, score_unigram
from mert_foundry.model.objective.value_scale import ValueScale
from mert_foundry.pipeline.shards.index import load_records
from mert_foundry.pipeline.shards.set_statistics import sum_records
from mert_foundry.pipeline.shards.statistics import DiscreteCounts, Partial, mean_and_variance, mix
from mert_foundry.pipeline.stream.set_mixture import SetMixture

MOST_SHARDS = 200  # of a split whose records are read: some 200 hours are enough, and a start waits for it


def measure_trivial(
    config: PretrainConfig, mixture: SetMixture, heads: Sequence[HeadSpec], sampled: Sampled
) -> TrivialScores:
    """The constants of the training split, scored on that split and on the one to validate on, in the scale of `heads`.

    index.json has sums over all splits only, so the records are read: at most `MOST_SHARDS` of a split, at even
    distances. Several sets count as their weights have it on the training split, by their frames on the other.
    Sums are over all frames; a run scores masked frames of crops. Targets in `sampled` are scored by the examples
    that were read for it. Raises as `load_listed_record`.
    """
    train, basis = sum_split(config, mixture, config.train_split)
    if config.valid_split is not None:
        valid, valid_basis = sum_split(config, mixture, config.valid_split)
        basis += f", scored on {config.train_split} and on {valid_basis}"
    train_scores, validation = {}, {}
    for spec in heads:
        moments = sampled.get(spec.name, {})
        of_train = moments.get(config.train_split, train[spec.name])
        train_scores[spec.name] = score(of_train, of_train, spec.scale)
        if config.valid_split is not None and spec.name in valid:  # not when only sets without the split have it
            validation[spec.name] = score(of_train, moments.get(config.valid_split, valid[spec.name]), spec.scale)
    if sampled:
        basis += f"; {', '.join(sampled)}: of at most {MOST_EXAMPLES} examples of a split"
    return TrivialScores(basis=f"the best constants of {basis}", train=train_scores, validation=validation)


def sum_split(config: PretrainConfig, mixture: SetMixture, split: str) -> tuple[Mapping[str, Partial], str]:
    """Sums by target over a split of all sets, by their shares, and which shards they are of.

    Raises as `load_listed_record`.
    """
    sets = mixture.having(split)
    filled = [[entry for entry in each.index.shards(split) if entry.nsamples] for each in sets]
    sums, counts = [], []
    for each, entries in zip(sets, filled):
        count = min(len(entries), max(1, MOST_SHARDS // len(sets)))
        chosen = [entries[number * len(entries) // count] for number in range(count)]
        sums.append(sum_records(each.index.targets, load_records(each.folder, chosen))[0])
        counts.append(count)
    mixed = {
        spec.name: mix(
            [each[spec.name] for each in sums if spec.name in each], row_shares(config, mixture, split, spec.name)
        )
        for spec in mixture.targets
        if mixture.having(split, spec.name)
    }
    return mixed, f"{split} ({sum(counts)} of {sum(map(len, filled))} shards)"


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
