"""Batches of clips, and of frames of clips, each seed in an order of its own."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mert_foundry.model.probing.features import FloatArray, IntArray
from mert_foundry.model.probing.heads import HeadSizes, HeadStack

_ROWS_AT_ONCE = 4096

# Outputs [H, validation items, outputs] of the heads to a score for each, [H]; higher is better.
ScoreOutputs = Callable[[Tensor], FloatArray]


@dataclass(frozen=True)
class Scaling:
    """Shift and scale of features, float32 [layers, dim] each."""

    mean: FloatArray
    std: FloatArray

    @classmethod
    def fitted(cls, values: FloatArray, rows: IntArray) -> "Scaling":
        """Brings these rows of `values` [.., layers, dim] to mean 0 and standard deviation 1; constant dimensions
        become 0.
        """
        total = np.zeros(values.shape[1:], dtype=np.float64)
        for part in _parts(rows):
            total += values[part].sum(axis=0, dtype=np.float64)
        mean = total / len(rows)
        squares = np.zeros_like(mean)
        for part in _parts(rows):
            squares += np.square(values[part] - mean).sum(axis=0)
        std = np.sqrt(squares / len(rows))
        # A standard deviation as small as rounding errors is that of a constant.
        constant = std <= 1e-6 * np.abs(mean)
        return cls(mean.astype(np.float32), np.where(constant, np.inf, std).astype(np.float32))

    @classmethod
    def none(cls, values: FloatArray) -> "Scaling":
        """Changes nothing."""
        shape = values.shape[1:]
        return cls(np.zeros(shape, dtype=np.float32), np.ones(shape, dtype=np.float32))

    def rows(self, values: FloatArray, rows: IntArray) -> Tensor:
        """The scaled rows, float32 [*rows.shape, layers, dim]."""
        return torch.from_numpy((values[rows] - self.mean) / self.std)


def _parts(rows: IntArray) -> list[IntArray]:
    return [rows[first : first + _ROWS_AT_ONCE] for first in range(0, len(rows), _ROWS_AT_ONCE)]


@dataclass(frozen=True)
class BatchSource:
    """Batches of training clips, and a score on validation clips; see `TrainingSource`.

    With `frames` a batch has `frames_per_clip` frames of each of its clips, drawn for every batch. A head sees one
    frame at a time, so frames from anywhere in a clip serve it as well as consecutive ones, and they differ more.

    Attributes:
        values: float32 [N, layers, dim]: of all clips, or of the frames of all clips.
        targets: [N, ...], of each of these.
        train: int64 [training clips], their numbers.
        valid: scaled features that heads are judged on, float32 [M, layers, dim]; on the device of the heads.
        score_outputs: scores the outputs for `valid`.
        frames: draws the frames of a clip; None: the clip's number is the index into `values`.
    """

    sizes: HeadSizes
    values: FloatArray
    targets: Tensor
    scaling: Scaling
    train: IntArray
    batch_size: int
    valid: Tensor
    score_outputs: ScoreOutputs
    frames: "FrameDraw | None" = None

    def epoch(self, generators: Sequence[torch.Generator]) -> Iterator[tuple[Tensor, Tensor]]:
        orders = np.stack([torch.randperm(len(self.train), generator=generator).numpy() for generator in generators])
        for first in range(0, len(self.train), self.batch_size):
            rows = self.train[orders[:, first : first + self.batch_size]]
            if self.frames is not None:
                rows = self.frames.draw(rows, generators)
            device = self.valid.device
            yield self.scaling.rows(self.values, rows).to(device), self.targets[torch.from_numpy(rows)].to(device)

    def validate(self, heads: HeadStack) -> FloatArray:
        return self.score_outputs(heads.predict(self.valid))


@dataclass(frozen=True)
class FrameDraw:
    """Draws frames of clips.

    Attributes:
        usable: int64, indices of the frames that have a target, clip after clip.
        offsets: int64 [clips + 1]: clip i has usable[offsets[i]:offsets[i + 1]], at least one.
    """

    usable: IntArray
    offsets: IntArray
    per_clip: int

    def draw(self, clips: IntArray, generators: Sequence[torch.Generator]) -> IntArray:
        """Indices [generators, B * per_clip] of frames of the clips [generators, B], drawn with replacement."""
        share = np.stack(
            [torch.rand(clips.shape[1], self.per_clip, generator=g, dtype=torch.float64).numpy() for g in generators]
        )
        counts = (self.offsets[clips + 1] - self.offsets[clips])[..., None]
        drawn = self.usable[self.offsets[clips][..., None] + (share * counts).astype(np.int64)]
        return drawn.reshape(len(generators), -1)
