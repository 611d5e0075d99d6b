"""What a trivial predictor reaches on the splits of a run, from the sums that the records of its shards hold."""

from collections.abc import Mapping

import numpy as np

from mert_foundry.jobs.pretraining.run_description import PretrainConfig
from mert_foundry.model.objective.target_alignment import target_stride
from mert_foundry.model.objective.trivial import TrivialScore, TrivialScores, score_mean, score_unigram
from mert_foundry.pipeline.shards.index import ShardIndex, load_records, sum_records
from mert_foundry.pipeline.shards.statistics import DiscreteCounts, Partial, mean_and_variance

MOST_SHARDS = 200  # of a split whose records are read: some 200 hours are enough, and a start waits for it


def measure_trivial(config: PretrainConfig, index: ShardIndex) -> TrivialScores:
    """The constants of the training split, scored on that split and on the one to validate on.

    index.json has sums over all splits only, so the records are read: at most `MOST_SHARDS` of a split, at even distances.
    Sums are over all frames; a run scores masked frames of crops. Raises as `load_listed_record`.
    """
    known, unknown = [], {}
    for spec in index.targets:
        stride = target_stride(spec.name, spec.frame_rate, config.encoder.frontend.hop)
        if spec.kind == "continuous" and stride > 1:
            unknown[spec.name] = f"a frame of the encoder is the mean of {stride}, whose variance no shard records"
        else:
            known.append(spec)
    train, basis = sum_split(config.shards, index, config.train_split)
    validation: dict[str, TrivialScore] = {}
    if config.valid_split is not None:
        valid, valid_basis = sum_split(config.shards, index, config.valid_split)
        validation = {spec.name: score(train[spec.name], valid[spec.name]) for spec in known}
        basis += f", scored on {config.train_split} and on {valid_basis}"
    return TrivialScores(
        basis=f"the best constants of {basis}",
        train={spec.name: score(train[spec.name], train[spec.name]) for spec in known},
        validation=validation,
        unknown=unknown,
    )


def sum_split(shards: str, index: ShardIndex, split: str) -> tuple[Mapping[str, Partial], str]:
    """Sums by target over a split, and which shards they are of. Raises as `load_listed_record`."""
    filled = [entry for entry in index.shards(split) if entry.nsamples]
    count = min(len(filled), MOST_SHARDS)
    chosen = [filled[number * len(filled) // count] for number in range(count)]
    sums, _ = sum_records(index.targets, load_records(shards, chosen))
    return sums, f"{split} ({count} of {len(filled)} shards)"


def score(train: Partial, scored: Partial) -> TrivialScore:
    """What the constant for the sums `train` reaches on the frames of the sums `scored`."""
    if isinstance(train, DiscreteCounts) and isinstance(scored, DiscreteCounts):
        return score_unigram(np.array(train.counts), np.array(scored.counts))
    assert not isinstance(train, DiscreteCounts) and not isinstance(scored, DiscreteCounts), "sums of the same target"
    return score_mean(mean_and_variance(train)[0], *mean_and_variance(scored))
