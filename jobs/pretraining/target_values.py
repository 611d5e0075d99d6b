"""Moments of continuous targets as heads see them, averaged over encoder frames: no record of a shard holds these.

Examples at even distances of a split are read, so the moments are a pure function of the shard set.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mert_foundry.jobs.pretraining.run_description import PretrainConfig, heads_of, read_description
from mert_foundry.model.interop.stored_model import StoredModel
from mert_foundry.model.objective.heads import HeadSpec
from mert_foundry.model.objective.target_alignment import align_values, target_stride
from mert_foundry.model.objective.value_scale import LOGARITHMIC, ValueScale, ValueScaleName, decorrelating_components
from mert_foundry.model.runs.checkpoint import CHECKPOINTS, list_checkpoints
from mert_foundry.pipeline.shards.reader import ShardReader
from mert_foundry.pipeline.shards.statistics import standardising_deviation
from mert_foundry.pipeline.stream.set_mixture import SetMixture, ShardSet

MOST_EXAMPLES = 256  # of a split: two hours in segments of 30 s, read in 5 s


@dataclass(frozen=True)
class ValueMoments:
    """Mean [bins] and covariance [bins, bins] over encoder frames, float64, in the value's unit or in nats."""

    mean: np.ndarray
    covariance: np.ndarray


Sampled = Mapping[str, Mapping[str, ValueMoments]]  # by target, then by split


def sample_values(config: PretrainConfig, mixture: SetMixture) -> Sampled:
    """Moments over encoder frames of each continuous target that has another scale or frame rate than its records.

    Of the logarithms where `objective.value_scale` takes them. Nothing is read when there is no such target.
    Raises ValueError when a logarithm is asked for and a target has no companding, or a split's sample has no encoder
    frame.
    """
    splits = [split for split in (config.train_split, config.valid_split) if split is not None]
    hop = config.encoder.frontend.hop
    sampled = {}
    for spec in heads_of(mixture.targets, mixture.partial_targets):
        stride = target_stride(spec.name, spec.frame_rate, hop)
        if spec.kind == "continuous" and (stride > 1 or config.objective.value_scale != "raw"):
            scale = config.objective.value_scale
            logarithmic = scale in LOGARITHMIC
            if logarithmic and spec.companding is None:
                raise ValueError(
                    f"objective.value_scale is {scale}, but target {spec.name} has no companding that says how small"
                    " values count"
                )
            sampled[spec.name] = {
                split: _mix(
                    [
                        measure_split(each, split, spec, stride, logarithmic)
                        for each in mixture.having(split, spec.name)
                    ],
                    row_shares(config, mixture, split, spec.name),
                )
                for split in splits
                if mixture.having(split, spec.name)
            }
    return sampled


def row_shares(config: PretrainConfig, mixture: SetMixture, split: str, target: str) -> list[float]:
    """The share of each set that has split and target: by weights where it is trained on, by frames where it is
    validated on.
    """
    having = mixture.having(split, target)
    trains = split == config.train_split
    counts = [each.weight if trains else each.num_frames(split) for each in having]
    return [count / sum(counts) for count in counts]


def _mix(moments: Sequence[ValueMoments], shares: Sequence[float]) -> ValueMoments:
    """The moments over frames of several sets, each with its share of them; those of one set to the last bit."""
    if len(moments) == 1:
        return moments[0]
    mean = sum(share * each.mean for share, each in zip(shares, moments))
    products = sum(share * (each.covariance + np.outer(each.mean, each.mean)) for share, each in zip(shares, moments))
    return ValueMoments(np.asarray(mean), products - np.outer(mean, mean))


def measure_split(shard_set: ShardSet, split: str, spec: HeadSpec, stride: int, logarithmic: bool) -> ValueMoments:
    """Moments of one target over at most `MOST_EXAMPLES` examples of a split. Raises as `ShardReader.read`."""
    entries = shard_set.index.shards(split)
    examples = [(shard, number) for shard, entry in enumerate(entries) for number in range(entry.nsamples)]
    count = min(len(examples), MOST_EXAMPLES)
    frames, total, products = 0, np.zeros(spec.size), np.zeros((spec.size, spec.size))
    with closing(ShardReader(shard_set.folder, shard_set.index, entries)) as reader:
        for number in range(count):
            shard, example = examples[number * len(examples) // count]
            stored = reader.read_target(shard, example, spec.name)
            values = _as_the_head_sees(stored, spec, stride, logarithmic)
            frames, total, products = frames + len(values), total + values.sum(0), products + values.T @ values
    if not frames:
        raise ValueError(f"{shard_set.folder}: no example of split {split} is as long as one frame of the encoder")
    mean = total / frames
    return ValueMoments(mean, products / frames - np.outer(mean, mean))


def _as_the_head_sees(stored: np.ndarray, spec: HeadSpec, stride: int, logarithmic: bool) -> np.ndarray:
    """Stored frames [F, bins] -> encoder frames [F // stride, bins], float64, not yet standardised."""
    levels = torch.from_numpy(stored.copy())
    values = spec.companding.expand(levels) if spec.companding is not None else levels.float()
    averaged = align_values(values[None], stride, len(values) // stride)[0]
    if logarithmic and spec.companding is not None:
        averaged = spec.companding.logarithm(averaged)
    return averaged.double().numpy()


def scaled_heads(
    config: PretrainConfig, mixture: SetMixture, sampled: Sampled, out: Path, initial: StoredModel | None = None
) -> list[HeadSpec]:
    """One head for each target, in the scale that the objective asks for.

    A run that goes on keeps the scales it began with, to the last bit; on another machine sums may end in another
    digit. A run that begins from a head of the same teacher keeps that head's scale, for which its weights were
    trained.
    """
    if config.objective.value_scale == "raw":
        return heads_of(mixture.targets, mixture.partial_targets)
    if list_checkpoints(out / CHECKPOINTS):
        begun_with = {spec.name: spec.scale for spec in read_description(out).heads}
        return [
            spec.model_copy(update={"scale": begun_with.get(spec.name)})
            for spec in heads_of(mixture.targets, mixture.partial_targets)
        ]
    name = config.objective.value_scale
    stored = stored_scales(initial, mixture, name) if initial else {}
    return [
        spec.model_copy(
            update={"scale": stored.get(spec.name) or scale_of(sampled[spec.name][config.train_split], name)}
        )
        if spec.kind == "continuous"
        else spec
        for spec in heads_of(mixture.targets, mixture.partial_targets)
    ]


def stored_scales(initial: StoredModel, mixture: SetMixture, name: ValueScaleName) -> dict[str, ValueScale]:
    """By target, the scale of a stored head of the same teacher, where it is of this name."""
    teachers = {spec.name: spec.fingerprint for spec in mixture.targets}
    return {
        head.name: head.scale
        for head in initial.heads
        if head.scale is not None
        and head.scale.is_called(name)
        and initial.fingerprints.get(head.name) == teachers.get(head.name)
    }


def scale_of(moments: ValueMoments, name: ValueScaleName) -> ValueScale:
    """The scale of this name: means by bin, and components or deviations by bin, as
    `standardising_deviation` has them.
    """
    mean = _six_digits(moments.mean)
    if name == "decorrelated":
        return ValueScale(logarithmic=True, mean=mean, components=decorrelating_components(moments.covariance))
    deviation = _six_digits(standardising_deviation(np.maximum(np.diag(moments.covariance), 0.0)))
    return ValueScale(logarithmic=name in LOGARITHMIC, mean=mean, deviation=deviation)


def _six_digits(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
