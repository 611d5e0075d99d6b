"""Training of a stack of heads: one Adam, each head with its own rate, plateau, early stop and best state."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mert_foundry.model.probing.features import FloatArray
from mert_foundry.model.probing.heads import DROPOUT, ORDER, HeadSizes, HeadStack, ProbeHeadSpec, generator_of
from mert_foundry.model.probing.protocol import ProbeProtocol

# Weights, gradients, two moments and the best state of the heads that are trained at once take at most this.
_BLOCK_BYTES = 1 << 30

# (outputs [H, B, outputs], targets [H, B, ...]) to the loss of each head [H].
Loss = Callable[[Tensor, Tensor], Tensor]


class TrainingSource(Protocol):
    """Where the batches come from."""

    @property
    def sizes(self) -> HeadSizes:
        """Of the features and outputs."""
        ...

    def epoch(self, generators: Sequence[torch.Generator]) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of one epoch, each with a row for every generator, which alone decides what the row holds.

        Yields: features [generators, B, layers, dim] and targets [generators, B, ...].
        """
        ...

    def validate(self, heads: HeadStack) -> FloatArray:
        """The score of each head on the validation clips, float [H]; higher is better."""
        ...


@dataclass(frozen=True)
class TrainedHead:
    """A head at its best epoch.

    Attributes:
        weights: as in `HeadStack`, without the first dimension.
        curve: validation score after each epoch; NaN where the head had diverged.
        score: the best of `curve`, or minus infinity if there was none.
    """

    spec: ProbeHeadSpec
    weights: dict[str, Tensor]
    curve: tuple[float, ...]
    score: float


def train_heads(
    specs: Sequence[ProbeHeadSpec], source: TrainingSource, loss: Loss, protocol: ProbeProtocol, device: torch.device
) -> list[TrainedHead]:
    """Train all heads; the result is in their order.

    Heads of single layers and of weighted sums are trained apart, in as many blocks as memory asks for. A block changes
    nothing for the heads in it.
    """
    trained: dict[ProbeHeadSpec, TrainedHead] = {}
    for alike in ([s for s in specs if s.layer is not None], [s for s in specs if s.layer is None]):
        size = _heads_at_once(source.sizes)
        for first in range(0, len(alike), size):
            block = _Block(HeadStack.initial(alike[first : first + size], source.sizes, device), protocol)
            trained.update((head.spec, head) for head in block.train(source, loss))
    return [trained[spec] for spec in specs]


def stack_of(trained: Sequence[TrainedHead]) -> HeadStack:
    """Trained heads, all of single layers or all of weighted sums, as one stack."""
    names = trained[0].weights
    return HeadStack(
        [head.spec for head in trained], {name: torch.stack([head.weights[name] for head in trained]) for name in names}
    )


