"""Sound and pictures of an example in few bytes: MP3, the outline of the waveform, targets as levels of a byte.

What a page holds is for eyes and ears; exact values are in the shard.
"""

import io
import zlib
from dataclasses import dataclass

import numpy as np
import soundfile
import torch
import torchaudio

from mert_foundry.pipeline.audio.blocks import to_float
from mert_foundry.pipeline.frames import SAMPLE_RATE
from mert_foundry.pipeline.shards.target import TargetSpec

MP3_LEVEL = (
    0.5  # libsndfile maps [0, 1] to LAME's rates; at 24 kHz mono this is 80 kbit/s, constant, so that seeking is exact
)
OUTLINE_SAMPLES = 80  # a minimum and a maximum for so many samples: four a frame
STEP_DECIBELS = 0.5
RANGE_DECIBELS = 90.0


@dataclass(frozen=True)
class Levels:
    """A continuous target as bytes `[bins, frames]`, the lowest bin first.

    With `decibels`, level n > 0 is `top` times 10^((n - last) * 0.5 / 20), and level 0 is that much or less. Without,
    level n is bottom + (top - bottom) * n / last.
    """

    levels: np.ndarray
    last: int
    decibels: bool
    bottom: float
    top: float


def encode_mp3(audio: np.ndarray) -> bytes:
    """int16 `[T]` or float32 `[T]` in [-1, 1] at 24 kHz to MP3; decoders give back T samples."""
    stream = io.BytesIO()
    soundfile.write(
        stream,
        np.clip(audio, -1, 1) if audio.dtype.kind == "f" else audio,
        SAMPLE_RATE,
        "MPEG_LAYER_III",
        format="MP3",
        bitrate_mode="CONSTANT",
        compression_level=MP3_LEVEL,
    )
    return stream.getvalue()


def outline(audio: np.ndarray) -> np.ndarray:
    """Smallest and largest sample of each 80, int8 `[2, T / 80]` with 127 at full scale, of int16 or float32 `[T]`."""
    full_scale = 1.0 if audio.dtype.kind == "f" else 32768.0
    blocks = audio[: len(audio) // OUTLINE_SAMPLES * OUTLINE_SAMPLES].reshape(-1, OUTLINE_SAMPLES) / full_scale
    return np.clip(np.rint(np.stack([blocks.min(axis=1), blocks.max(axis=1)]) * 127), -127, 127).astype(np.int8)


def target_levels(spec: TargetSpec, array: np.ndarray, minimum: float, maximum: float) -> Levels:
    """A stored continuous target `[frames, bins]` as levels; `minimum` and `maximum` are those of the whole set.

    Values from 0 up, such as magnitudes, are shown in decibels below the largest of the set; others linearly.
    """
    values = spec.values(array).T
    if minimum >= 0 and maximum > 0:
        last = round(RANGE_DECIBELS / STEP_DECIBELS)
        with np.errstate(divide="ignore"):
            decibels = 20 * np.log10(values / maximum)
        levels = np.rint(np.clip(decibels / STEP_DECIBELS + last, 0, last))
        return Levels(levels.astype(np.uint8), last, True, 0.0, maximum)
    value_range = maximum - minimum or 1.0
    levels = np.rint(np.clip((values - minimum) / value_range, 0, 1) * 255)
    return Levels(levels.astype(np.uint8), 255, False, minimum, maximum)


def deflate(array: np.ndarray) -> bytes:
    """The array's little-endian bytes as a zlib stream, which browsers inflate themselves."""
    return zlib.compress(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes(), 9)


def loudness(audio: np.ndarray) -> float | None:
    """Integrated loudness (ITU-R BS.1770-4) of int16 `[T]` at 24 kHz, LUFS; None when it is silent or under 0.4 s."""
    if len(audio) < 0.4 * SAMPLE_RATE:
        return None
    value = torchaudio.functional.loudness(torch.from_numpy(to_float(audio))[None], SAMPLE_RATE).item()
    return value if np.isfinite(value) else None
