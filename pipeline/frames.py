"""All sample and frame arithmetic of the data side: the one place where rounding happens.

One target frame covers HOP samples: 24000 Hz / 320 samples = 75 frames per second (paper
arXiv 2306.00107, section 4). Audio is always cut to whole frames before a teacher sees it, so
audio and every target agree to the frame.
"""

import math
from functools import lru_cache

SAMPLE_RATE = 24_000
HOP = 320
FRAME_RATE = SAMPLE_RATE // HOP
# To be raised when files come to be decoded or resampled to other samples: shards and features of before are then
# stale.
AUDIO_VERSION = 4
# Taps of a bank of resampling filters; torchaudio needs 30 bytes for each. 22255 Hz (old Macintosh) needs 21 million.
MOST_TAPS = 1 << 25


def whole_frames(num_samples: int) -> int:
    """Number of whole frames in `num_samples` samples; the remainder is dropped."""
    return num_samples // HOP


@lru_cache(maxsize=4096)
def nearest_rate(source_rate: int, target_rate: int = SAMPLE_RATE, most_taps: int = MOST_TAPS) -> int:
    """The rate, Hz, as which audio of `source_rate` is resampled: itself, or the nearest with few enough filters.

    A ratio in lowest terms p / q needs p filters of q taps. 44,099 Hz shares no divisor with 24,000 Hz, so it is taken
    for 44,100 Hz: the music becomes 23 millionths shorter and 0.04 cents higher. With MOST_TAPS the error is below 0.1
    % at any rate.
    """
    return next(
        rate
        for distance in range(target_rate)
        for rate in (source_rate - distance, source_rate + distance)
        if rate > 0 and rate * target_rate <= most_taps * math.gcd(rate, target_rate) ** 2
    )


def resampled_length(num_samples: int, source_rate: int, target_rate: int = SAMPLE_RATE) -> int:
    """Samples after resampling: ceil(target_rate * num_samples / nearest_rate), as torchaudio has it."""
    return -(-num_samples * target_rate // nearest_rate(source_rate, target_rate))


def seconds_to_frames(seconds: float) -> int:
    """Number of whole frames in `seconds`, rounded to the nearest frame."""
    return round(seconds * FRAME_RATE)


def segment_lengths(num_frames: int, segment_frames: int, shortest_frames: int) -> list[int]:
    """Cut a track of `num_frames` frames into segments; returns the frames of each, in order.

    Every segment has `segment_frames` frames, except the last: a remainder of at least
    `shortest_frames` is a segment of its own, a shorter one joins the segment before it, so no
    frame of a track is lost. A track shorter than `shortest_frames` has no segment.
    """
    if num_frames < shortest_frames:
        return []
    whole, remainder = divmod(num_frames, segment_frames)
    lengths = [segment_frames] * whole
    if remainder >= shortest_frames or not lengths:
        return lengths + [remainder] if remainder else lengths
    lengths[-1] += remainder
    return lengths


def count_segments(num_frames: int, segment_frames: int, shortest_frames: int) -> int:
    """How many segments `segment_lengths` cuts."""
    if num_frames < shortest_frames:
        return 0
    whole, remainder = divmod(num_frames, segment_frames)
    return whole + bool(remainder and (remainder >= shortest_frames or not whole))
