"""The windows of a track of unknown length as a stream, those of `model/features/windows.py`.

The track is first extended with silence, by less than a receptive field, to as many frames as it has begun hops, so
that every hop of it has a frame of its own.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np

from mert_foundry.model.features.windows import FrameGeometry
from mert_foundry.pipeline.audio.blocks import fixed_blocks


class WindowPart(NamedTuple):
    """Audio float32 `[num_samples]` of a window; its frames [keep_start, keep_stop) are the next ones of the track."""

    audio: np.ndarray
    keep_start: int
    keep_stop: int


def stream_windows(
    blocks: Iterable[np.ndarray], geometry: FrameGeometry, window_frames: int, overlap_frames: int
) -> Iterator[WindowPart]:
    """Windows as `plan_windows` cuts the extended track; at most two of them and a block are in memory.

    Args:
        blocks: float32 `[n]`, in order, together the track.
        window_frames, overlap_frames: of a window and of two neighbours; the overlap is shorter than the window.
    """
    step = window_frames - overlap_frames
    length, both = geometry.num_samples(window_frames), geometry.num_samples(window_frames + step)
    held, keep = np.zeros(0, np.float32), 0  # the audio from the window at hand on, and its first frame to keep
    for block in chain(fixed_blocks(blocks, step * geometry.hop), [None]):
        if block is None:
            hops = -(-len(held) // geometry.hop)
            missing = geometry.num_samples(hops) - len(held) if hops else 0
            held = np.pad(held, (0, max(0, missing)))
        else:
            held = np.concatenate([held, block])
        while len(held) >= both:
            seam = (window_frames + step) // 2
            yield WindowPart(held[:length], keep, seam)
            held, keep = held[step * geometry.hop :], seam - step
    last = geometry.num_frames(len(held)) - window_frames  # where the last window starts
    if last > 0:
        seam = (window_frames + last) // 2
        yield WindowPart(held[:length], keep, seam)
        held, keep = held[last * geometry.hop :], seam - last
    if len(held):
        yield WindowPart(held, keep, geometry.num_frames(len(held)))
