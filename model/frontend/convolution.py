"""Wave front-end: raw audio to frames by a stack of strided convolutions.

The layout of wav2vec 2.0 (arXiv 2006.11477, section 2) that HuBERT and MERT keep: GELU, no bias, and either group
norm with one group per channel on the first layer only (HuBERT base, MERT) or layer norm over channels on every
layer (HuBERT large). At MERT's strides one frame is 320 samples, 75 Hz at 24 kHz.
"""

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class FrontendConfig(BaseModel):
    """Sizes of the wave front-end; the defaults are MERT's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["convolution"] = Field("convolution", description="Strided convolutions over the wave")
    channels: int = Field(512, ge=1, description="output channels of every convolution")
    kernels: tuple[int, ...] = Field(
        (10, 3, 3, 3, 3, 2, 2), min_length=1, description="kernel of each layer, in its input's steps"
    )
    strides: tuple[int, ...] = Field(
        (5, 2, 2, 2, 2, 2, 2), min_length=1, description="stride of each layer, in its input's steps"
    )
    bias: bool = Field(False, description="whether the convolutions have a bias")
    norm: Literal["group", "layer"] = Field(
        "group", description="group: each channel over time, first layer only; layer: over channels, every layer"
    )
    gradient_multiplier: float = Field(0.1, ge=0.0, description="factor on the gradient entering the front-end")
    activation_checkpointing: bool = Field(
        False, description="keep the input of each layer only and compute the rest again in the backward pass"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "FrontendConfig":
        if len(self.kernels) != len(self.strides):
            raise ValueError(f"kernels has {len(self.kernels)} layers but strides has {len(self.strides)}")
        if min(self.kernels + self.strides) < 1:
            raise ValueError(f"kernels {self.kernels} and strides {self.strides} must all be at least 1")
        return self

    @property
    def hop(self) -> int:
        """Samples from one frame to the next: the product of the strides."""
        return math.prod(self.strides)

    @property
    def width(self) -> int:
        """Features per frame."""
        return self.channels

    @property
    def learned_width(self) -> int:
        """Features per frame, the first ones, that weights make."""
        return self.width

    @property
    def sample_rate(self) -> None:
        """Hz the front-end is made for: the convolutions learn whatever rate they are given."""
        return None

    @property
    def padding_invariant(self) -> bool:
        """Whether zeros after a row leave its frames as they are; not with group norm, see ConvFrontend."""
        return self.norm == "layer"


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [B, C, T]."""

    def forward(self, signal: Tensor) -> Tensor:
        return super().forward(signal.transpose(1, 2)).transpose(1, 2)


class ConvLayer(nn.Module):
    """Convolution, norm, GELU: [B, C_in, T] -> [B, C, T']."""

    def __init__(self, conv: nn.Conv1d, norm: nn.Module):
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, signal: Tensor) -> Tensor:
        return nn.functional.gelu(self.norm(self.conv(signal)))


class ConvFrontend(nn.Module):
    """Audio [B, T] samples -> features [B, F, C] frames; frame i sees the samples from i * hop on.

    Group norm takes its statistics over the whole row, padding included: padded rows give slightly other features
    than the same audio alone, so batch by length where that matters. With layer norm a frame depends on the samples
    it sees and on nothing else.
    """

    def __init__(self, config: FrontendConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(self._layer(i) for i in range(len(config.kernels)))

    def _layer(self, i: int) -> ConvLayer:
        config, channels = self.config, self.config.channels
        conv = nn.Conv1d(channels if i else 1, channels, config.kernels[i], stride=config.strides[i], bias=config.bias)
        if config.norm == "layer":
            return ConvLayer(conv, ChannelNorm(channels))
        return ConvLayer(conv, nn.Identity() if i else nn.GroupNorm(channels, channels))

    def num_frames(self, num_samples: int) -> int:
        """Frames F that `forward` returns for `num_samples` samples (0 if they are too few for one frame)."""
        for kernel, stride in zip(self.config.kernels, self.config.strides):
            num_samples = max(0, (num_samples - kernel) // stride + 1)
        return num_samples

    def forward(self, audio: Tensor) -> Tensor:
        """Audio [B, T] -> features [B, F, C]. Raises ValueError when T is too short for one frame."""
        if self.num_frames(audio.shape[1]) == 0:
            raise ValueError(f"audio of {audio.shape[1]} samples is too short: the front-end gives 0 frames for it")
        features = audio[:, None]
        for layer in self.layers:
            features = self._run(layer, features)
        return scale_gradient(features.transpose(1, 2), self.config.gradient_multiplier)

    def _run(self, layer: nn.Module, features: Tensor) -> Tensor:
        if self.training and self.config.activation_checkpointing:
            return checkpoint(layer, features, use_reentrant=False)
        return layer(features)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(context, values: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * context.factor, None


def scale_gradient(values: Tensor, factor: float) -> Tensor:
    """Identity whose gradient is multiplied by `factor`."""
    return values if factor == 1.0 else _ScaleGradient.apply(values, factor)
