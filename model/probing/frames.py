"""Probe frames: classes over time (chords, activity), and beats.

The head is that of pooled features, on one frame at a time. The epoch of a head is chosen on frames that are drawn once
from the validation clips: by the first metric (frame classes), or by the cross-entropy (beats), since decoding beats
after each epoch would take longer than the training. Learning rate and layer are chosen by the first metric on all
validation frames.
"""

from collections.abc import Iterator, Sequence

import mir_eval
import numpy as np
import torch
from torch import Tensor

from mert_foundry.model.probing.batches import BatchSource, FrameDraw, Scaling, ScoreOutputs
from mert_foundry.model.probing.beat_decoding import decode_beats, tempo_of
from mert_foundry.model.probing.chance import ReferenceScores, reference_scores
from mert_foundry.model.probing.features import FloatArray, FrameFeatures, IntArray, Partition, partitions, tracks_of
from mert_foundry.model.probing.head_training import TrainedHead, stack_of
from mert_foundry.model.probing.heads import HeadSizes, HeadStack
from mert_foundry.model.probing.labels import NO_CLASS, beat_targets, beats_of_clip, frame_classes, tempo_of_clip
from mert_foundry.model.probing.metrics import BEAT_WINDOWS, library_score, weighted_scores
from mert_foundry.model.probing.probe import (
    FoldResult,
    ReferenceScoresOf,
    binary_cross_entropy,
    by_condition,
    combine_folds,
    cross_entropy,
    probe_source,
)
from mert_foundry.model.probing.protocol import ProbeProtocol
from mert_foundry.model.probing.result import Predictions, ProbeResult, joined
from mert_foundry.pipeline.probe_sets.task import Metric

_FRAMES_AT_ONCE = 8192


def probe_frames(features: FrameFeatures, protocol: ProbeProtocol, device: torch.device | str = "cpu") -> ProbeResult:
    """Probe frame features of a frame_classes or beats task.

    Frames under no segment neither train nor count. Beats are decoded for each clip by `decode_beats`; hits, found and
    true beats of all clips are counted together, as in MARBLE, so F is not a mean over tracks. A clip's tempo is that
    of its decoded beats.

    Raises:
        ValueError: labels, splits or folds that cannot be probed; the message names the task.
    """
    task = features.labelled.task
    if task.kind == "frame_classes":
        probing: _FrameClasses | _Beats = _FrameClasses(features, protocol, torch.device(device))
    elif task.kind == "beats":
        probing = _Beats(features, protocol, torch.device(device))
    else:
        raise ValueError(f"task {task.name}: {task.kind} is not probed frame by frame")
    parts = partitions(features.labelled)
    folds = [probing.fold(partition, fold) for fold, partition in enumerate(parts)]
    return combine_folds(task, protocol, folds, probing.references(parts))


