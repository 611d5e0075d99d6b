"""Float samples to 16-bit ones and back, and how loud these are."""

import math

import numpy as np

FULL_SCALE = 32768  # of 16 bits
# Audio with a lower peak is silent, dB full scale: for segments of tracks, and for tracks by the manifest's default.
SILENCE_DBFS = -60.0


def to_int16(audio: np.ndarray) -> np.ndarray:
    """Float samples in [-1, 1) to int16, rounded to nearest even; louder ones clip."""
    scaled = audio * audio.dtype.type(FULL_SCALE)
    np.rint(scaled, out=scaled)
    np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1, out=scaled)
    return scaled.astype(np.int16)


def to_float(audio: np.ndarray) -> np.ndarray:
    """int16 samples to float32 in [-1, 1)."""
    return audio.astype(np.float32) / np.float32(FULL_SCALE)


def peak_of(audio: np.ndarray) -> int:
    """The largest magnitude in int16 samples `[T]`, T > 0; up to 32768, which int16 itself has not."""
    return max(int(audio.max()), -int(audio.min()))


def to_dbfs(peak: int) -> float:
    """A magnitude of 16 bits in dB full scale; -200 for digital silence."""
    return 20 * math.log10(max(peak / FULL_SCALE, 1e-10))
