"""Whether a large run is about to go wrong: a few numbers on its weights, from one step now and then.

gradient_norms                by part of the model, before clipping
attention_entropy             nats, per layer, mean over heads; falls towards 0 before attention collapses
                              (arXiv 2303.06296)
attention_entropy_lowest      the same of each layer's lowest head
attention_logit_range         per layer, the largest difference between two logits of one query; the growth that
                              breaks a softmax in low precision (arXiv 2302.05442, section 3.2)
code_logit_range              per discrete target, the largest difference between two code logits of one frame
code_entropy                  nats, per discrete target, of the predicted distribution; mean over masked frames
code_usage_entropy            nats, of that distribution's mean over masked frames; low when all frames get one code
effective_rank                of output frames (Roy & Vetterli 2007), of 1 to 512; near 1 when features collapse

All but gradient norms come from a forward pass without dropout over the first rows of rank 0's batch, masked and
mixed as in training. It draws no random number and writes to no weight, so training does not depend on it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mert_foundry.model.objective.pretrain_model import PretrainModel
from mert_foundry.model.objective.target_alignment import align_valid
from mert_foundry.model.training.sharding import full_tensor
from mert_foundry.model.transformer.masking import Masking

ROWS = 2  # of the batch; attention maps take rows x heads x frames x frames floats per layer
RANK_FRAMES = 512


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """2-norms of the gradients by part: `encoder.transformer.layers.3`, `encoder.projection`, `heads.codes`, ...

    A part is a name up to its first number, or its first two words; weights without a gradient are left out.
    """
    gradients: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients.setdefault(_part(name), []).append(parameter.grad)
    norms = torch.stack([full_tensor(nn.utils.get_total_norm(of_part)) for of_part in gradients.values()])
    return dict(zip(gradients, norms.tolist(), strict=True))  # from the device in one copy


@torch.no_grad()
def diagnose(model: PretrainModel, batch: Mapping[str, Tensor], masking: Masking) -> dict[str, Any]:
    """All but the gradient norms, as plain numbers; batch and masks in their device form.

    The model is left in evaluation mode.
    """
    model.eval()
    inputs, rows = batch[model.encoder.input_name][:ROWS], masking.first(ROWS)
    valid = align_valid(batch["valid"][:ROWS], model.encoder.hop, rows.shape[1])
    encoded = model.encoder(inputs, mask=rows, valid=None if valid.all() else valid, return_attention=True)
    values: dict[str, Any] = {**attention_statistics(encoded.attention, valid)}
    masked = encoded.last[rows.predicted]
    codes = {spec.name: code_statistics(model.heads[spec.name](masked)) for spec in model.discrete_heads()}
    for name in ("code_logit_range", "code_entropy", "code_usage_entropy"):
        values[name] = {target: statistics[name] for target, statistics in codes.items()}
    return {**values, "effective_rank": effective_rank(encoded.last[valid])}


def attention_statistics(maps: Sequence[Tensor], valid: Tensor) -> dict[str, list[float]]:
    """From attention weights of each layer [B, H, F, F] (queries, keys), over valid [B, F] queries."""
    values = [_attention_of_layer(weights.float(), valid) for weights in maps]
    names = ("attention_entropy", "attention_entropy_lowest", "attention_logit_range")
    return dict(zip(names, torch.tensor(values).T.tolist()))


def _attention_of_layer(weights: Tensor, valid: Tensor) -> list[float]:
    """Entropy, that of the lowest head, and range of logits.

    Logits differ as the logarithms of their weights do. Weights of 0 belong to no logit, or to one so low that fp32
    cannot hold it: the range ends near 100.
    """
    logs = weights.log()
    entropies = -torch.special.xlogy(weights, weights).sum(3).transpose(0, 1)[:, valid].mean(1)
    lowest = torch.where(weights > 0, logs, torch.inf).amin(3)
    ranges = (logs.amax(3) - lowest).transpose(0, 1)[:, valid]
    return [float(entropies.mean()), float(entropies.min()), float(ranges.max())]


def code_statistics(logits: Tensor) -> dict[str, float]:
    """From code logits [K, S, V]; means over codebooks and frames."""
    predicted = logits.float().softmax(2)
    usage = predicted.mean(1)
    return {
        "code_logit_range": float((logits.amax(2) - logits.amin(2)).max()),
        "code_entropy": float(-torch.special.xlogy(predicted, predicted).sum(2).mean()),
        "code_usage_entropy": float(-torch.special.xlogy(usage, usage).sum(1).mean()),
    }


def effective_rank(frames: Tensor) -> float:
    """exp of the entropy of the singular values' shares, of at most 512 centred frames [S, D] spread over S.

    1 when all frames lie on a line, or are equal; NaN when a value is not finite.
    """
    sample = frames[:: -(-len(frames) // RANK_FRAMES)].float()
    centred = sample - sample.mean(0)
    if not centred.isfinite().all():
        return torch.nan
    singular = torch.linalg.svdvals(centred)
    shares = singular / singular.sum().clamp(min=torch.finfo(singular.dtype).tiny)
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


def _part(name: str) -> str:
    words = name.split(".")
    numbers = [i for i, word in enumerate(words) if word.isdigit()]
    return ".".join(words[: numbers[0] + 1] if numbers else words[:2])
