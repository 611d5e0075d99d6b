"""The constant-Q transform's oracle: nnAudio over a whole track."""

from pathlib import Path

import numpy as np
import torch
from nnAudio.features.cqt import CQT1992v2

from mert_foundry.pipeline.audio.blocks import to_float
from mert_foundry.pipeline.audio.decode import open_audio
from mert_foundry.pipeline.audio.resample import decoded_track

PUBLISHED = {"lowest_frequency": 32.7, "bins": 336, "bins_per_octave": 48}


def reference_cqt(
    audio: np.ndarray,
    lowest_frequency: float,
    bins: int,
    bins_per_octave: int,
    sample_rate: int = 24_000,
    hop: int = 320,
) -> np.ndarray:
    """nnAudio's magnitudes of a whole track as MERT asks for them, `[T // hop, bins]`: without the frame on the very
    end.
    """
    transform = CQT1992v2(
        sr=sample_rate,
        hop_length=hop,
        fmin=lowest_frequency,
        n_bins=bins,
        bins_per_octave=bins_per_octave,
        center=True,
        pad_mode="constant",
        output_format="Magnitude",
        verbose=False,
    )
    with torch.inference_mode():
        return transform(torch.from_numpy(audio)[None])[0].T.numpy()[: len(audio) // hop]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Frobenius norm of the difference over that of what is expected."""
    expected = expected.astype(np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def read_clip(path: Path) -> np.ndarray:
    """A music file as a teacher hears it: float32 `[T]`, 24 kHz mono, T a multiple of 320."""
    with open_audio(path) as audio:
        samples = to_float(decoded_track(audio.blocks(), audio.header.sample_rate))
    return samples[: len(samples) // 320 * 320]
