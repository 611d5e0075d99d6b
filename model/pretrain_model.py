"""Encoder, heads and losses behind one forward: what the trainer moves.

Target frame i belongs to encoder frame i. The encoder may return fewer frames than there are targets (120,000
samples: 375 target frames, 374 encoder frames); the targets beyond its length are dropped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from model.encoder import EncoderConfig, MertEncoder
from model.heads import HeadSpec, build_head
from model.losses import code_cross_entropy, correct_codes, feature_energy, squared_error
from model.seeding import derive_seed

FEATURE_PENALTY = "feature_penalty"  # the loss term that belongs to no target


class ObjectiveConfig(BaseModel):
    """What is predicted how, and how much each term counts; the defaults are MERT 95M's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    final_dim: int = Field(64, ge=1, description="features in which codes are compared, per codebook")
    temperature: float = Field(0.1, gt=0.0, description="divides the cosine logits")
    target_weights: dict[str, float] = Field({}, description="factor on each target's loss by name; 1 where not named")
    feature_penalty: float = Field(10.0, ge=0.0, description="factor on the mean square of front-end features")


class PretrainModel(nn.Module):
    """MERT's objective (arXiv 2306.00107): codes and values of masked frames, from the frames around them."""

    def __init__(self, encoder: EncoderConfig, heads: Sequence[HeadSpec], objective: ObjectiveConfig):
        """Raises ValueError when no head is given, names repeat, or target_weights names an unknown target."""
        super().__init__()
        _check_names([spec.name for spec in heads], objective)
        self.head_specs = tuple(heads)
        self.objective = objective
        self.encoder = MertEncoder(encoder)
        width = encoder.transformer.width
        self.heads = nn.ModuleDict(
            {spec.name: build_head(spec, width, objective.final_dim, objective.temperature) for spec in heads}
        )

    def forward(self, batch: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        """Sums over a batch in its device form (model/device_batch.py), to be added up by name and then divided.

        mask is [B, F] bool with F the encoder's frames and must lie inside `valid`. Logits are computed on
        masked frames only. Returns, with gradient where it is a loss:

        loss/{target}            codes: cross-entropy over codebooks and masked frames; values: squared error over
                                 masked frames, mean over bins; scalars
        loss/feature_penalty     mean square of front-end features over valid frames; scalar
        correct/{target}         masked frames with the right code, per codebook [K]; discrete targets only
        masked_frames, valid_frames     what the sums are divided by (`count_frames`)
        """
        num_frames = mask.shape[1]
        valid = batch["valid"][:, :num_frames]
        encoded = self.encoder(batch["audio"], mask=mask, valid=None if valid.all() else valid)
        masked = encoded.last[mask]

        sums = count_frames(mask, valid)
        sums[f"loss/{FEATURE_PENALTY}"] = feature_energy(encoded.frontend_features, valid)
        for spec in self.head_specs:
            prediction = self.heads[spec.name](masked)
            if spec.kind == "discrete":
                codes = batch[spec.name][:, :, :num_frames].transpose(1, 2)[mask]
                sums[f"loss/{spec.name}"] = code_cross_entropy(prediction, codes)
                sums[f"correct/{spec.name}"] = correct_codes(prediction, codes)
            else:
                sums[f"loss/{spec.name}"] = squared_error(prediction, batch[spec.name][:, :num_frames][mask])
        return sums

    def zero_sums(self) -> dict[str, Tensor]:
        """What `forward` returns for no frame at all; in float64, so that sums over many batches stay exact."""
        zeros = torch.zeros(1, dtype=torch.float64, device=self.encoder.mask_embedding.device)
        sums = {name: zeros[0] for name in ("masked_frames", "valid_frames", f"loss/{FEATURE_PENALTY}")}
        for spec in self.head_specs:
            sums[f"loss/{spec.name}"] = zeros[0]
            if spec.kind == "discrete":
                sums[f"correct/{spec.name}"] = zeros.repeat(spec.size)
        return sums

    def mean_losses(self, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each term's mean per frame by name, unweighted. `counts` holds the frames of all ranks and micro-batches."""
        masked, valid = float(counts["masked_frames"]), float(counts["valid_frames"])
        means = {spec.name: sums[f"loss/{spec.name}"] / masked for spec in self.head_specs}
        return {**means, FEATURE_PENALTY: sums[f"loss/{FEATURE_PENALTY}"] / valid}

    def weighted_loss(self, means: Mapping[str, Tensor]) -> Tensor:
        """The training loss from `mean_losses`: sum of weight x mean over all terms; scalar."""
        weights = {FEATURE_PENALTY: self.objective.feature_penalty, **self.objective.target_weights}
        return sum(weights.get(name, 1.0) * mean for name, mean in means.items())

    def summarise(self, totals: Mapping[str, Tensor]) -> dict[str, Any]:
        """Plain numbers from the sums of all ranks.

        loss: weighted sum. losses: mean per frame of each term. accuracy: share of right codes per codebook, a list
        for each discrete target.
        """
        means = self.mean_losses(totals, totals)
        discrete = [spec.name for spec in self.head_specs if spec.kind == "discrete"]
        return {
            "loss": float(self.weighted_loss(means)),
            "losses": {name: float(mean) for name, mean in means.items()},
            "accuracy": {name: (totals[f"correct/{name}"] / totals["masked_frames"]).tolist() for name in discrete},
        }


def count_frames(mask: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """What losses are divided by: masked and valid frames of a batch; mask and valid are [B, F] bool."""
    return {"masked_frames": mask.sum(), "valid_frames": valid.sum()}


def build_pretrain_model(
    encoder: EncoderConfig, heads: Sequence[HeadSpec], objective: ObjectiveConfig, seed: int
) -> PretrainModel:
    """A model whose first weights are a pure function of its config and `seed` (the global generator is left alone)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        return PretrainModel(encoder, heads, objective)


def _check_names(names: list[str], objective: ObjectiveConfig) -> None:
    if not names:
        raise ValueError("no target to predict: heads is empty")
    if len(set(names)) < len(names) or FEATURE_PENALTY in names:
        raise ValueError(f"target names must differ from each other and from {FEATURE_PENALTY}: {names}")
    unknown = sorted(set(objective.target_weights) - set(names))
    if unknown:
        raise ValueError(f"target_weights names {unknown}, but the targets are {names}")
