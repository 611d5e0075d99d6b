"""Wave front-end: raw audio to frames by a stack of strided convolutions.

The layout of wav2vec 2.0 (arXiv 2006.11477, section 2) that HuBERT and MERT keep: no bias, GELU, group norm
with one group per channel on the first layer only. At MERT's strides one frame is 320 samples, 75 Hz at 24 kHz.
"""

import math

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn


class FrontendConfig(BaseModel):
    """Sizes of the wave front-end; the defaults are MERT's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: int = Field(512, ge=1, description="output channels of every convolution")
    kernels: tuple[int, ...] = Field(
        (10, 3, 3, 3, 3, 2, 2), min_length=1, description="kernel of each layer, in its input's steps"
    )
    strides: tuple[int, ...] = Field(
        (5, 2, 2, 2, 2, 2, 2), min_length=1, description="stride of each layer, in its input's steps"
    )
    gradient_multiplier: float = Field(0.1, ge=0.0, description="factor on the gradient entering the front-end")

    @model_validator(mode="after")
    def _same_length(self) -> "FrontendConfig":
        if len(self.kernels) != len(self.strides):
            raise ValueError(f"kernels has {len(self.kernels)} layers but strides has {len(self.strides)}")
        return self

    @property
    def hop(self) -> int:
        """Samples from one frame to the next: the product of the strides."""
        return math.prod(self.strides)


class ConvLayer(nn.Module):
    """Convolution, optional per-channel group norm over time, GELU: [B, C_in, T] -> [B, C, T']."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, normalised: bool):
        super().__init__()
        self.conv = nn.Conv1d(in_channels, channels, kernel, stride=stride, bias=False)
        self.norm = nn.GroupNorm(channels, channels) if normalised else nn.Identity()

    def forward(self, signal: Tensor) -> Tensor:
        return nn.functional.gelu(self.norm(self.conv(signal)))


class ConvFrontend(nn.Module):
    """Audio [B, T] samples -> features [B, F, C] frames.

    The first layer's group norm takes its statistics over the whole row, padding included: padded rows give
    slightly other features than the same audio alone. Batch by length where that matters.
    """

    def __init__(self, config: FrontendConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(
            ConvLayer(1 if i == 0 else config.channels, config.channels, kernel, stride, normalised=i == 0)
            for i, (kernel, stride) in enumerate(zip(config.kernels, config.strides))
        )

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
            features = layer(features)
        return scale_gradient(features.transpose(1, 2), self.config.gradient_multiplier)


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
