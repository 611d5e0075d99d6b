"""Which part of an example a batch takes: whole frames, so audio and targets stay aligned.

An offset is a pure function of (seed, epoch, key), uniform over all that fit. An example shorter
than the crop is taken whole; the batch pads it.
"""

import hashlib
from typing import NamedTuple

from mert_foundry.pipeline.frames import HOP


class Crop(NamedTuple):
    """A range of frames of an example; its samples are the same range times 320."""

    start_frame: int
    num_frames: int


def crop_frames(crop_samples: int) -> int:
    """Frames in a crop of `crop_samples` samples. Raises ValueError unless that is a positive multiple of 320."""
    frames, remainder = divmod(crop_samples, HOP)
    if remainder or frames < 1:
        raise ValueError(f"crop of {crop_samples} samples is not a positive multiple of the hop, {HOP} samples")
    return frames


def random_crop(seed: int, epoch: int, key: str, num_frames: int, frames: int) -> Crop:
    """The crop of `frames` frames that example `key` of `num_frames` frames gives in this epoch."""
    if num_frames <= frames:
        return Crop(0, num_frames)
    digest = hashlib.sha256(f"{seed} {epoch} {key}".encode()).digest()
    # 256 random bits over a few thousand offsets: the bias of the remainder cannot be measured.
    return Crop(int.from_bytes(digest, "big") % (num_frames - frames + 1), frames)


def centre_crop(num_frames: int, frames: int) -> Crop:
    """The crop in the middle of an example of `num_frames` frames, for validation."""
    return Crop(max(0, num_frames - frames) // 2, min(num_frames, frames))
