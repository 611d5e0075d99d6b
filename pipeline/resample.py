"""Blocks of audio at any rate to mono at 24 kHz, in bounded memory.

The arithmetic is torchaudio's default windowed-sinc resampling (J. O. Smith,
https://ccrma.stanford.edu/~jos/resample/), which is what EnCodec's own `convert_audio` applies, done block
by block: a block is resampled together with the input that its filter reaches on both sides, so the
joints leave no trace. Channels are averaged, as `convert_audio` does for a mono model.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torchaudio.functional import resample

from pipeline.decode import to_int16
from pipeline.frames import HOP, SAMPLE_RATE, resampled_length, whole_frames

# To be raised when this file, or how audio is decoded, comes to give other samples: shards of before are then stale.
AUDIO_VERSION = 1
BLOCK_SECONDS = 20
LOWPASS_WIDTH = 6
ROLLOFF = 0.99


def to_mono(block: np.ndarray) -> np.ndarray:
    """Average the channels of `[C, n]`; returns `[n]`."""
    return block.mean(axis=0, dtype=np.float32) if len(block) > 1 else block[0]


def resample_blocks(blocks: Iterable[np.ndarray], source_rate: int, target_rate: int = SAMPLE_RATE) -> Iterator[np.ndarray]:
    """Resample a stream of mono float32 blocks `[n]` of any sizes.

    Together the blocks that come out have ceil(target_rate * N / source_rate) samples and equal
    `torchaudio.functional.resample` of the whole signal to rounding error.
    """
    if source_rate == target_rate:
        yield from blocks
        return
    divisor = math.gcd(source_rate, target_rate)
    period = source_rate // divisor
    reach = math.ceil(LOWPASS_WIDTH * period * divisor / (min(source_rate, target_rate) * ROLLOFF))
    # Context and block are whole periods of the polyphase filter, so every block meets the same phases.
    context = -(-reach // period) * period
    length = -(-BLOCK_SECONDS * source_rate // period) * period
    start = 0
    for window, last in _windows(blocks, context, length):
        left = min(start, context)
        output = _resample(window, source_rate, target_rate)
        first = left * target_rate // source_rate
        wanted = len(window) - left if last else length
        yield output[first : first + resampled_length(wanted, source_rate, target_rate)]
        start += length


def resample_to_int16(blocks: Iterable[np.ndarray], source_rate: int) -> Iterator[np.ndarray]:
    """Decoded blocks `[C, n]` of a track to int16 blocks `[n]`, 24 kHz mono.

    Rounded to 16 bits because that is what the shard stores: teachers label the very samples that
    training will see.
    """
    return map(to_int16, resample_blocks((to_mono(block) for block in blocks), source_rate))


def decoded_track(blocks: Iterable[np.ndarray], source_rate: int) -> np.ndarray:
    """Decoded blocks `[C, n]` of a whole track to int16 `[T]` in memory, 24 kHz mono, T a multiple of the hop (320)."""
    audio = np.concatenate([np.zeros(0, np.int16), *resample_to_int16(blocks, source_rate)])
    return audio[: whole_frames(len(audio)) * HOP]


def to_float(audio: np.ndarray) -> np.ndarray:
    """int16 samples to float32 in [-1, 1)."""
    return audio.astype(np.float32) / 32768.0


def _windows(blocks: Iterable[np.ndarray], context: int, length: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Windows of `context + length + context` samples, `length` apart; shorter at both ends of the signal."""
    buffer = np.zeros(0, np.float32)
    left = 0
    pending: list[np.ndarray] = []
    waiting = 0
    for block in blocks:
        pending.append(block)
        waiting += len(block)
        while len(buffer) + waiting > left + length + context:
            buffer = np.concatenate([buffer, *pending])
            pending, waiting = [], 0
            yield buffer[: left + length + context], False
            dropped = max(0, left + length - context)
            buffer = buffer[dropped:]
            left = left + length - dropped
    buffer = np.concatenate([buffer, *pending])
    if len(buffer) > left:
        yield buffer, True


def _resample(audio: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    return resample(
        torch.from_numpy(audio), source_rate, target_rate, lowpass_filter_width=LOWPASS_WIDTH, rolloff=ROLLOFF
    ).numpy()
