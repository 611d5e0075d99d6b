"""Float samples to 16-bit ones and back."""

import numpy as np

FULL_SCALE = 32768  # of 16 bits


def to_int16(audio: np.ndarray) -> np.ndarray:
    """Float samples in [-1, 1) to int16, rounded to nearest even; louder ones clip."""
    scaled = audio * audio.dtype.type(FULL_SCALE)
    np.rint(scaled, out=scaled)
    np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1, out=scaled)
    return scaled.astype(np.int16)


def to_float(audio: np.ndarray) -> np.ndarray:
    """int16 samples to float32 in [-1, 1)."""
    return audio.astype(np.float32) / np.float32(FULL_SCALE)