def _heads_at_once(sizes: HeadSizes) -> int:
    hidden = sizes.hidden or 0
    weights = (sizes.dim + 1) * hidden + (hidden + 1) * sizes.outputs if hidden else (sizes.dim + 1) * sizes.outputs
    return max(1, _BLOCK_BYTES // (5 * 4 * weights))


@dataclass
class _Progress:
    """Of one head, over its epochs."""

    rate: float
    curve: list[float]
    best: float = -np.inf
    best_epoch: int = -1
    last_change: int = -1  # epoch of the best score or of the last reduction

    def after_epoch(self, score: float, protocol: ProbeProtocol) -> None:
        """Take the score in, and lower the rate when it has not risen for more than `plateau_patience` epochs."""
        epoch = len(self.curve)
        self.curve.append(score)
        if score > self.best:
            self.best, self.best_epoch, self.last_change = score, epoch, epoch
        elif epoch - self.last_change > protocol.plateau_patience:
            self.rate *= protocol.plateau_factor
            self.last_change = epoch

    def stopped(self, protocol: ProbeProtocol) -> bool:
        return len(self.curve) - 1 - self.best_epoch >= protocol.patience


class _Block:
    """Heads in training; those that stopped are taken out, so that they cost no more time."""

    def __init__(self, heads: HeadStack, protocol: ProbeProtocol):
        self.heads = heads
        self.protocol = protocol
        self.progress = [_Progress(spec.rate, []) for spec in heads.specs]
        self.seeds = sorted({spec.seed for spec in heads.specs})
        self.order = {seed: generator_of(seed, ORDER) for seed in self.seeds}
        self.dropout = {seed: generator_of(seed, DROPOUT) for seed in self.seeds}
        self.optimizer = self._adam()

    def train(self, source: TrainingSource, loss: Loss) -> Iterator[TrainedHead]:
        """Train until every head has stopped; each is handed over when it has."""
        best = [self._weights_of(head) for head in range(len(self.heads.specs))]
        for epoch in range(self.protocol.epochs):
            for x, y in source.epoch([self.order[seed] for seed in self.seeds]):
                self._step(x, y, loss)
            for head, score in enumerate(source.validate(self.heads).tolist()):
                self.progress[head].after_epoch(score, self.protocol)
                self.optimizer.param_groups[head]["lr"] = self.progress[head].rate
                if self.progress[head].best_epoch == epoch:
                    best[head] = self._weights_of(head)
            done = [p.stopped(self.protocol) or epoch + 1 == self.protocol.epochs for p in self.progress]
            for spec, weights, progress, finished in zip(self.heads.specs, best, self.progress, done):
                if finished:
                    yield TrainedHead(spec, weights, tuple(progress.curve), progress.best)
            going = [head for head, finished in enumerate(done) if not finished]
            if not going:
                return
            if len(going) < len(done):
                self._keep(going)
                best = [best[head] for head in going]

    def _step(self, x: Tensor, y: Tensor, loss: Loss) -> None:
        row_of = [self.seeds.index(spec.seed) for spec in self.heads.specs]
        rows = torch.tensor(row_of, device=x.device)
        outputs = self.heads.outputs(self.heads.seen(x, row_of), self._dropout_mask(x.shape[1], rows))
        # A sum: each head's gradient is that of its own loss.
        gradients = torch.autograd.grad(loss(outputs, y[rows]).sum(), list(self.heads.weights.values()))
        for leaves, gradient in zip(self.leaves.values(), gradients):
            for leaf, part in zip(leaves, gradient.unbind()):
                leaf.grad = part
        self.optimizer.step()

    def _dropout_mask(self, batch: int, rows: Tensor) -> Tensor | None:
        rate = self.protocol.dropout
        if not rate or "hidden_weight" not in self.heads.weights:
            return None
        hidden = self.heads.weights["hidden_weight"].shape[2]
        drawn = torch.stack([torch.rand(batch, hidden, generator=self.dropout[seed]) for seed in self.seeds])
        return ((drawn >= rate) / (1 - rate)).to(rows.device)[rows]

    def _adam(self) -> torch.optim.Adam:
        """Adam without weight decay over each head's slices of the stacked weights, in groups with
        rates of their own.
        """
        for weight in self.heads.weights.values():
            weight.requires_grad_(True)
        self.leaves = {name: weight.detach().unbind() for name, weight in self.heads.weights.items()}
        groups = [
            {"params": [leaves[head] for leaves in self.leaves.values()], "lr": progress.rate}
            for head, progress in enumerate(self.progress)
        ]
        return torch.optim.Adam(groups, fused=True)

    def _keep(self, going: list[int]) -> None:
        old_leaves, old_state = self.leaves, self.optimizer.state
        self.heads = self.heads.take(going)
        self.progress = [self.progress[head] for head in going]
        used = {spec.seed for spec in self.heads.specs}
        self.seeds = [seed for seed in self.seeds if seed in used]
        self.optimizer = self._adam()
        for name, leaves in self.leaves.items():
            for leaf, head in zip(leaves, going):
                self.optimizer.state[leaf] = old_state[old_leaves[name][head]]

    def _weights_of(self, head: int) -> dict[str, Tensor]:
        return {name: weight.detach()[head].clone() for name, weight in self.heads.weights.items()}
