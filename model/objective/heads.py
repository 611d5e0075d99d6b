"""What predicts the targets from the encoder's frames: one head per target, built from plain values."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import Tensor, nn

from mert_foundry.model.autocast import without_autocast
from mert_foundry.model.objective.value_scale import Companding, ValueScale

MIN_TEMPERATURE = 0.01  # a learnt one stays above; CLIP (arXiv 2103.00020, section 2.5) and MERT bound it alike


class HeadSpec(BaseModel):
    """What a head must know about its target."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, pattern=r"^\w+$", description="key of the target in the batch")
    kind: Literal["discrete", "continuous"] = Field(description="discrete: codes [B, K, F]; continuous: [B, F, bins]")
    size: int = Field(ge=1, description="codebooks K of a discrete target, bins of a continuous one")
    codebook_size: int | None = Field(None, ge=2, description="entries per codebook of a discrete target")
    frame_rate: int = Field(75, ge=1, description="target frames per second, Hz")
    companding: Companding | None = Field(None, description="how a continuous target stored as uint8 is expanded")
    partial: bool = Field(False, description="whether some rows of a batch lack the target: present/{name} says which")
    scale: ValueScale | None = Field(
        None, description="scale of a continuous target's head; null: the values as stored"
    )

    @model_validator(mode="after")
    def _fits_kind(self) -> "HeadSpec":
        if (self.codebook_size is not None) != (self.kind == "discrete"):
            raise ValueError(f"target {self.name} is {self.kind} but codebook_size is {self.codebook_size}")
        if self.companding is not None and self.kind == "discrete":
            raise ValueError(f"target {self.name} is discrete but has companding {self.companding!r}")
        if self.scale is not None:
            self._check_scale(self.scale)
        return self

    def _check_scale(self, scale: ValueScale) -> None:
        if self.kind == "discrete":
            raise ValueError(f"target {self.name} is discrete but has a scale")
        deviations = scale.mean if scale.deviation is None else scale.deviation
        if {len(scale.mean), len(deviations)} != {self.size}:
            lengths = f"{len(scale.mean)} means and {len(deviations)} deviations"
            raise ValueError(f"target {self.name} has {self.size} bins, its scale {lengths}")
        if scale.logarithmic and self.companding is None:
            raise ValueError(f"target {self.name} has no companding, which a logarithmic scale follows")

    @property
    def predicted(self) -> int:
        """Values of a continuous target that are predicted for a frame."""
        return self.size if self.scale is None else self.scale.size

    @model_serializer(mode="wrap")
    def _without_scale(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Heads in the scale of the shards, with a target in every row, read as they did before there were others.
        return {name: value for name, value in fields(self).items() if name not in ("scale", "partial") or value}


class CodeHead(nn.Module):
    """Cosine logits for K codebooks (arXiv 2106.07447, eq. 3): frames [S, D] -> logits [K, S, codebook_size].

    logit = cosine(projection(frame), embedding) / temperature, in `final_dim` dimensions. All codebooks go through
    one linear map and one batched product of normalised vectors, in fp32 whatever autocast says: logits reach 10
    and bf16 would keep them to 0.03 only.

    Args:
        tied_projection: one projection for all codebooks, instead of one each.
        learnable_temperature: each codebook learns its own, from `temperature` on; the parameter is the logarithm
            of 1 / temperature, [K] fp32.
    """

    def __init__(
        self,
        width: int,
        codebooks: int,
        codebook_size: int,
        final_dim: int,
        temperature: float,
        tied_projection: bool = False,
        learnable_temperature: bool = False,
    ):
        super().__init__()
        self.codebooks = codebooks
        self.temperature = temperature
        self.tied_projection = tied_projection
        self.projection = nn.Linear(width, final_dim if tied_projection else codebooks * final_dim)
        self.embedding = nn.Parameter(torch.empty(codebooks, codebook_size, final_dim))
        self.log_scale = nn.Parameter(torch.empty(codebooks)) if learnable_temperature else None
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw all weights afresh: projection as in the encoder, embeddings uniform in [0, 1) as HuBERT's.

        Uniform embeddings lie in a cone, so the first logits are near each other and the loss starts near log(V).
        """
        nn.init.normal_(self.projection.weight, std=0.02)
        nn.init.zeros_(self.projection.bias)
        nn.init.uniform_(self.embedding)
        if self.log_scale is not None:
            self.log_scale.fill_(-math.log(self.temperature))

    def forward(self, frames: Tensor, codebooks: Sequence[int] | None = None) -> Tensor:
        """Frames [S, D] -> logits [K, S, codebook_size] in fp32, or of the named codebooks alone, in their order."""
        with without_autocast(frames.device):
            codes = nn.functional.normalize(_choose(self.embedding, codebooks), dim=2)
            directions = nn.functional.normalize(self._project(frames.float(), codebooks), dim=2)
            scaled = directions * self._scale(codebooks)
            return torch.bmm(scaled.expand(len(codes), -1, -1), codes.transpose(1, 2))

    @torch.no_grad()
    def limit_temperature(self) -> None:
        """Bring learnt temperatures back to MIN_TEMPERATURE or above; called after each optimiser step.

        A clamp in the forward pass would do the same, but a parameter beyond it would get no gradient to return.
        """
        if self.log_scale is not None:
            self.log_scale.clamp_(max=-math.log(MIN_TEMPERATURE))

    def _project(self, frames: Tensor, codebooks: Sequence[int] | None) -> Tensor:
        """[S, D] -> [K, S, final_dim]; [1, S, final_dim] where the projection is tied."""
        weight: Tensor = self.projection.weight
        bias: Tensor = self.projection.bias
        if codebooks is not None and not self.tied_projection:
            weight = _choose(weight.unflatten(0, (self.codebooks, -1)), codebooks).flatten(0, 1)
            bias = _choose(bias.unflatten(0, (self.codebooks, -1)), codebooks).flatten()
        projected = nn.functional.linear(frames, weight, bias)
        return projected.unflatten(1, (-1, self.embedding.shape[2])).transpose(0, 1)

    def _scale(self, codebooks: Sequence[int] | None) -> Tensor | float:
        """1 / temperature; [K, 1, 1] where it is learnt."""
        if self.log_scale is None:
            return 1.0 / self.temperature
        return _choose(self.log_scale, codebooks).exp()[:, None, None]


class RegressionHead(nn.Module):
    """Linear regression in fp32: frames [S, D] -> values [S, bins]."""

    def __init__(self, width: int, bins: int):
        super().__init__()
        self.linear = nn.Linear(width, bins)
        self.initialise()

    def initialise(self) -> None:
        """Draw all weights afresh, as the encoder's linear maps."""
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, frames: Tensor) -> Tensor:
        with without_autocast(frames.device):
            return self.linear(frames.float())


def _choose(values: Tensor, codebooks: Sequence[int] | None) -> Tensor:
    """Rows of a tensor; those left out get a zero gradient, not none, so DDP sees every parameter used."""
    return values if codebooks is None else torch.stack([values[k] for k in codebooks])


def code_cross_entropy(logits: Tensor, codes: Tensor) -> Tensor:
    """Cross-entropy of logits [K, S, V] with codes [S, K], summed over codebooks and frames, in fp32: scalar."""
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), codes.T.flatten(), reduction="sum")


def correct_codes(logits: Tensor, codes: Tensor) -> Tensor:
    """Frames whose most likely code is the right one, per codebook: logits [K, S, V], codes [S, K] -> [K]."""
    return (logits.argmax(2) == codes.T).sum(1)


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error of [S, bins], mean over bins and summed over frames, in fp32: scalar."""
    return (prediction.float() - target.float()).square().mean(1).sum()


def feature_energy(features: Tensor, valid: Tensor) -> Tensor:
    """Mean square over channels of features [B, F, C], summed over frames where valid [B, F], in fp32: scalar."""
    return (features.float().square().mean(2) * valid).sum()
