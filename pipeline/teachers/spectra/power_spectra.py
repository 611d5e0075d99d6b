"""Short-time power spectra of a track as a stream, and what is made of them: log-mel and chroma, 75 frames per second.

Log-mel: window (2048 samples), HTK mel scale, power and decibels are those of MusicFM's published code (torchaudio's
`MelSpectrogram` and `AmplitudeToDB`, https://github.com/minzwon/musicfm); the lowest frequency is that of Onsets
and Frames (arXiv 1710.11153), from where the 229 bands of MERT-v0's log-mel teacher are known.

Chroma, spectral power folded onto one octave: the filters are those of `librosa.feature.chroma_stft` without its tuning
estimate, which needs the whole track: each Fourier bin feeds the chroma bins near its pitch, octaves around 880 Hz
weigh most (D. Ellis 2007, https://www.ee.columbia.edu/~dpwe/resources/matlab/chroma-ansyn/). MERT's team computes its
264-dimensional chroma by that function, 22 bins per semitone, with a window of 512 samples at 16 kHz
(https://github.com/a43992899/MARBLE-Benchmark, hand-crafted features); so short a window cannot part semitones
below about 500 Hz, so ours is 171 ms long.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from mert_foundry.pipeline.audio.blocks import fixed_blocks
from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE

CHUNK_FRAMES = 750  # of one Fourier transform, which bounds the memory
LEAST_POWER = 1e-10  # -100 dB, where digital silence lies; of chroma it stays zero

MEL_WINDOW = 2048  # samples: 85 ms
LOWEST_FREQUENCY = 30.0  # Hz, of the mel bands

CHROMA_WINDOW = 4096  # samples: 171 ms
LOWEST_A = 27.5  # Hz
CENTRE_OCTAVE, OCTAVES_WIDE = 5.0, 2.0  # octaves above the lowest A

Settings = dict[str, str | int | float]


def power_spectra(blocks: Iterable[np.ndarray], window_length: int, device: torch.device) -> Iterator[Tensor]:
    """Squared magnitudes of the Fourier transform under a Hann window, silence before and after the track.

    Args:
        blocks: as `pipeline.teachers.teacher.Teacher.label` takes them.
        window_length: samples, even, at least twice the hop (320).

    Yields:
        float32 `[f, window_length // 2 + 1]` for consecutive frames; frame i is centred on sample 320 i. Where the
        chunks lie depends on the track alone, so the values do not depend on where the blocks are cut.
    """
    window = torch.hann_window(window_length, device=device)
    before = np.zeros(window_length // 2, np.float32)
    after = np.zeros(window_length // 2 - HOP, np.float32)
    held = np.zeros(0, np.float32)
    for block in fixed_blocks(chain([before], blocks, [after]), CHUNK_FRAMES * HOP):
        held = np.concatenate([held, block])
        frames = (len(held) - window_length) // HOP + 1
        if frames > 0:
            audio = torch.from_numpy(held).to(device)
            spectrum = torch.stft(audio, window_length, HOP, window=window, center=False, return_complex=True)
            yield spectrum.abs().square().T
            held = held[frames * HOP :]


class LogMel:
    """Audio to log-mel `[frames, bands]` in decibels of spectral power.

    Args:
        bands: mel bands from 30 Hz to half the sample rate.
    """

    def __init__(self, bands: int, device: torch.device):
        self.device = device
        self.size = bands
        self.settings = self.describe(bands)
        self.filters = melscale_fbanks(
            MEL_WINDOW // 2 + 1, LOWEST_FREQUENCY, SAMPLE_RATE / 2, bands, SAMPLE_RATE, norm=None, mel_scale="htk"
        ).to(device)

    @staticmethod
    def describe(bands: int) -> Settings:
        """How the feature is computed, for fingerprints and cards."""
        return {
            "feature": "logmel",
            "size": bands,
            "sample_rate": SAMPLE_RATE,
            "hop": HOP,
            "window_length": MEL_WINDOW,
            "lowest_frequency": LOWEST_FREQUENCY,
            "least_power": LEAST_POWER,
            "mel_scale": "htk",
        }

    def stream(self, blocks: Iterable[np.ndarray]) -> Iterator[Tensor]:
        """Blocks as `pipeline.teachers.teacher.Teacher.label` takes them; yields float32 `[f, bands]`, frame i centred
        on sample 320 i.
        """
        for power in power_spectra(blocks, MEL_WINDOW, self.device):
            yield 10 * torch.log10((power @ self.filters).clamp_min(LEAST_POWER))


class Chroma:
    """Audio to chroma `[frames, bins]`, starting at C, the largest bin of every frame 1 (of silence: 0).

    Args:
        bins: bins of the octave, a multiple of 12.
    """

    def __init__(self, bins: int, device: torch.device):
        self.device = device
        self.size = bins
        self.settings = self.describe(bins)
        self.filters = torch.from_numpy(chroma_filters(SAMPLE_RATE, CHROMA_WINDOW, bins)).float().to(device)

    @staticmethod
    def describe(bins: int) -> Settings:
        """How the feature is computed, for fingerprints and cards."""
        return {
            "feature": "chroma",
            "size": bins,
            "sample_rate": SAMPLE_RATE,
            "hop": HOP,
            "window_length": CHROMA_WINDOW,
            "centre_octave": CENTRE_OCTAVE,
            "octaves_wide": OCTAVES_WIDE,
            "least_power": LEAST_POWER,
        }

    def stream(self, blocks: Iterable[np.ndarray]) -> Iterator[Tensor]:
        """Blocks as `pipeline.teachers.teacher.Teacher.label` takes them; yields float32 `[f, bins]`, frame i centred
        on sample 320 i.
        """
        for power in power_spectra(blocks, CHROMA_WINDOW, self.device):
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
