"""Probe one task: train all heads, let validation choose, test what it chose."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mert_foundry.model.probing.batches import BatchSource, Scaling, ScoreOutputs
from mert_foundry.model.probing.chance import ReferenceScores, reference_scores
from mert_foundry.model.probing.features import (
    FloatArray,
    IntArray,
    Labels,
    Partition,
    PooledFeatures,
    Tracks,
    partitions,
    tracks_of,
)
from mert_foundry.model.probing.head_training import Loss, TrainedHead, TrainingSource, stack_of, train_heads
from mert_foundry.model.probing.heads import HeadSizes, HeadStack, ProbeHeadSpec
from mert_foundry.model.probing.labels import clip_labels
from mert_foundry.model.probing.metrics import weighted_scores
from mert_foundry.model.probing.protocol import WEIGHTED_SUM, ProbeProtocol
from mert_foundry.model.probing.result import (
    CHOSEN,
    Choice,
    Predictions,
    ProbeResult,
    Score,
    joined,
    parts_of,
    score_predictions,
)
from mert_foundry.pipeline.probe_sets.task import Kind, Metric, ProbeTask

# (heads of one layer and rate, all seeds) to the test predictions by condition.
Test = Callable[[HeadStack], dict[str, Predictions]]
# (metric, condition, predictions, number of the value or stem) to what chance reaches.
ReferenceScoresOf = Callable[[Metric, str, Predictions, int | None], ReferenceScores]
# Best validation scores [H] of trained heads, by the task's first metric.
ScoreHeads = Callable[[Sequence[TrainedHead]], FloatArray]


@dataclass(frozen=True)
class FoldResult:
    """Of one partition: choices and test predictions by (heads, condition)."""

    choices: list[Choice]
    predictions: dict[tuple[str, str], Predictions]


def probe(features: PooledFeatures, protocol: ProbeProtocol, device: torch.device | str = "cpu") -> ProbeResult:
    """Probe pooled features of a multiclass, multilabel or regression task.

    Validation alone chooses: for each head its epoch, for each layer its learning rate (by the mean over seeds), then
    the layer or weighted sum. In a task with folds each fold chooses on its own, and the predictions of all folds are
    scored together. Outputs of a track's clips are averaged before any softmax or sigmoid, in validation and test.

    Raises:
        ValueError: labels, splits or folds that cannot be probed; the message names the task.
    """
    labelled = features.labelled
    if labelled.task.kind not in LOSSES:
        raise ValueError(f"task {labelled.task.name}: {labelled.task.kind} is not probed on pooled features")
    labels, on_device = clip_labels(labelled), torch.device(device)
    folds = []
    tested: list[IntArray] = []
    for fold, partition in enumerate(partitions(labelled)):
        folds.append(_probe_fold(features, labels, partition, fold, protocol, on_device))
        tested.append(partition.train)
    training = labels[np.unique(np.concatenate(tested))]

    def reference(metric: Metric, condition: str, predictions: Predictions, of: int | None) -> ReferenceScores:
        return reference_scores(metric, predictions.truth, training, labelled.task.classes, of)

    return combine_folds(labelled.task, protocol, folds, reference)


def _probe_fold(
    features: PooledFeatures,
    labels: Labels,
    partition: Partition,
    fold: int,
    protocol: ProbeProtocol,
    device: torch.device,
) -> FoldResult:
    task = features.labelled.task
    scaling = (
        Scaling.fitted(features.values, partition.train) if protocol.standardise else Scaling.none(features.values)
    )
    target_scaling = TargetScaling.fitted(task.kind, labels[partition.train])
    valid_tracks, test_tracks = (tracks_of(features.labelled, part) for part in (partition.valid, partition.test))
    layers, dim = features.values.shape[1:]
    source = BatchSource(
        sizes=HeadSizes(layers, dim, protocol.hidden, len(task.classes)),
        values=features.values,
        targets=torch.from_numpy(target_scaling.normalise(labels)),
        scaling=scaling,
        train=partition.train,
        batch_size=protocol.batch_size,
        valid=scaling.rows(features.values, partition.valid).to(device),
        score_outputs=_validation_score(
            task, target_scaling, valid_tracks.of(partition.valid), labels[valid_tracks.clip]
        ),
    )

    def test_heads(heads: HeadStack) -> dict[str, Predictions]:
        parts = np.array_split(partition.test, len(partition.test) // 4096 + 1)
        outputs = torch.cat([heads.predict(scaling.rows(features.values, part).to(device)) for part in parts], dim=1)
        track = test_tracks.of(partition.test)
        averaged = target_scaling.denormalise(track_means(outputs, track, len(test_tracks.names)).cpu().numpy())
        return by_condition(averaged, labels[test_tracks.clip], np.arange(len(test_tracks.names)), test_tracks)

    return probe_source(source, LOSSES[task.kind], protocol, fold, True, test_heads, device)


def probe_source(
    source: TrainingSource,
    loss: Loss,
    protocol: ProbeProtocol,
    fold: int,
    single_layers: bool,
    test: Test,
    device: torch.device,
    score_all: ScoreHeads | None = None,
) -> FoldResult:
    """Train the heads of all layers, rates and seeds, choose a rate for each layer, and test the heads of that rate.

    Args:
        single_layers: heads on each layer, not on the weighted sum only. With one layer there is no weighted sum.
        score_all: scores by which rates and layers are chosen, where it is not the score that chose the epoch.
    """
    count = source.sizes.layers
    layers = [*(range(count) if single_layers or count == 1 else ()), *([None] if count > 1 else ())]
    specs = [
        ProbeHeadSpec(layer, rate, seed)
        for layer in layers
        for rate in protocol.rates
        for seed in range(protocol.seeds)
    ]
    trained = train_heads(specs, source, loss, protocol, device)
    choices, predictions = [], {}
    for layer in layers:
        heads = [head for head in trained if head.spec.layer == layer]
        name = WEIGHTED_SUM if layer is None else str(layer)
        scores = np.array([head.score for head in heads]) if score_all is None else score_all(heads)
        choice, chosen = _choose_rate(name, heads, scores, protocol, fold)
        choices.append(choice)
        for condition, predicted in test(stack_of(chosen)).items():
            predictions[name, condition] = predicted
    return FoldResult(choices, predictions)


def _choose_rate(
    name: str, heads: Sequence[TrainedHead], scores: FloatArray, protocol: ProbeProtocol, fold: int
) -> tuple[Choice, list[TrainedHead]]:
    means = scores.reshape(len(protocol.rates), protocol.seeds).mean(axis=1)
    best = int(np.argmax(means))
    chosen = list(heads[best * protocol.seeds : (best + 1) * protocol.seeds])
    curves = tuple(head.curve for head in chosen)
    choice = Choice(name, fold, protocol.rates[best], float(means[best]), tuple(map(float, means)), curves)
    return choice, chosen


def combine_folds(
    task: ProbeTask,
    protocol: ProbeProtocol,
    folds: Sequence[FoldResult],
    reference: ReferenceScoresOf,
) -> ProbeResult:
    """The result of all folds: each fold's best heads by validation as "chosen", all predictions scored.

    Raises:
        ValueError: validation could score no head of a fold.
    """
    for fold in folds:
        if not any(np.isfinite(choice.validation) for choice in fold.choices):
            raise ValueError(
                f"task {task.name}: {task.metrics[0]} is undefined on the validation clips for every head; they need"
                " more clips or other labels"
            )
    chosen = tuple(max(fold.choices, key=lambda choice: choice.validation).heads for fold in folds)
    names = [choice.heads for choice in folds[0].choices]
    conditions = sorted({condition for fold in folds for _, condition in fold.predictions})
    predictions: dict[tuple[str, str], Predictions] = {}
    scores: list[Score] = []
    for name in [*names, CHOSEN]:
        for condition in conditions:
            keys = [(own if name == CHOSEN else name, condition) for own in chosen]
            tested = joined([fold.predictions[key] for fold, key in zip(folds, keys) if key in fold.predictions])
            predictions[name, condition] = tested
            scores += [
                score_predictions(
                    task, metric, tested, protocol, reference(metric, condition, tested, of), name, condition, of
                )
                for metric in task.metrics
                for of in parts_of(task, metric)
            ]
    choices = tuple(choice for fold in folds for choice in fold.choices)
    return ProbeResult(task, protocol, chosen, choices, tuple(scores), predictions)


@dataclass(frozen=True)
class TargetScaling:
    """Values of a regression are learnt at mean 0 and standard deviation 1 over training clips, and predicted in their
    own unit.
    """

    mean: FloatArray | float = 0.0
    std: FloatArray | float = 1.0

    @classmethod
    def fitted(cls, kind: Kind, labels: FloatArray) -> "TargetScaling":
        if kind != "regression":
            return cls()
        std = labels.std(axis=0)
        return cls(labels.mean(axis=0), np.where(std > 0, std, 1).astype(np.float32))

    def normalise(self, labels: Labels) -> Labels:
        return labels if isinstance(self.mean, float) else (labels - self.mean) / self.std

    def denormalise(self, outputs: FloatArray) -> FloatArray:
        return outputs * self.std + self.mean


def _validation_score(task: ProbeTask, target_scaling: TargetScaling, track: IntArray, truth: Labels) -> ScoreOutputs:
    """Scores heads by the task's first metric on the validation tracks; `track` is that of each clip."""
    everything = np.ones((1, len(truth)))

    def score_outputs(outputs: Tensor) -> FloatArray:
        averaged = target_scaling.denormalise(track_means(outputs, track, len(truth)).cpu().numpy())
        scores = weighted_scores(task.metrics[0], averaged, truth, task.classes, everything)[:, 0]
        return np.where(np.isfinite(averaged).all(axis=(1, 2)), scores, np.nan)

    return score_outputs


