"""All sample and frame arithmetic of the data side: the one place where rounding happens.

One target frame covers `hop` samples: 24000 Hz / 320 samples = 75 frames a second (paper
arXiv 2306.00107, section 4). Audio is always cut to whole frames before a teacher sees it, so
audio and every target agree to the frame.
"""

SAMPLE_RATE = 24_000
HOP = 320
FRAME_RATE = SAMPLE_RATE // HOP
# To be raised when files come to be decoded or resampled to other samples: shards and features of before are then stale.
AUDIO_VERSION = 3


def whole_frames(num_samples: int, hop: int = HOP) -> int:
    """Number of whole frames in `num_samples` samples; the remainder is dropped."""
    return num_samples // hop


def resampled_length(num_samples: int, source_rate: int, target_rate: int = SAMPLE_RATE) -> int:
    """Samples after resampling: ceil(target_rate * num_samples / source_rate), as torchaudio has it."""
    return -(-num_samples * target_rate // source_rate)


def seconds_to_frames(seconds: float, frame_rate: int = FRAME_RATE) -> int:
    """Number of whole frames in `seconds`, rounded to the nearest frame."""
    return round(seconds * frame_rate)


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
