"""The MERT encoder: wave front-end, projection, mask embedding, transformer. Config defaults are MERT 95M's."""

import math
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from model.conv_frontend import ConvFrontend, FrontendConfig
from model.transformer import PositionalConvolution, TransformerConfig, TransformerEncoderExtend


class EncoderConfig(BaseModel):
    """Everything that shapes the encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frontend: FrontendConfig = Field(FrontendConfig(), description="wave front-end")
    input_dropout: float = Field(0.1, ge=0.0, lt=1.0, description="probability on projected front-end features")
    transformer: TransformerConfig = Field(TransformerConfig(), description="transformer over frames")


@dataclass
class EncoderOutput:
    """What the encoder knows about a batch.

    hidden_states: layers + 1 tensors [B, F, D], see model/transformer.py. last: output [B, F, D].
    frontend_features: output of the wave front-end before its norm [B, F, C].
    """

    hidden_states: tuple[Tensor, ...]
    last: Tensor
    frontend_features: Tensor


class FeatureProjection(nn.Module):
    """Layer norm, linear map and dropout from front-end channels to the transformer's width: [B, F, C] -> [B, F, D]."""

    def __init__(self, channels: int, width: int, norm_epsilon: float, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=norm_epsilon)
        self.linear = nn.Linear(channels, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        return self.dropout(self.linear(self.norm(features)))


class MertEncoder(nn.Module):
    """Audio [B, T] samples -> frames [B, F, D]. Can be built on the meta device."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        transformer = config.transformer
        self.frontend = ConvFrontend(config.frontend)
        self.projection = FeatureProjection(
            config.frontend.channels, transformer.width, transformer.norm_epsilon, config.input_dropout
        )
        self.mask_embedding = nn.Parameter(torch.empty(transformer.width))
        self.transformer = TransformerEncoderExtend(transformer)
        self.initialise()

    def num_frames(self, num_samples: int) -> int:
        """Frames F that `forward` returns for audio of `num_samples` samples."""
        return self.frontend.num_frames(num_samples)

    def forward(self, audio: Tensor, mask: Tensor | None = None, valid: Tensor | None = None) -> EncoderOutput:
        """Encode a batch.

        Args:
            audio: [B, T] float in [-1, 1).
            mask: [B, F] bool; frames to replace by the mask embedding. None: no frame.
            valid: [B, F] bool; False for padding. None: every frame is valid.

        Raises ValueError when mask or valid has another shape than [B, F], or T is too short for one frame.
        """
        features = self.frontend(audio)
        hidden = self.projection(features)
        for name, frames in (("mask", mask), ("valid", valid)):
            if frames is not None and frames.shape != hidden.shape[:2]:
                expected = list(hidden.shape[:2])
                raise ValueError(f"{name} has shape {list(frames.shape)}, the encoder's frames {expected}")
        if mask is not None:
            hidden = torch.where(mask[:, :, None], self.mask_embedding.to(hidden.dtype), hidden)
        output = self.transformer(hidden, valid)
        return EncoderOutput(output.hidden_states, output.last, features)

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw all weights anew; the whole initialisation of the encoder is here.

        front-end convolutions   Kaiming normal
        linear maps              normal, deviation 0.02 (BERT); biases 0
        norms                    weight 1, bias 0
        positional convolution   normal, deviation sqrt(4 / (kernel * D)); its weight-norm gain makes that exact
        mask embedding           uniform in [0, 1)
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, PositionalConvolution):
                _initialise_position(module.conv)
        for layer in self.frontend.layers:
            nn.init.kaiming_normal_(layer.conv.weight)
        nn.init.uniform_(self.mask_embedding)


def _initialise_position(conv: nn.Conv1d) -> None:
    deviation = math.sqrt(4.0 / (conv.kernel_size[0] * conv.out_channels))
    conv.weight = torch.empty_like(conv.weight).normal_(std=deviation)  # the parametrisation splits it
    nn.init.zeros_(conv.bias)