def track_means(outputs: Tensor, track: IntArray, tracks: int) -> Tensor:
    """[H, tracks, n]: the mean of outputs [H, clips, n] over the clips of each track, `track` [clips]."""
    index = torch.from_numpy(track).to(outputs.device)
    sums = outputs.new_zeros(len(outputs), tracks, outputs.shape[2]).index_add_(1, index, outputs)
    return sums / torch.bincount(index, minlength=tracks)[:, None]


def by_condition(outputs: FloatArray, truth: Labels, track: IntArray, tracks: Tracks) -> dict[str, Predictions]:
    """Predictions of each condition apart, from outputs [seeds, items, n], truth [items, ...], track [items]."""
    found = {}
    for condition in sorted(set(tracks.conditions)):
        here = np.array([own == condition for own in tracks.conditions])
        number = np.cumsum(here) - 1
        items = here[track]
        found[condition] = Predictions(
            outputs=outputs[:, items],
            truth=truth[items],
            track=number[track[items]],
            tracks=tuple(name for name, own in zip(tracks.names, here) if own),
            groups=tuple(group for group, own in zip(tracks.groups, here) if own),
        )
    return found


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """[H], of outputs [H, B, classes] and class numbers [H, B]."""
    return (
        functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape).mean(1)
    )


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """[H], of outputs and targets [H, B, classes]."""
    return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(dim=(1, 2))


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """[H], of outputs and targets [H, B, values]."""
    return (outputs - targets).square().mean(dim=(1, 2))


LOSSES: dict[Kind, Loss] = {
    "multiclass": cross_entropy,
    "multilabel": binary_cross_entropy,
    "regression": squared_error,
}
