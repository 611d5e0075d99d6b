"""Log-mel spectrum (energy in bands) and chroma (energy by pitch class) as baselines."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mert_foundry.model.baselines.stream_model import StreamModel
from mert_foundry.pipeline.teachers.spectra.power_spectra import Chroma, LogMel

BANDS = 128
BINS = 264  # 22 a semitone, as the hand-crafted features of MARBLE (arXiv 2306.10548) have them


class SpectrumBaseline(StreamModel):
    """The frames of a spectrum of pipeline/teachers/spectra/power_spectra.py."""

    def __init__(self, name: str, spectrum: LogMel | Chroma, size: int, layers: Sequence[int] | None = None):
        self.spectrum = spectrum
        super().__init__(name, spectrum.settings, size, layers)

    def frames(self, samples: Tensor) -> Tensor:
        return torch.cat(list(self.spectrum.stream([samples.cpu().numpy()])))


class LogMelBaseline(SpectrumBaseline):
    """Decibels of 128 mel bands."""

    def __init__(self, device: torch.device, layers: Sequence[int] | None = None):
        super().__init__("log_mel", LogMel(BANDS, device), BANDS, layers)


class ChromaBaseline(SpectrumBaseline):
    """Chroma, the largest bin of a frame 1."""

    def __init__(self, device: torch.device, layers: Sequence[int] | None = None):
        super().__init__("chroma", Chroma(BINS, device), BINS, layers)
