"""Log-mel spectrum in decibels, 75 frames a second.

Window (2048 samples), HTK mel scale, power and decibels are those of MusicFM's published code (torchaudio's
`MelSpectrogram` and `AmplitudeToDB`, https://github.com/minzwon/musicfm); the lowest frequency is that of Onsets
and Frames (arXiv 1710.11153), from where the 229 bands of MERT-v0's log-mel teacher are known.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE
from mert_foundry.pipeline.teachers.spectra.power_spectrum import power_spectra

WINDOW_LENGTH = 2048  # samples: 85 ms
LOWEST_FREQUENCY = 30.0  # Hz
LEAST_POWER = 1e-10  # -100 dB, where digital silence lies


class LogMel:
    """Audio to log-mel `[frames, bands]` in decibels of spectral power.

    Args:
        bands: mel bands from 30 Hz to half the sample rate.
    """

    def __init__(self, bands: int, device: torch.device):
        self.device = device
        self.size = bands
        self.settings = {
            "feature": "logmel",
            "size": bands,
            "sample_rate": SAMPLE_RATE,
            "hop": HOP,
            "window_length": WINDOW_LENGTH,
            "lowest_frequency": LOWEST_FREQUENCY,
            "least_power": LEAST_POWER,
            "mel_scale": "htk",
        }
        self.filters = melscale_fbanks(
            WINDOW_LENGTH // 2 + 1, LOWEST_FREQUENCY, SAMPLE_RATE / 2, bands, SAMPLE_RATE, norm=None, mel_scale="htk"
        ).to(device)

    def stream(self, blocks: Iterable[np.ndarray]) -> Iterator[Tensor]:
        """Blocks as `pipeline.teacher.Teacher.label` takes them; yields float32 `[f, bands]`, frame i centred on sample 320 i."""
        for power in power_spectra(blocks, WINDOW_LENGTH, self.device):
            yield 10 * torch.log10((power @ self.filters).clamp_min(LEAST_POWER))
