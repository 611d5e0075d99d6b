"""Many heads as one batched problem: their weights stacked, one matrix product for all.

A head is a multilayer perceptron with one hidden layer of ReLU units and dropout, or a linear map. It sees one layer of
the encoder, or the sum of all layers weighted by the softmax of a learnt vector that starts at zeros (MARBLE, arXiv
2306.10548, constrained track). Heads of the same seed start from the same values, see the batches in the same order,
and drop the same hidden units, whichever layer and learning rate they have: as if each had been run alone with that
seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_ROWS_AT_ONCE = 2048
# Streams of random numbers of one seed.
INITIAL_VALUES, ORDER, DROPOUT = range(3)


@dataclass(frozen=True)
class ProbeHeadSpec:
    """One head: the layer it sees (None: the weighted sum of all), its learning rate, its seed."""

    layer: int | None
    rate: float
    seed: int


@dataclass(frozen=True)
class HeadSizes:
    """Layers and dim of the features, hidden units (None: a linear head), outputs."""

    layers: int
    dim: int
    hidden: int | None
    outputs: int


def generator_of(seed: int, stream: int) -> torch.Generator:
    """Random numbers of one seed for one use; uses do not disturb each other."""
    state = np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


class HeadStack:
    """Heads that all see a single layer, or all the weighted sum.

    Attributes:
        specs: of the heads, H of them.
        weights: name to tensor [H, ...]: `hidden_weight` [H, dim, hidden], `hidden_bias` [H, 1, hidden], `weight`
            [H, hidden, outputs], `bias` [H, 1, outputs], and for weighted sums `mix` [H, layers].
    """

    def __init__(self, specs: Sequence[ProbeHeadSpec], weights: dict[str, Tensor]):
        self.specs = tuple(specs)
        self.weights = weights
        self.device = weights["weight"].device
        self.weighted_sum = "mix" in weights
        self._layers = torch.tensor([-1 if spec.layer is None else spec.layer for spec in specs], device=self.device)

    @classmethod
    def initial(cls, specs: Sequence[ProbeHeadSpec], sizes: HeadSizes, device: torch.device) -> "HeadStack":
        """Heads with the initial values of their seeds, drawn as `torch.nn.Linear` draws them."""
        by_seed = {seed: _initial_values(seed, sizes) for seed in {spec.seed for spec in specs}}
        names = by_seed[specs[0].seed]
        weights = {name: torch.stack([by_seed[spec.seed][name] for spec in specs]).to(device) for name in names}
        if specs[0].layer is None:
            weights["mix"] = torch.zeros(len(specs), sizes.layers, device=device)
        return cls(specs, weights)

    def take(self, heads: Sequence[int]) -> "HeadStack":
        """A stack of some of these heads, with a copy of their weights."""
        index = torch.tensor(heads, dtype=torch.long, device=self.device)
        specs = [self.specs[head] for head in heads]
        return HeadStack(specs, {name: weight.detach()[index] for name, weight in self.weights.items()})

    def seen(self, x: Tensor, row_of: Sequence[int]) -> Tensor:
        """What each head sees of the batch of its seed.

        Args:
            x: [seeds, B, layers, dim], a batch for each seed.
            row_of: for each head, the index of its seed in `x`.

        Returns: [H, B, dim].
        """
        rows = torch.tensor(row_of, device=self.device)
        if not self.weighted_sum:
            return x[rows, :, self._layers]
        shares = torch.softmax(self.weights["mix"], dim=1)
        sums = x.new_empty(len(row_of), x.shape[1], x.shape[3])
        for row in sorted(set(row_of)):
            heads = [head for head, own in enumerate(row_of) if own == row]
            # [heads, layers] times [B, layers, dim] is [B, heads, dim].
            part = torch.matmul(shares[heads], x[row]).transpose(0, 1)
            sums = sums.index_copy(0, torch.tensor(heads, device=self.device), part)
        return sums

    def outputs(self, seen: Tensor, dropout_mask: Tensor | None = None) -> Tensor:
        """Outputs [H, B, outputs], before any softmax or sigmoid, of what the heads see, [H, B, dim].

        Args:
            dropout_mask: [H, B, hidden], the factors of dropout, 0 or 1 / (1 - rate); None: no dropout.
        """
        weights = self.weights
        if "hidden_weight" in weights:
            seen = torch.baddbmm(weights["hidden_bias"], seen, weights["hidden_weight"]).relu()
            if dropout_mask is not None:
                seen = seen * dropout_mask
        return torch.baddbmm(weights["bias"], seen, weights["weight"])

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Outputs [H, N, outputs] of features [N, layers, dim]."""
        parts = []
        for rows in x.split(_ROWS_AT_ONCE):
            parts.append(self.outputs(self.seen(rows[None], [0] * len(self.specs))))
        return torch.cat(parts, dim=1)


def _initial_values(seed: int, sizes: HeadSizes) -> dict[str, Tensor]:
    generator = generator_of(seed, INITIAL_VALUES)

    def uniform(fan_in: int, *shape: int) -> Tensor:
        return (2 * torch.rand(shape, generator=generator) - 1) / fan_in**0.5

    if sizes.hidden is None:
        return {
            "weight": uniform(sizes.dim, sizes.dim, sizes.outputs),
            "bias": uniform(sizes.dim, 1, sizes.outputs),
        }
    return {
        "hidden_weight": uniform(sizes.dim, sizes.dim, sizes.hidden),
        "hidden_bias": uniform(sizes.dim, 1, sizes.hidden),
        "weight": uniform(sizes.hidden, sizes.hidden, sizes.outputs),
        "bias": uniform(sizes.hidden, 1, sizes.outputs),
    }
