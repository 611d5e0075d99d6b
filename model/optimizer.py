"""AdamW (arXiv 1711.05101) with parameter groups."""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class OptimizerConfig(BaseModel):
    """AdamW's settings; the defaults are MERT 95M's. The rate comes from the schedule."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    betas: tuple[float, float] = Field((0.9, 0.98), description="decay per step of the gradients' mean and mean square")
    epsilon: float = Field(1e-6, gt=0.0, description="added to the root of the mean square")
    weight_decay: float = Field(0.01, ge=0.0, description="times the rate: weight lost per step; not on vectors")
    gradient_clip: float = Field(10.0, gt=0.0, description="largest 2-norm of the whole gradient")


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over all trainable parameters, in two groups: with and without weight decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if not _is_vector(p)], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if _is_vector(p)], "weight_decay": 0.0},
    ]
    fused = parameters[0].is_cuda  # one kernel instead of many; the CPU keeps the plain, exactly repeatable one
    return torch.optim.AdamW(groups, betas=config.betas, eps=config.epsilon, fused=fused)


def _is_vector(parameter: Tensor) -> bool:
    """Biases, norm weights, the mask embedding, the weight-norm gain [1, 1, kernel]: one axis longer than 1."""
    return sum(size > 1 for size in parameter.shape) < 2
