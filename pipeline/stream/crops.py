"""Which parts of examples a batch takes: whole frames, so audio and targets stay aligned.

An example that is visited gives one crop or several. They lie in its stretch: the example alone, or, where a crop is
longer than a whole segment of the set, all segments of its track that lie around it without a gap. The frames where a
crop of a stretch can start are shared out evenly, in order, among all crops that the visits to its examples give in an
epoch. So the crops of an epoch are spread over the track, and differ as long as there are enough starts. Which start of
its share a crop takes is uniform, and a pure function of (seed, epoch, key). A stretch shorter than the crop is taken
whole; the batch pads it.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from mert_foundry.pipeline.frames import HOP
from mert_foundry.pipeline.shards.record import ExampleEntry


class Crop(NamedTuple):
    """A range of frames of a stretch; its samples are the same range times 320."""

    start_frame: int
    num_frames: int


class Piece(NamedTuple):
    """The part of a crop that lies in one example, by the number of the example in its shard."""

    example: int
    start_frame: int
    num_frames: int


class RowCrop(NamedTuple):
    """What a row is filled from: pieces that follow one another, and a key: of the example visited, with `+n` for its
    further crops.
    """

    key: str
    pieces: list[Piece]

    @property
    def num_frames(self) -> int:
        """Frames of all pieces."""
        return sum(piece.num_frames for piece in self.pieces)


class CropRule:
    """Chooses the crops of a visit.

    Args:
        frames: of a crop.
        per_visit: crops of a visit.
        seed: of random crops; None: each in the middle of its share, for validation.
    """

    def __init__(self, frames: int, per_visit: int = 1, seed: int | None = None) -> None:
        self.frames = frames
        self.per_visit = per_visit
        self._seed = seed

    def visit(self, epoch: int, entries: Sequence[ExampleEntry], example: int, segment_frames: int) -> list[RowCrop]:
        """The crops of the visit of an epoch to an example, of a shard that has `entries` and a set of segments of
        `segment_frames`.
        """
        joins = self.frames > segment_frames
        stretch = find_stretch(entries, example) if joins else range(example, example + 1)
        length = sum(entries[number].num_frames for number in stretch)
        first, count = self.per_visit * (example - stretch.start), self.per_visit * len(stretch)
        crops = []
        for number in range(self.per_visit):
            key = f"{entries[example].key}+{number}" if number else entries[example].key
            if self._seed is None:
                crop = centre_crop(length, self.frames, first + number, count)
            else:
                crop = random_crop(self._seed, epoch, key, length, self.frames, first + number, count)
            crops.append(RowCrop(key, _cut(entries, stretch, crop)))
        return crops


def crop_frames(crop_samples: int) -> int:
    """Frames in a crop of `crop_samples` samples. Raises ValueError unless that is a positive multiple of 320."""
    frames, remainder = divmod(crop_samples, HOP)
    if remainder or frames < 1:
        raise ValueError(f"crop of {crop_samples} samples is not a positive multiple of the hop, {HOP} samples")
    return frames


def random_crop(seed: int, epoch: int, key: str, num_frames: int, frames: int, number: int = 0, count: int = 1) -> Crop:
    """The crop of `frames` frames that `key` gives in this epoch, `number` of `count` in a stretch of `num_frames`
    frames.
    """
    starts = _share_of_starts(num_frames, frames, number, count)
    if len(starts) == 1:
        return Crop(starts[0], min(num_frames, frames))
    digest = hashlib.sha256(f"{seed} {epoch} {key}".encode()).digest()
    # 256 random bits over a few thousand starts: the bias of the remainder cannot be measured.
    return Crop(starts[int.from_bytes(digest, "big") % len(starts)], frames)


def centre_crop(num_frames: int, frames: int, number: int = 0, count: int = 1) -> Crop:
    """The crop in the middle of its share, `number` of `count` in a stretch of `num_frames` frames, for validation."""
    starts = _share_of_starts(num_frames, frames, number, count)
    return Crop(starts[(len(starts) - 1) // 2], min(num_frames, frames))


def find_stretch(entries: Sequence[ExampleEntry], example: int) -> range:
    """The examples, in the order of their shard, that are one track without a gap around an example."""
    first = last = example
    while first > 0 and _follows(entries[first - 1], entries[first]):
        first -= 1
    while last + 1 < len(entries) and _follows(entries[last], entries[last + 1]):
        last += 1
    return range(first, last + 1)


def _follows(entry: ExampleEntry, other: ExampleEntry) -> bool:
    """Whether `other` begins in its track where `entry` ends: segments are numbered with those that were dropped."""
    return other.segment == entry.segment + 1 and other.track == entry.track


def _share_of_starts(num_frames: int, frames: int, number: int, count: int) -> range:
    """Part `number` of `count` of the frames where a crop can start, by size alike to one frame; at
    least one of them.
    """
    starts = max(1, num_frames - frames + 1)
    first = number * starts // count
    return range(first, max(first + 1, (number + 1) * starts // count))


def _cut(entries: Sequence[ExampleEntry], stretch: range, crop: Crop) -> list[Piece]:
    start, left = crop
    pieces = []
    for number in stretch:
        length = entries[number].num_frames
        if start < length:
            pieces.append(Piece(number, start, min(left, length - start)))
            left -= pieces[-1].num_frames
        start = max(0, start - length)
        if not left:
            break
    return pieces
