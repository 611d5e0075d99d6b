"""Wave front-end: raw audio to frames by a stack of strided convolutions.

The layout of wav2vec 2.0 (arXiv 2006.11477, section 2) that HuBERT and MERT keep: GELU, no bias, and either group
norm with one group per channel on the first layer only (HuBERT base, MERT) or layer norm over channels on every
layer (HuBERT large). At MERT's strides one frame is 320 samples, 75 Hz at 24 kHz.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mert_foundry.model.autocast import without_autocast
from mert_foundry.model.frontend.strided_convolution import strided_convolution
from mert_foundry.model.layer_operations import layer_operations


class FrontendConfig(BaseModel):
    """Sizes of the wave front-end; the defaults are MERT's."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    input_name: ClassVar[str] = "audio"

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


class WaveLayer(nn.Module):
    """The first layer: convolution of one channel, norm, GELU; audio [B, T] -> [B, P, C]."""

    def __init__(self, conv: nn.Conv1d, norm: nn.GroupNorm | nn.LayerNorm):
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, audio: Tensor, num_frames: Tensor, length: int) -> Tensor:
        """The first `length` frames of audio that goes on with zeros; row b has `num_frames` [B] frames of its own."""
        (kernel,), (stride,) = self.conv.kernel_size, self.conv.stride
        needed = (length - 1) * stride + kernel
        windows = nn.functional.pad(audio, (0, max(0, needed - audio.shape[1]))).unfold(1, kernel, stride)[:, :length]
        weight, bias = self.conv.weight[:, 0], self.conv.bias
        if isinstance(self.norm, nn.GroupNorm):
            weight, shift = _normalised(weight, self.norm, windows, num_frames)
            if bias is not None:
                shift = shift + 0.0 * bias  # the norm takes it away; DDP waits for its gradient, which is zero
            return nn.functional.gelu(_product_of_windows(windows, weight, shift))
        return nn.functional.gelu(self.norm(_product_of_windows(windows, weight, bias)))


class ConvLayer(nn.Module):
    """Convolution, norm, GELU: frames [M, C_in] -> [M / stride, C], rows of the batch one after another."""

    def __init__(self, conv: nn.Conv1d, norm: nn.LayerNorm | nn.Identity):
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, frames: Tensor) -> Tensor:
        convolved = strided_convolution(frames, self.conv.weight, self.conv.stride[0])
        if self.conv.bias is not None:
            convolved = convolved + self.conv.bias
        return nn.functional.gelu(self.norm(convolved))


