"""AdamW (arXiv 1711.05101) with parameter groups."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from mert_foundry.model.training.sharding import shard_like
from mert_foundry.model.transformer.layer import TransformerLayer


class OptimizerConfig(BaseModel):
    """AdamW's settings; the defaults are MERT 95M's. The rate comes from the schedule."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    betas: tuple[float, float] = Field((0.9, 0.98), description="decay per step of the gradients' mean and mean square")
    epsilon: float = Field(1e-6, gt=0.0, description="added to the root of the mean square")
    weight_decay: float = Field(
        0.01,
        ge=0.0,
        description="times the rate: weight lost per step; not on norms, biases, other vectors and embeddings",
    )
    gradient_clip: float = Field(10.0, gt=0.0, description="largest 2-norm of the whole gradient")


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over all trainable parameters, in groups alike in weight decay and `rate_multiplier`.

    Each step a group's rate is to be set to `rate_multiplier` times the schedule's. The parameters at multiplier 1
    come first, those with weight decay before those without.
    """
    multipliers, embeddings = _rate_multipliers(model), _embeddings(model)
    groups: dict[tuple[float, bool], list[tuple[str, nn.Parameter]]] = {(1.0, False): [], (1.0, True): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = _is_vector(parameter) or parameter in embeddings
            groups.setdefault((multipliers.get(parameter, 1.0), spared), []).append((name, parameter))
    settings = [
        {"params": named, "weight_decay": 0.0 if spared else config.weight_decay, "rate_multiplier": multiplier}
        for (multiplier, spared), named in groups.items()
        if named
    ]
    fused = next(
        model.parameters()
    ).is_cuda  # one kernel instead of many; the CPU keeps the plain, exactly repeatable one
    return torch.optim.AdamW(settings, betas=config.betas, eps=config.epsilon, fused=fused)


def restore_moments(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], source: object) -> None:
    """Load copies of the moments of a saved state dict, by the names of their parameters; the settings of the groups
    stay the optimiser's own.

    So the groups, and the order of parameters in them, may be others than when it was saved. Raises ValueError naming
    `source` when the state belongs to parameters of other names, or has no names (as before learning-rate multipliers).
    """
    own = optimizer.state_dict()["param_groups"]
    if not all("param_names" in group for group in state["param_groups"]):
        raise ValueError(
            f"{source}: its optimiser state has no names of weights, an older program wrote it; initial= takes its"
            " weights"
        )
    found, expected = _indices_by_name(state["param_groups"]), _indices_by_name(own)
    if other := sorted(found.keys() ^ expected.keys()):
        where = (
            "has moments there, but is not trained here"
            if other[0] in found
            else "is trained here, but has no moments there"
        )
        raise ValueError(f"{source}: optimiser state: {other[0]} {where}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        index: {
            key: value.clone() if key == "step" else _own_moment(parameters[index], value)
            for key, value in state["state"][found[name]].items()
        }
        for name, index in expected.items()
        if found[name] in state["state"]
    }
    optimizer.load_state_dict({"state": moments, "param_groups": own})


def _indices_by_name(groups: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The number of each parameter in a state dict."""
    return {name: index for group in groups for name, index in zip(group["param_names"], group["params"])}


def _own_moment(parameter: Tensor, value: Tensor) -> Tensor:
    """What this rank holds of a moment, on its parameter's device, in memory of its own: the value may
    lie in a file.
    """
    part = shard_like(parameter, value)
    return part.to(parameter.device, copy=True) if part is value else part


def _rate_multipliers(model: nn.Module) -> dict[nn.Parameter, float]:
    """The multiplier of each parameter within a transformer layer."""
    return {
        parameter: module.config.learning_rate_multiplier
        for module in model.modules()
        if isinstance(module, TransformerLayer)
        for parameter in module.parameters()
    }


def _embeddings(model: nn.Module) -> set[nn.Parameter]:
    """Tables of vectors: those of torch's Embedding, and parameters that are named so, as the codes' of a head."""
    return {
        parameter
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, nn.Embedding) or name.endswith("embedding")
    }


def _is_vector(parameter: Tensor) -> bool:
    """Biases, norm weights, the mask embedding, the weight-norm gain [1, 1, kernel]: one axis longer than 1."""
    return sum(size > 1 for size in parameter.shape) < 2


class ScheduleConfig(BaseModel):
    """How long training runs and at what rate; the defaults are MERT 95M's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(5e-4, gt=0.0, description="highest rate, reached at the end of the warm-up")
    warmup_steps: int = Field(32_000, ge=0, description="optimiser steps from rate 0 to the highest")
    total_steps: int = Field(400_000, ge=1, description="optimiser steps in all; the rate is 0 at the last")
    decay: Literal["linear", "cosine", "wsd"] = Field(
        "linear",
        description="how the rate falls after the warm-up: linear, cosine, or wsd (constant, then linear over the"
        " last decay_steps; such a run can be made longer until then)",
    )
    decay_steps: int | None = Field(None, ge=1, description="optimiser steps of the fall, with decay: wsd alone")

    @model_validator(mode="after")
    def _phases_fit(self) -> "ScheduleConfig":
        if self.warmup_steps >= self.total_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} is not below total_steps {self.total_steps}")
        if (self.decay == "wsd") != (self.decay_steps is not None):
            raise ValueError(
                f"decay is {self.decay}, decay_steps {self.decay_steps}: wsd needs decay_steps, linear and cosine take"
                " none"
            )
        if self.decay_steps is not None and self.warmup_steps + self.decay_steps > self.total_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} and decay_steps {self.decay_steps} are more than total_steps"
                f" {self.total_steps}"
            )
        return self


def learning_rate(config: ScheduleConfig, step: int) -> float:
    """Rate of optimiser step `step`, counted from 1.

    The cosine is that of SGDR's one cycle (arXiv 1608.03983), `wsd` warm-up-stable-decay (arXiv 2404.06395).
    """
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    left = max(config.total_steps - step, 0)
    share = left / (config.decay_steps or config.total_steps - config.warmup_steps)
    if config.decay == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    return config.learning_rate * min(share, 1.0)
