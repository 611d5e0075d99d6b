"""Overlapping windows over a track of any length, and which of its frames come from which window.

A track of at most one window is encoded whole. A longer one is cut into windows of exactly the same
number of frames, each starting on the track's own frame grid; the last one ends with the track. Where two windows
overlap, the seam is the middle: frames before it come from the first, the others from the second. So every frame of a
long track lies at least half the overlap from the ends of its window, except at the ends of the track itself.
"""

import bisect
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, model_validator

LONGEST_FRAME = 1 << 20  # samples


class WindowConfig(BaseModel):
    """How long tracks are cut for the encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float = Field(30.0, gt=0.0, description="longest stretch the encoder sees at once, seconds")
    overlap_seconds: float = Field(
        2.0, ge=0.0, description="overlap of neighbouring windows, seconds; the seam is in its middle"
    )

    @model_validator(mode="after")
    def _moves_on(self) -> "WindowConfig":
        if self.overlap_seconds >= self.seconds:
            raise ValueError(f"overlap_seconds {self.overlap_seconds} must be less than seconds {self.seconds}")
        return self

    def in_frames(self, frame_rate: float) -> tuple[int, int]:
        """Frames of a window, and frames that two neighbours share, at `frame_rate` frames a second."""
        frames = max(1, round(self.seconds * frame_rate))
        return frames, min(round(self.overlap_seconds * frame_rate), frames - 1)


@dataclass(frozen=True)
class FrameGeometry:
    """Where an encoder's frames lie: frame i begins at sample i * hop; the first frame needs
    `receptive_field` samples.
    """

    hop: int
    receptive_field: int

    def num_frames(self, num_samples: int) -> int:
        """Frames of so many samples; 0 if they are too few for one."""
        return max(0, (num_samples - self.receptive_field) // self.hop + 1)

    def num_samples(self, num_frames: int) -> int:
        """The fewest samples that make so many frames."""
        return (num_frames - 1) * self.hop + self.receptive_field


def measure_frames(num_frames: Callable[[int], int], hop: int) -> FrameGeometry:
    """The geometry of an encoder with these `num_frames(num_samples)` and hop."""
    return FrameGeometry(hop, 1 + bisect.bisect_left(range(1, LONGEST_FRAME), 1, key=num_frames))


@dataclass(frozen=True)
class Window:
    """A stretch of a track: samples [start_sample, start_sample + num_samples) give frames from `start_frame` on.

    Of these, the track's frames [keep_start, keep_stop) are used.
    """

    start_sample: int
    num_samples: int
    start_frame: int
    keep_start: int
    keep_stop: int


def plan_windows(num_samples: int, geometry: FrameGeometry, window_frames: int, overlap_frames: int) -> list[Window]:
    """The windows of a track in order; together they keep each of its frames once. None for a track without a frame.

    Args:
        num_samples: of the track.
        window_frames, overlap_frames: of a window and of two neighbours; the overlap is shorter than the window.
    """
    num_frames = geometry.num_frames(num_samples)
    if num_frames <= window_frames:
        return [Window(0, num_samples, 0, 0, num_frames)] if num_frames else []
    last = num_frames - window_frames
    starts = [*range(0, last, window_frames - overlap_frames), last]
    seams = [(left + window_frames + right) // 2 for left, right in zip(starts, starts[1:])]
    length = geometry.num_samples(window_frames)
    return [
        Window(start * geometry.hop, length, start, keep_start, keep_stop)
        for start, keep_start, keep_stop in zip(starts, [0, *seams], [*seams, num_frames])
    ]
