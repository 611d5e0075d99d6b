"""The wave front-end with constant-Q spectra beside it (`feature_extractor_cqt` of MERT, arXiv 2306.00107).

The arithmetic is nnAudio's `CQT` (https://github.com/KinWaiCheuk/nnAudio), which is imported when the front-end is
built and not before. It costs about half of a 95M forward pass.
"""

import functools
import math
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from mert_foundry.model.autocast import without_autocast
from mert_foundry.model.frontend.convolution import ConvFrontend, FrontendConfig
from mert_foundry.model.layer_operations import layer_operations


class CqtConfig(BaseModel):
    """A constant-Q transform; the defaults are those of MERT's musical teacher."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample_rate: int = Field(24_000, ge=1, description="of the audio, Hz")
    lowest_frequency: float = Field(32.7, gt=0.0, description="centre of the first bin, Hz")
    bins: int = Field(336, ge=1, description="bins")
    bins_per_octave: int = Field(48, ge=1, description="bins per octave")

    @model_validator(mode="after")
    def _below_half_the_rate(self) -> "CqtConfig":
        highest = self.lowest_frequency * 2 ** ((self.bins - 1) / self.bins_per_octave)
        if highest >= self.sample_rate / 2:
            raise ValueError(f"highest bin at {highest:.0f} Hz, half of sample_rate is {self.sample_rate / 2:.0f} Hz")
        return self

    @property
    def kernel(self) -> int:
        """Samples that each kernel is stored with: the next power of two after the lowest bin's, whose length is Q
        periods.
        """
        quality = 1 / (2 ** (1 / self.bins_per_octave) - 1)
        return 1 << (math.ceil(quality * self.sample_rate / self.lowest_frequency) - 1).bit_length()


class ConvCqtFrontendConfig(BaseModel):
    """Wave convolutions and a constant-Q transform."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    input_name: ClassVar[str] = "audio"

    kind: Literal["convolution_cqt"] = Field(description="Convolutions and constant-Q magnitudes side by side")
    convolution: FrontendConfig = Field(FrontendConfig(), description="the convolutions")
    cqt: CqtConfig = Field(CqtConfig(), description="the constant-Q transform")

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return self.convolution.hop

    @property
    def width(self) -> int:
        """Features per frame."""
        return self.convolution.width + self.cqt.bins

    @property
    def learned_width(self) -> int:
        """Features per frame, the first ones, that weights make: the convolutions'."""
        return self.convolution.width

    @property
    def sample_rate(self) -> int:
        """Hz the front-end is made for."""
        return self.cqt.sample_rate

    @property
    def padding_invariant(self) -> bool:
        """Whether zeros after a row leave its frames as they are."""
        return self.convolution.padding_invariant


class ConvCqtFrontend(nn.Module):
    """Audio [B, T] samples -> [B, F, C + bins]: ConvFrontend's features, then constant-Q magnitudes.

    There are as many frames as the convolutions give; magnitude i is centred on sample i * hop, as in the CQT
    target, and the audio goes on with zeros at both ends. Raises ImportError when nnAudio is not installed.
    """

    def __init__(self, config: ConvCqtFrontendConfig):
        super().__init__()
        self.config = config
        self.convolution = ConvFrontend(config.convolution)
        _cqt_class()

    def num_frames(self, num_samples: int) -> int:
        """Frames F that `forward` returns for `num_samples` samples (0 if they are too few for one frame)."""
        return self.convolution.num_frames(num_samples)

    def operations(self, num_samples: int) -> float:
        """Of a training step, on a row of `num_samples` samples; nothing learns from the spectra, whose kernels are
        complex.
        """
        frames = num_samples // self.config.hop + 1
        products = 2 * frames * self.config.cqt.bins * self.config.cqt.kernel
        return self.convolution.operations(num_samples) + layer_operations(products, False, False)

    def forward(self, audio: Tensor) -> Tensor:
        """Audio [B, T] -> features [B, F, C + bins]. Raises ValueError when T is too short for one frame."""
        features = self.convolution(audio)
        transform = _transform(self.config.cqt, self.config.hop, audio.device)
        with without_autocast(audio.device):
            magnitudes = transform(audio.float())[:, :, : features.shape[1]].transpose(1, 2)
        return torch.cat([features, magnitudes.to(features.dtype)], dim=2)


def _cqt_class() -> type[nn.Module]:
    try:
        from nnAudio.features.cqt import CQT
    except ImportError as error:
        raise ImportError("front-end convolution_cqt needs nnAudio: pip install 'nnAudio>=0.3.4'") from error
    return CQT


@functools.lru_cache
def _transform(config: CqtConfig, hop: int, device: torch.device) -> nn.Module:
    """The transform on a device, [B, T] -> [B, bins, T // hop + 1].

    Its kernels follow from the config, so they are no weights of the model: 180 MB at the defaults that no checkpoint
    holds, and that neither the meta device nor a load path can break.
    """
    with torch.inference_mode(False), torch.device("cpu"):
        transform = _cqt_class()(
            sr=config.sample_rate,
            hop_length=hop,
            fmin=config.lowest_frequency,
            n_bins=config.bins,
            bins_per_octave=config.bins_per_octave,
            filter_scale=1,
            norm=1,
            window="hann",
            center=True,
            pad_mode="constant",
            trainable=False,
            output_format="Magnitude",
            verbose=False,
        )
    return transform.to(device)
