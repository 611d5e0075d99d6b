"""What predicts the targets from the encoder's frames: one head per target, built from plain values."""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn


class HeadSpec(BaseModel):
    """What a head must know about its target."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, pattern=r"^\w+$", description="key of the target in the batch")
    kind: Literal["discrete", "continuous"] = Field(description="discrete: codes [B, K, F]; continuous: [B, F, bins]")
    size: int = Field(ge=1, description="codebooks K of a discrete target, bins of a continuous one")
    codebook_size: int | None = Field(None, ge=2, description="entries per codebook of a discrete target")

    @model_validator(mode="after")
    def _codebook_fits_kind(self) -> "HeadSpec":
        if (self.codebook_size is not None) != (self.kind == "discrete"):
            raise ValueError(f"target {self.name} is {self.kind} but codebook_size is {self.codebook_size}")
        return self


class CodeHead(nn.Module):
    """Cosine logits for K codebooks (arXiv 2106.07447, eq. 3): frames [S, D] -> logits [K, S, codebook_size].

    Each codebook has its own projection to `final_dim` and its own embedding per code;
    logit = cosine(projection(frame), embedding) / temperature. All codebooks go through one linear map and one
    batched product of normalised vectors, in fp32 whatever autocast says: logits reach 10 and bf16 would keep
    them to 0.03 only.
    """

    def __init__(self, width: int, codebooks: int, codebook_size: int, final_dim: int, temperature: float):
        super().__init__()
        self.codebooks = codebooks
        self.temperature = temperature
        self.projection = nn.Linear(width, codebooks * final_dim)
        self.embedding = nn.Parameter(torch.empty(codebooks, codebook_size, final_dim))
        self.initialise()

    def initialise(self) -> None:
        """Draw all weights anew: projection as in the encoder, embeddings uniform in [0, 1) as HuBERT's.

        Uniform embeddings lie in a cone, so the first logits are near each other and the loss starts near log(V).
        """
        nn.init.normal_(self.projection.weight, std=0.02)
        nn.init.zeros_(self.projection.bias)
        nn.init.uniform_(self.embedding)

    def forward(self, frames: Tensor) -> Tensor:
        with torch.autocast(frames.device.type, enabled=False):
            projected = self.projection(frames.float()).unflatten(1, (self.codebooks, -1)).transpose(0, 1)
            directions = nn.functional.normalize(projected, dim=2)
            codes = nn.functional.normalize(self.embedding, dim=2)
            return torch.bmm(directions, codes.transpose(1, 2)) / self.temperature


class RegressionHead(nn.Module):
    """Linear regression in fp32: frames [S, D] -> values [S, bins]."""

    def __init__(self, width: int, bins: int):
        super().__init__()
        self.linear = nn.Linear(width, bins)
        self.initialise()

    def initialise(self) -> None:
        """Draw all weights anew, as the encoder's linear maps."""
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, frames: Tensor) -> Tensor:
        with torch.autocast(frames.device.type, enabled=False):
            return self.linear(frames.float())


def build_head(spec: HeadSpec, width: int, final_dim: int, temperature: float) -> nn.Module:
    """The head for one target; `final_dim` and `temperature` matter to discrete ones only."""
    if spec.kind == "discrete":
        return CodeHead(width, spec.size, spec.codebook_size, final_dim, temperature)
    return RegressionHead(width, spec.size)