class _Frames:
    """What both kinds share: drawing of frames, outputs of whole clips."""

    def __init__(self, features: FrameFeatures, protocol: ProbeProtocol, device: torch.device):
        self.features, self.protocol, self.device = features, protocol, device
        self.offsets = features.offsets

    def frames_of(self, clips: IntArray) -> IntArray:
        """int64 [frames of these clips]: indices into `values` of all frames of `clips` [n]."""
        return np.concatenate([np.arange(self.offsets[clip], self.offsets[clip + 1]) for clip in clips])

    def draw(self, usable: np.ndarray) -> FrameDraw:
        """Draws among the frames for which `usable` [frames of all clips] is true."""
        counts = np.add.reduceat(usable.astype(np.int64), self.offsets[:-1])
        return FrameDraw(
            np.flatnonzero(usable), np.concatenate(([0], np.cumsum(counts))), self.protocol.frames_per_clip
        )

    def scaling(self, clips: IntArray) -> Scaling:
        """Shift and scale [layers, dim], fitted to the frames of `clips` [n]; none without `standardise`."""
        values = self.features.values
        return Scaling.fitted(values, self.frames_of(clips)) if self.protocol.standardise else Scaling.none(values)

    def source(
        self, train: IntArray, drawn: IntArray, targets: Tensor, draw: FrameDraw, score_sample: ScoreOutputs
    ) -> BatchSource:
        """Batches of the clips `train`; heads are scored on the frames `drawn`.

        Args:
            train: int64 [training clips].
            drawn: int64 [validation frames], indices into `values`.
            targets: [frames of all clips, ...].
            score_sample: outputs [H, validation frames, n] to scores [H].
        """
        layers, dim = self.features.values.shape[1:]
        task = self.features.labelled.task
        scaling = self.scaling(train)
        outputs = 1 if task.kind == "beats" else len(task.classes)
        return BatchSource(
            sizes=HeadSizes(layers, dim, self.protocol.hidden, outputs),
            values=self.features.values,
            targets=targets,
            scaling=scaling,
            train=train[draw.offsets[train + 1] > draw.offsets[train]],
            batch_size=self.protocol.batch_size,
            valid=scaling.rows(self.features.values, drawn).to(self.device),
            score_outputs=score_sample,
            frames=draw,
        )

    def validation_frames(self, draw: FrameDraw, clips: IntArray) -> IntArray:
        """Frames of these clips, drawn once and for all."""
        usable = clips[draw.offsets[clips + 1] > draw.offsets[clips]]
        if not len(usable):
            raise ValueError(f"task {self.features.labelled.task.name}: no frame of a validation clip has a label")
        return draw.draw(usable[None], [torch.Generator().manual_seed(0)])[0]

    def outputs(self, heads: HeadStack, scaling: Scaling, clips: IntArray) -> FloatArray:
        """Outputs [H, frames of these clips, n]."""
        frames = self.frames_of(clips)
        parts = [
            heads.predict(scaling.rows(self.features.values, part).to(self.device)).cpu().numpy()
            for part in _in_parts(frames)
        ]
        return np.concatenate(parts, axis=1)


def _in_parts(frames: IntArray) -> Iterator[IntArray]:
    for first in range(0, len(frames), _FRAMES_AT_ONCE):
        yield frames[first : first + _FRAMES_AT_ONCE]


class _FrameClasses(_Frames):
    def __init__(self, features: FrameFeatures, protocol: ProbeProtocol, device: torch.device):
        super().__init__(features, protocol, device)
        self.classes = frame_classes(features)

    def fold(self, partition: Partition, fold: int) -> FoldResult:
        task = self.features.labelled.task
        train, valid, test = partition.train, partition.valid, partition.test
        draw = self.draw(self.classes != NO_CLASS)
        drawn = self.validation_frames(draw, valid)

        def scores(outputs: FloatArray, truth: IntArray) -> FloatArray:
            ones = np.ones((1, len(truth)))
            found = weighted_scores(task.metrics[0], outputs, truth, task.classes, ones)[:, 0]
            return np.where(np.isfinite(outputs).all(axis=(1, 2)), found, np.nan)

        def score_sample(outputs: Tensor) -> FloatArray:
            return scores(outputs.cpu().numpy(), self.classes[drawn])

        source = self.source(train, drawn, torch.from_numpy(self.classes), draw, score_sample)

        def score_all(heads: Sequence[TrainedHead]) -> FloatArray:
            truth = self.classes[self.frames_of(valid)]
            outputs = self.outputs(stack_of(heads), source.scaling, valid)
            return scores(outputs[:, truth != NO_CLASS], truth[truth != NO_CLASS])

        def tested(heads: HeadStack) -> dict[str, Predictions]:
            tracks = tracks_of(self.features.labelled, partition.test)
            truth = self.classes[self.frames_of(test)]
            track = np.repeat(tracks.of(test), self.features.lengths[test])
            outputs = self.outputs(heads, source.scaling, test)
            labelled = truth != NO_CLASS
            return by_condition(outputs[:, labelled], truth[labelled], track[labelled], tracks)

        single = self.protocol.frame_layers == "all"
        return probe_source(source, cross_entropy, self.protocol, fold, single, tested, self.device, score_all)

    def references(self, parts: Sequence[Partition]) -> ReferenceScoresOf:
        clips = np.unique(np.concatenate([partition.train for partition in parts]))
        training = self.classes[self.frames_of(clips)]
        training = training[training != NO_CLASS]

        def reference(metric: Metric, condition: str, predictions: Predictions, of: int | None) -> ReferenceScores:
            return reference_scores(metric, predictions.truth, training, self.features.labelled.task.classes)

        return reference


