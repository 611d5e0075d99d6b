"""Features of pieces of a manifest, drawn by seed: what codebooks are fitted to, and held-out tracks to judge them by.

Features go to a temporary file that is read at random positions, so memory does not grow with the sample.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np
from torch import Tensor

from mert_foundry.pipeline.audio.blocks import float_blocks
from mert_foundry.pipeline.fitting.tracks import tracks_of_split, whole_track
from mert_foundry.pipeline.frames import FRAME_RATE, HOP, SAMPLE_RATE, seconds_to_frames
from mert_foundry.pipeline.manifest.rows import REST_SPLIT, Manifest, Track

HELD_OUT_SHARE = 0.1  # of the tracks drawn


class Feature(Protocol):
    """Audio to features as a stream, such as `LogMel`: `size` values a frame."""

    size: int

    def stream(self, blocks: Iterable[np.ndarray]) -> Iterator[Tensor]:
        """Blocks as `pipeline.teachers.teacher.Teacher.label` takes them; yields float32 `[f, size]`."""
        ...


@dataclass(frozen=True)
class Crops:
    """The pieces drawn of one track: piece n starts at n times the length of a piece."""

    track: Track
    numbers: list[int]

    def seconds(self, crop_seconds: float) -> float:
        """Audio in all, seconds."""
        return len(self.numbers) * min(crop_seconds, self.track.seconds)


def choose_crops(manifest: Manifest, frames: int, crop_seconds: float, seed: int) -> list[Crops]:
    """Draw pieces of the train split until there are `frames`, every piece with the same chance.

    A track has a piece every `crop_seconds`, a shorter track one. The choice is a pure function of the arguments.

    Raises:
        ValueError: the train split has no track.
    """
    tracks = tracks_of_split(manifest, REST_SPLIT)
    pieces = [
        (index, number)
        for index, track in enumerate(tracks)
        for number in range(max(1, int(track.seconds / crop_seconds)))
    ]
    chosen, drawn = defaultdict(list), 0.0
    for piece in np.random.default_rng(seed).permutation(len(pieces)):
        if drawn >= frames:
            break
        index, number = pieces[piece]
        chosen[index].append(number)
        drawn += min(crop_seconds, tracks[index].seconds) * FRAME_RATE
    return [Crops(tracks[index], sorted(numbers)) for index, numbers in sorted(chosen.items())]


def hold_out(crops: list[Crops], seed: int) -> tuple[list[Crops], list[Crops]]:
    """The crops to fit to, and those of the tenth of the tracks (at least one) to judge by.

    A single track is not held out.
    """
    count = min(len(crops) - 1, max(1, round(HELD_OUT_SHARE * len(crops))))
    held = set(np.random.default_rng([seed, 1]).permutation(len(crops))[:count].tolist())
    fitted = [drawn for number, drawn in enumerate(crops) if number not in held]
    return fitted, [drawn for number, drawn in enumerate(crops) if number in held]


def collect_features(
    file: BinaryIO,
    root: str,
    crops: list[Crops],
    crop_seconds: float,
    feature: Feature,
    report: Callable[[float], None],
) -> np.ndarray:
    """Write the features of the drawn pieces to an open file; returns them, float32 `[frames, size]`, mapped from it.

    Each piece is taken as a track of its own. `report` is called after each with the seconds done in all.

    Raises:
        ValueError: as `whole_track`, or no track has a whole frame.
        OSError: as `whole_track`, or the folder for temporary files (TMPDIR) is full.
    """
    length = seconds_to_frames(crop_seconds) * HOP
    frames, seconds = 0, 0.0
    for drawn in crops:
        with whole_track(drawn.track, root) as decoded:
            for number in drawn.numbers:
                audio = decoded.read(number * length, length)
                seconds += len(audio) / SAMPLE_RATE
                for features in feature.stream(float_blocks(audio)):
                    _write(file, features.cpu().numpy().tobytes())
                    frames += len(features)
                report(seconds)
    if not frames:
        raise ValueError(f"no whole frame of {HOP} samples in {len(crops)} tracks")
    return np.memmap(file, np.float32, "r", shape=(frames, feature.size))


def _write(file: BinaryIO, data: bytes) -> None:
    try:
        file.write(data)
        file.flush()
    except OSError as error:
        raise OSError(f"{tempfile.gettempdir()}: the features do not fit ({error.strerror})") from error


def batches(sample: np.ndarray, frames: int) -> Iterator[np.ndarray]:
    """Consecutive parts of a sample of at most `frames` frames."""
    return (sample[start : start + frames] for start in range(0, len(sample), frames))
