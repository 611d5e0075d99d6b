"""The MERT encoder: front-end, projection, mask embedding, transformer. Config defaults are MERT 95M's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from mert_foundry.model.frontend.choice import AnyFrontendConfig, build_frontend
from mert_foundry.model.frontend.convolution import FrontendConfig
from mert_foundry.model.linear import Linear
from mert_foundry.model.transformer.config import TransformerConfig
from mert_foundry.model.transformer.initialisation import initialise
from mert_foundry.model.transformer.masking import Masking, apply_masking
from mert_foundry.model.transformer.transformer import TransformerEncoderExtend


class EncoderConfig(BaseModel):
    """Everything that shapes the encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frontend: AnyFrontendConfig = Field(
        FrontendConfig(), discriminator="kind", description="front-end; kind: convolution where none is named"
    )
    input_norm: Literal["layer", "none"] = Field(
        "layer",
        description="layer: a layer norm of each frame's front-end features before the projection, which takes its"
        " level away; none: the features as they are, for log_mel, whose scale is fixed",
    )
    input_dropout: float = Field(0.1, ge=0.0, lt=1.0, description="probability on projected front-end features")
    transformer: TransformerConfig = Field(TransformerConfig(), description="transformer over frames")

    @field_validator("frontend", mode="before")
    @classmethod
    def _convolution_by_default(cls, value: Any) -> Any:
        return {"kind": "convolution", **value} if isinstance(value, Mapping) else value


@dataclass
class EncoderOutput:
    """What the encoder knows about a batch.

    hidden_states: layers + 1 tensors [B, F, D], see model/transformer/transformer.py. last: output [B, F, D].
    frontend_features: output of the front-end before its norm [B, F, C].
    attention: each layer's map [B, H, F, F]; None if they were not asked for.
    """

    hidden_states: tuple[Tensor, ...]
    last: Tensor
    frontend_features: Tensor
    attention: tuple[Tensor, ...] | None = None


class FeatureProjection(nn.Module):
    """Norm, linear map and dropout from front-end features to the transformer's width: [B, F, C] -> [B, F, D].

    The layer norm is HuBERT's, made for convolutions. It takes the level of a frame away, and with it most of what
    tells where a note begins or how loud a bin is: of log-CQT bins, a linear map of log-mel frames explains 73 % of the
    variance, of the same frames after a layer norm 50 % (docs/experiments.md).
    """

    def __init__(self, channels: int, width: int, norm: nn.Module, dropout: float):
        super().__init__()
        self.norm = norm
        self.linear = Linear(channels, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        return self.dropout(self.linear(self.norm(features)))


class MertEncoder(nn.Module):
    """Audio [B, T] samples, or tokens [B, 1, T] -> frames [B, F, D]. Can be built on the meta device."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        transformer = config.transformer
        self.frontend = build_frontend(config.frontend)
        channels = config.frontend.width
        norm = nn.LayerNorm(channels, transformer.norm_epsilon) if config.input_norm == "layer" else nn.Identity()
        self.projection = FeatureProjection(channels, transformer.width, norm, config.input_dropout)
        self.mask_embedding = nn.Parameter(torch.empty(transformer.width))
        self.transformer = TransformerEncoderExtend(transformer)
        self.initialise()

    @property
    def input_name(self) -> str:
        """What of a batch `forward` takes: audio or tokens."""
        return self.config.frontend.input_name

    @property
    def hop(self) -> int:
        """Samples from one frame to the next; of tokens, what shards count for one."""
        return self.config.frontend.hop

    @property
    def padding_invariant(self) -> bool:
        """Whether zeros after a row, marked as not `valid`, leave its frames as they are (to rounding)."""
        return self.config.frontend.padding_invariant

    def num_frames(self, length: int) -> int:
        """Frames F that `forward` returns for `length` samples, or tokens."""
        return self.frontend.num_frames(length)

    def forward(
        self,
        inputs: Tensor,
        mask: Tensor | Masking | None = None,
        valid: Tensor | None = None,
        memory: Tensor | None = None,
        memory_valid: Tensor | None = None,
        return_attention: bool = False,
    ) -> EncoderOutput:
        """Encode a batch.

        Args:
            inputs: audio [B, T] float in [-1, 1); with the front-end `embedding`, tokens [B, 1, T] int64.
            mask: [B, F] bool; frames to replace by the mask embedding; or a Masking. None: no frame.
            valid: [B, F] bool; False for padding. None: every frame is valid.
            memory, memory_valid, return_attention: see TransformerEncoderExtend.forward.

        Raises ValueError when mask or valid has another shape than [B, F], T is too short for one frame, or the
        memory does not fit the model.
        """
        features = self.frontend(inputs)
        hidden = self.projection(features)
        for name, frames in (("mask", mask), ("valid", valid)):
            if frames is not None and frames.shape != hidden.shape[:2]:
                expected = list(hidden.shape[:2])
                raise ValueError(f"{name} has shape {list(frames.shape)}, the encoder's frames {expected}")
        if mask is not None:
            hidden = apply_masking(hidden, mask, self.mask_embedding)
        output = self.transformer(hidden, valid, memory, memory_valid, return_attention)
        return EncoderOutput(output.hidden_states, output.last, features, output.attention)

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw all weights afresh, as model/transformer/initialisation.py tells."""
        initialise(self)
        nn.init.uniform_(self.mask_embedding)
