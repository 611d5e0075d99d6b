"""An exponential moving average of the weights, kept beside those that are trained; training does not depend on it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mert_foundry.model.runs.checkpoint import check_weights
from mert_foundry.model.training.sharding import local_shard, shard_like

RAMP = 10  # steps: the decay is (1 + step) / (RAMP + step) until that reaches the one asked for


def decay_at(decay: float, step: int) -> float:
    """The share of the average that stays at optimiser step `step`, counted from 1.

    It rises, so that the random first weights do not weigh on a short run: at 0.999 they would still be 37 % of it
    after 1,000 steps.
    """
    return min(decay, (1 + step) / (RAMP + step))


class WeightAverage:
    """average = decay x average + (1 - decay) x weight after each step, in fp32, for every weight of the model.

    It takes as much memory as the weights, 4 bytes each on their device: on rank 0 alone where all ranks have the same
    weights, on each its part where they are divided.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = model
        self.decay = decay
        self.weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step `step`, counted from 1."""
        move = get_ema_multi_avg_fn(decay_at(self.decay, step))
        weights = [local_shard(weight) for weight in self.model.state_dict().values()]
        move([local_shard(average) for average in self.weights.values()], weights, step)

    def load(self, weights: Mapping[str, Tensor], source: object) -> None:
        """Go on from an average that was saved, on any device. Raises as `check_weights`, naming `source`."""
        check_weights(self.weights, weights, f"{source}: averaged weights")
        for name, weight in weights.items():
            self.weights[name].copy_(shard_like(self.weights[name], weight))