def _normalised(weight: Tensor, norm: nn.GroupNorm, windows: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [B, C, K] and biases [B, C] that give a row's frames convolved and normalised over its own frames.

    A channel is w . x over the windows x of a row, so its mean over time is w . mean(x) and its variance w S w, with S
    the K x K covariance of the windows: statistics of ten numbers, where the frames have 512 times 24,000. In float64,
    since w can be a high-pass filter and nearly all of x below it. The convolution's own bias is a part of the mean.
    """
    with without_autocast(windows.device):
        taps = weight.double()
        mean, covariance = _moments(windows.double(), num_frames)
        variance = ((taps @ covariance) * taps).sum(2)
        scale = norm.weight.double() * torch.rsqrt(variance + norm.eps)
        scaled = taps * scale[:, :, None]
        shift = norm.bias.double() - (scaled @ mean[:, :, None]).squeeze(2)
        return scaled.to(weight.dtype), shift.to(weight.dtype)


def _moments(windows: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [B, K] and covariance [B, K, K] of the first `num_frames` [B] windows of each row of [B, P, K]."""
    own = (torch.arange(windows.shape[1], device=windows.device) < num_frames[:, None]).to(windows.dtype)[:, :, None]
    count = num_frames.clamp(min=1).to(windows.dtype)[:, None]
    mean = (windows * own).sum(1) / count
    centred = (windows - mean[:, None]) * own
    return mean, centred.transpose(1, 2) @ centred / count[:, :, None]


def _product_of_windows(windows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Windows [B, P, K], weight [C, K] or [B, C, K], bias [C] or [B, C] -> [B, P, C].

    The bias is one tap more, over ones. Zeros fill the taps up to a multiple of 8, which matrix units of GPUs need in
    bf16.
    """
    kernel = weight.shape[-1]
    taps = nn.functional.pad(weight, (0, 1)) if bias is None else torch.cat([weight, bias[..., None]], dim=-1)
    fill = -(kernel + 1) % 8
    seen = nn.functional.pad(nn.functional.pad(windows, (0, 1), value=1.0), (0, fill))
    return seen @ nn.functional.pad(taps, (0, fill)).transpose(-1, -2)


class ConvFrontend(nn.Module):
    """Audio [B, T] samples -> features [B, F, C] frames; frame i sees the samples from i * hop on.

    Group norm takes its statistics over the whole row, padding included unless `num_samples` tells which part is audio:
    padded rows give slightly other features than the same audio alone. With layer norm a frame depends on the samples
    it sees and on nothing else.

    The rows of a batch go through as one long row of frames, each filled up so that the frames of the next one begin
    where a stride begins. Frames whose kernel reaches beyond their row come out too, and are cut off at the end.
    """

    def __init__(self, config: FrontendConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(self._layer(i) for i in range(len(config.kernels)))

    def _layer(self, i: int) -> WaveLayer | ConvLayer:
        config, channels = self.config, self.config.channels
        conv = nn.Conv1d(channels if i else 1, channels, config.kernels[i], stride=config.strides[i], bias=config.bias)
        if i:
            return ConvLayer(conv, nn.LayerNorm(channels) if config.norm == "layer" else nn.Identity())
        return WaveLayer(conv, nn.LayerNorm(channels) if config.norm == "layer" else nn.GroupNorm(channels, channels))

    def num_frames(self, num_samples: int) -> int:
        """Frames F that `forward` returns for `num_samples` samples (0 if they are too few for one frame)."""
        for kernel, stride in zip(self.config.kernels, self.config.strides):
            num_samples = _num_windows(num_samples, kernel, stride)
        return num_samples

    def operations(self, num_samples: int) -> float:
        """Of a training step, on a row of `num_samples` samples; nothing learns from the gradient to the audio."""
        total = 0.0
        for index, (kernel, stride) in enumerate(zip(self.config.kernels, self.config.strides)):
            num_samples = _num_windows(num_samples, kernel, stride)
            products = num_samples * kernel * self.config.channels * (self.config.channels if index else 1)
            total += layer_operations(products, inputs_learn=index > 0, weights_learn=True)
        return total

    def forward(self, audio: Tensor, num_samples: Sequence[int] | None = None) -> Tensor:
        """Audio [B, T] -> features [B, F, C].

        Args:
            num_samples: samples of each row, with zeros after them, for rows of several lengths: the first frames of a
                row, as many as its samples make, are as if it were alone. None: all T samples are the row's.

        Raises ValueError when T is too short for one frame.
        """
        frames = self.num_frames(audio.shape[1])
        if frames == 0:
            raise ValueError(f"audio of {audio.shape[1]} samples is too short: the front-end gives 0 frames for it")
        kernel, stride = self.config.kernels[0], self.config.strides[0]
        windows = _num_windows(audio.shape[1], kernel, stride)
        own = torch.full((len(audio),), windows, device=audio.device)
        if num_samples is not None:
            own = torch.tensor([_num_windows(length, kernel, stride) for length in num_samples], device=audio.device)
        later_hop = self.config.hop // stride
        length = -(-windows // later_hop) * later_hop

        first, *others = self.layers
        features = self._run(first, audio, own, length).flatten(0, 1)
        for layer in others:
            features = self._run(layer, features)
        features = features.unflatten(0, (len(audio), length // later_hop))[:, :frames]
        return scale_gradient(features, self.config.gradient_multiplier)

    def _run(self, layer: nn.Module, *inputs: Any) -> Tensor:
        if self.training and self.config.activation_checkpointing:
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)


def _num_windows(num_samples: int, kernel: int, stride: int) -> int:
    return max(0, (num_samples - kernel) // stride + 1)


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
