"""Chroma: spectral power folded onto one octave, 75 frames a second.

The filters are those of `librosa.feature.chroma_stft` without its tuning estimate, which needs the whole track:
each Fourier bin feeds the chroma bins near its pitch, octaves around 880 Hz weigh most
(D. Ellis 2007, https://www.ee.columbia.edu/~dpwe/resources/matlab/chroma-ansyn/). MERT's team computes its
264-dimensional chroma by that function, 22 bins a semitone, with a window of 512 samples at 16 kHz
(https://github.com/a43992899/MARBLE-Benchmark, hand-crafted features); so short a window cannot part semitones
below about 500 Hz, so ours is 171 ms long.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE
from mert_foundry.pipeline.teachers.spectra.power_spectrum import power_spectra

WINDOW_LENGTH = 4096  # samples: 171 ms
LOWEST_A = 27.5  # Hz
CENTRE_OCTAVE, OCTAVES_WIDE = 5.0, 2.0  # octaves above the lowest A
LEAST_POWER = 1e-10  # digital silence stays zero


class Chroma:
    """Audio to chroma `[frames, bins]`, starting at C, the largest bin of every frame 1 (of silence: 0).

    Args:
        bins: bins of the octave, a multiple of 12.
    """

    def __init__(self, bins: int, device: torch.device):
        self.device = device
        self.size = bins
        self.settings = {
            "feature": "chroma",
            "size": bins,
            "sample_rate": SAMPLE_RATE,
            "hop": HOP,
            "window_length": WINDOW_LENGTH,
            "centre_octave": CENTRE_OCTAVE,
            "octaves_wide": OCTAVES_WIDE,
            "least_power": LEAST_POWER,
        }
        self.filters = torch.from_numpy(chroma_filters(SAMPLE_RATE, WINDOW_LENGTH, bins)).float().to(device)

    def stream(self, blocks: Iterable[np.ndarray]) -> Iterator[Tensor]:
        """Blocks as `pipeline.teacher.Teacher.label` takes them; yields float32 `[f, bins]`, frame i centred on sample 320 i."""
        for power in power_spectra(blocks, WINDOW_LENGTH, self.device):
            chroma = power @ self.filters
            yield chroma / chroma.amax(dim=1, keepdim=True).clamp_min(LEAST_POWER)


def chroma_filters(sample_rate: int, window_length: int, bins: int) -> np.ndarray:
    """Weights float64 `[window_length // 2 + 1, bins]` from Fourier bins to chroma bins."""
    frequencies = np.arange(1, window_length // 2 + 2) * (sample_rate / window_length)
    pitches = bins * np.log2(frequencies / LOWEST_A)
    # Frequency 0 has no pitch: it is put one and a half octaves below the first bin, and so wide that it marks none.
    pitches = np.concatenate([[pitches[0] - 1.5 * bins], pitches])
    widths = np.maximum(np.diff(pitches), 1.0)[:, None]
    pitches = pitches[:-1, None]
    distances = (pitches - np.arange(bins) + bins / 2) % bins - bins / 2
    weights = np.exp(-2 * (distances / widths) ** 2)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    weights *= np.exp(-0.5 * ((pitches / bins - CENTRE_OCTAVE) / OCTAVES_WIDE) ** 2)
    return np.roll(weights, -(bins // 12) * 3, axis=1)  # from A to C
