"""Log-mel patches as front-end: 25 frames per second at the defaults, for contexts of 30 s and more.

Spectrum settings as MusicFM's (arXiv 2311.03318): 24 kHz, window 2048, step 240, 128 bands; four spectra side by side
make a frame. Nothing here is learned: the encoder's projection, which begins with a layer norm, is the first weight.
"""

import functools
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from mert_foundry.model.autocast import without_autocast
from mert_foundry.model.layer_operations import layer_operations

FLOOR = 1e-8  # -80 dB
GROUPS = 16  # of neighbouring bands, each a matrix product over the frequencies that it needs


class LogMelFrontendConfig(BaseModel):
    """Settings of the log-mel front-end."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    input_name: ClassVar[str] = "audio"

    kind: Literal["log_mel"] = Field(description="Log-mel spectra, several to a frame")
    sample_rate: int = Field(24_000, ge=1, description="of the audio, Hz")
    window: int = Field(2048, ge=2, description="Hann window of a spectrum, samples")
    step: int = Field(240, ge=1, description="samples from one spectrum to the next")
    bands: int = Field(128, ge=1, description="mel bands from 0 Hz to half the sample rate")
    spectra_per_frame: int = Field(4, ge=1, description="spectra that make a frame")

    @model_validator(mode="after")
    def _centred(self) -> "LogMelFrontendConfig":
        if self.window < self.step or (self.window - self.step) % 2:
            raise ValueError(f"window {self.window} must be step {self.step} and an even number of samples more")
        return self

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return self.step * self.spectra_per_frame

    @property
    def width(self) -> int:
        """Features per frame."""
        return self.bands * self.spectra_per_frame

    @property
    def learned_width(self) -> int:
        """No feature is made by weights."""
        return 0

    @property
    def padding_invariant(self) -> bool:
        """Zeros after a row leave its frames as they are."""
        return True


class LogMelFrontend(nn.Module):
    """Audio [B, T] samples -> log-mel features [B, T // hop, C], about -1 (silence) to 1 (full scale).

    Spectrum j is centred on the middle of its own step, samples [j * step, (j + 1) * step), and the audio goes on
    with zeros at both ends; frame i holds the spectra of samples [i * hop, (i + 1) * hop), the first one first.
    A feature is (log10(max(m, 1e-8)) + 4) / 4, with m the mel power in units of the peak that a sine of amplitude
    1 has in the spectrum: a fixed scale, so that a frame does not depend on what else is in its row.
    """

    def __init__(self, config: LogMelFrontendConfig):
        super().__init__()
        self.config = config

    def num_frames(self, num_samples: int) -> int:
        """Frames F that `forward` returns for `num_samples` samples (0 if they are too few for one frame)."""
        return num_samples // self.config.hop

    def operations(self, num_samples: int) -> float:
        """Of a training step, on a row of `num_samples` samples: spectra with the mel filters, from which nothing
        learns.
        """
        _, groups = _window_and_filters(self.config, torch.device("cpu"))
        spectra = self.num_frames(num_samples) * self.config.spectra_per_frame
        return layer_operations(spectra * sum(taps.numel() for _, taps in groups), False, False)

    def forward(self, audio: Tensor) -> Tensor:
        """Audio [B, T] -> features [B, F, C]. Raises ValueError when T is too short for one frame."""
        config, frames = self.config, self.num_frames(audio.shape[1])
        if frames == 0:
            raise ValueError(f"audio of {audio.shape[1]} samples is too short: the front-end gives 0 frames for it")
        window, groups = _window_and_filters(config, audio.device)
        margin = (config.window - config.step) // 2
        with without_autocast(audio.device):
            padded = nn.functional.pad(audio.float(), (margin, margin))[:, : frames * config.hop + 2 * margin]
            power = _power(padded.unfold(1, config.window, config.step) * window)
            mel = torch.cat([power[:, :, first : first + len(taps)] @ taps for first, taps in groups], dim=2)
            mel = torch.log10(mel.clamp(min=FLOOR)) / 4 + 1
        return mel.unflatten(1, (frames, config.spectra_per_frame)).flatten(2).to(audio.dtype)


def _power(windows: Tensor) -> Tensor:
    """[..., window] -> power of each frequency [..., window // 2 + 1]"""
    spectra = torch.fft.rfft(windows)
    return spectra.real.square() + spectra.imag.square()  # abs() would take a root only to square it


@functools.lru_cache
def _window_and_filters(config: LogMelFrontendConfig, device: torch.device) -> tuple[Tensor, list[tuple[int, Tensor]]]:
    """Hann window [window], scaled to give a sine of amplitude 1 the peak 1, and mel filters.

    A filter is zero at nearly all frequencies. So neighbouring ones go together, as the first frequency that they need
    and their taps [frequencies, bands] from there on.

    They follow from the config, so they are no weights: made at the first use on a device, they cannot be lost on the
    meta device or on a load path.
    """
    from torchaudio.functional import melscale_fbanks

    with torch.inference_mode(False), torch.device("cpu"):
        window = torch.hann_window(config.window)
        filters = melscale_fbanks(
            config.window // 2 + 1, 0.0, config.sample_rate / 2, config.bands, config.sample_rate, mel_scale="htk"
        )
        groups = [_needed(each) for each in filters.T.tensor_split(GROUPS)]
        return (2 * window / window.sum()).to(device), [(first, taps.to(device)) for first, taps in groups]


def _needed(filters: Tensor) -> tuple[int, Tensor]:
    """The first frequency at which one of the filters [bands, frequencies] is not zero, and their taps
    up to the last.
    """
    needed = filters.any(dim=0).nonzero().flatten().tolist() or [0]
    return needed[0], filters[:, needed[0] : needed[-1] + 1].T.contiguous()