class _Beats(_Frames):
    def fold(self, partition: Partition, fold: int) -> FoldResult:
        task = self.features.labelled.task
        train, valid, test = partition.train, partition.valid, partition.test
        draw = self.draw(np.ones(len(self.features.values), dtype=bool))
        drawn = self.validation_frames(draw, valid)
        targets = torch.from_numpy(beat_targets(self.features))[:, None]

        def score_sample(outputs: Tensor) -> FloatArray:
            truth = targets[torch.from_numpy(drawn)].to(outputs.device).expand_as(outputs)
            return -binary_cross_entropy(outputs, truth).cpu().numpy()

        source = self.source(train, drawn, targets, draw, score_sample)

        def score_all(heads: Sequence[TrainedHead]) -> FloatArray:
            logits = self.outputs(stack_of(heads), source.scaling, valid)
            ones = np.ones((1, len(valid)))
            found = self._found(logits, valid)
            return weighted_scores(task.metrics[0], found, self._truth(valid), (), ones)[:, 0]

        def tested(heads: HeadStack) -> dict[str, Predictions]:
            logits = self.outputs(heads, source.scaling, test)
            return self._predictions(self._found(logits, test), partition, test)

        single = self.protocol.frame_layers == "all"
        return probe_source(source, binary_cross_entropy, self.protocol, fold, single, tested, self.device, score_all)

    def references(self, parts: Sequence[Partition]) -> ReferenceScoresOf:
        """Chance: beats decoded from noise. Constant: a grid at the median tempo of training."""
        noise = np.random.default_rng(0)
        guessed: dict[str, list[Predictions]] = {}
        same: dict[str, list[Predictions]] = {}
        for partition in parts:
            test = partition.test
            tempi = [tempo_of_clip(self.features, clip) for clip in partition.train]
            logits = noise.normal(size=(1, int(self.features.lengths[test].sum()), 1))
            grid = [self._grid(clip, float(np.nanmedian(tempi))) for clip in test]
            for found, outputs in ((guessed, self._found(logits, test)), (same, self._counts([grid], test))):
                for condition, predictions in self._predictions(outputs, partition, test).items():
                    found.setdefault(condition, []).append(predictions)

        def reference(metric: Metric, condition: str, predictions: Predictions, of: int | None) -> ReferenceScores:
            predictions_of = [joined(found[condition]) for found in (guessed, same)]
            return ReferenceScores(
                *(library_score(metric, of_all.outputs[0], of_all.truth, ()).value for of_all in predictions_of)
            )

        return reference

    def _grid(self, clip: int, tempo: float) -> FloatArray:
        seconds = self.features.lengths[clip] / self.features.frame_rate
        return np.arange(0, seconds, 60 / tempo)

    def _truth(self, clips: IntArray) -> FloatArray:
        beats = [(len(beats_of_clip(self.features, clip)), tempo_of_clip(self.features, clip)) for clip in clips]
        return np.array(beats, dtype=np.float64)

    def _found(self, logits: FloatArray, clips: IntArray) -> FloatArray:
        """What `Predictions` keeps, [H, clips, 4], of logits [H, frames of these clips, 1].

        A head that diverged finds nothing.
        """
        probability = torch.from_numpy(logits[:, :, 0]).sigmoid().nan_to_num(0.0).numpy()
        cuts = np.cumsum(self.features.lengths[clips])[:-1]
        excerpts = [excerpt for head in probability for excerpt in np.split(head, cuts)]
        beats = decode_beats(excerpts, self.features.frame_rate)
        return self._counts([beats[first : first + len(clips)] for first in range(0, len(beats), len(clips))], clips)

    def _counts(self, beats: Sequence[Sequence[FloatArray]], clips: IntArray) -> FloatArray:
        counts = np.zeros((len(beats), len(clips), 4))
        for at, clip in enumerate(clips):
            reference = beats_of_clip(self.features, clip)
            for head, of_head in enumerate(beats):
                found = of_head[at]
                hits = [len(mir_eval.util.match_events(reference, found, window)) for window in BEAT_WINDOWS.values()]
                counts[head, at] = (*hits, len(found), tempo_of(found))
        return counts

    def _predictions(self, found: FloatArray, partition: Partition, clips: IntArray) -> dict[str, Predictions]:
        tracks = tracks_of(self.features.labelled, partition.test)
        return by_condition(found, self._truth(clips), tracks.of(clips), tracks)
