"""The tracks of a shard set, their audio, or their tokens, put together again from its segments; no decoder of files is
needed.
"""

import heapq
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter

import numpy as np

from mert_foundry.pipeline.audio.blocks import to_float
from mert_foundry.pipeline.features.plan import ShardPlace, SourceTrack
from mert_foundry.pipeline.frames import HOP
from mert_foundry.pipeline.shards.index import ShardIndex, load_index
from mert_foundry.pipeline.shards.reader import ShardReader
from mert_foundry.pipeline.shards.record import DroppedSegment, ExampleEntry
from mert_foundry.pipeline.shards.text import TOKENS, TOKENS_MEMBER

THREADS = 16  # that wait for an object store


class ShardTracks:
    """The tracks of all splits of a shard folder (local or fsspec URL), sorted by key."""

    def __init__(self, folder: str):
        self.index: ShardIndex = load_index(folder)
        # A reader that knows no target reads none; of text alone, the one target is what is read.
        read = self.index.model_copy(update={"targets": []}) if self.index.has_audio else self.index
        self._member = self.index.audio_member or TOKENS_MEMBER
        self._reader = ShardReader(folder, read, self.index.shardlist)

    def list_tracks(self) -> list[SourceTrack]:
        """Every track, from the records alone. Raises ValueError when a track is not whole or stands in two shards."""
        tracks: dict[str, SourceTrack] = {}
        with ThreadPoolExecutor(THREADS) as threads:
            listed = list(threads.map(self._list_shard, range(len(self.index.shardlist))))
        for shard, places in zip(self.index.shardlist, listed):
            for key, place in places:
                if key in tracks or place is None:
                    raise ValueError(f"{shard.url}: the segments of track {key} are not all here, one after another")
                num_samples = sum(place.frames) * HOP
                tracks[key] = SourceTrack(key=key, num_samples=num_samples, split=shard.split, group="", place=place)
        return [tracks[key] for key in sorted(tracks)]

    def open(self, track: SourceTrack) -> "SegmentedAudio":
        """The audio of one of `list_tracks`, or its tokens; nothing is read yet."""
        assert isinstance(track.place, ShardPlace)
        return (SegmentedAudio if self.index.has_audio else SegmentedTokens)(self._reader, track.place)

    def close(self) -> None:
        """Close all files."""
        self._reader.close()

    def _list_shard(self, shard: int) -> list[tuple[str, ShardPlace | None]]:
        """Key and place of each track of a shard; no place when it is not whole."""
        entries = self._reader.entries(shard)
        holes: dict[str, list[DroppedSegment]] = {}
        for hole in self._reader.dropped_segments(shard):
            holes.setdefault(hole.track, []).append(hole)
        return [
            (track, self._place(shard, track, list(members), holes.get(track, [])))
            for track, members in groupby(enumerate(entries), key=lambda item: item[1].track)
        ]

    def _place(
        self, shard: int, track: str, members: list[tuple[int, ExampleEntry]], holes: list[DroppedSegment]
    ) -> ShardPlace | None:
        """Where a track lies, put together from its examples (numbers in the shard) and what was dropped of it."""
        kept = [(entry.key, number, entry.num_frames, entry.members[self._member][2]) for number, entry in members]
        dropped = [(hole.key, None, hole.num_frames, None) for hole in holes]
        keys, examples, frames, audio = zip(*heapq.merge(kept, dropped, key=itemgetter(0)))
        if list(keys) != segment_keys(track, len(keys)):
            return None
        for hole in holes:
            if (hole.start_sample, hole.segments) != (sum(frames[: hole.segment]) * HOP, len(keys)):
                return None
        return ShardPlace(shard=shard, examples=examples, frames=frames, audio=audio)


class SegmentedAudio:
    """A track in a shard: int16, 24 kHz mono, read segment by segment; zeros where one was dropped."""

    def __init__(self, reader: ShardReader, place: ShardPlace):
        self._reader = reader
        self._place = place
        self._starts = np.cumsum([0, *place.frames])

    def __enter__(self) -> "SegmentedAudio":
        return self

    def __exit__(self, *exception) -> None:
        pass

    def read(self, start: int, count: int) -> np.ndarray:
        """int16 samples [start, start + count), as many of them as there are."""
        stop = min(start + count, int(self._starts[-1]) * HOP)
        first, last = start // HOP, -(-stop // HOP)
        pieces = [np.zeros(0, np.int16), *self._read_frames(first, last)]
        return np.concatenate(pieces)[start - first * HOP : stop - first * HOP]

    def blocks(self) -> Iterator[np.ndarray]:
        """The track from its start as float32 blocks in [-1, 1), one a segment."""
        for audio in self._read_frames(0, int(self._starts[-1])):
            yield to_float(audio)

    def _read_frames(self, first: int, last: int) -> Iterator[np.ndarray]:
        for example, begin, end in zip(self._place.examples, self._starts.tolist(), self._starts[1:].tolist()):
            start, stop = max(first, begin), min(last, end)
            if start < stop:
                yield self._clip(example, start - begin, stop - start)

    def _clip(self, example: int | None, start: int, count: int) -> np.ndarray:
        """Frames [start, start + count) of a segment; silence where it was dropped."""
        if example is None:
            return np.zeros(count * HOP, np.int16)
        return self._reader.read(self._place.shard, example, start, count).audio


class SegmentedTokens(SegmentedAudio):
    """A document in a shard of text alone: its tokens, uint16, read segment by segment."""

    def read(self, start: int, count: int) -> np.ndarray:
        """The tokens that stand for samples [start, start + count), whole frames of 320, as many of
        them as there are.
        """
        stop = min((start + count) // HOP, int(self._starts[-1]))
        return np.concatenate([np.zeros(0, np.uint16), *self._read_frames(start // HOP, stop)])

    def blocks(self) -> Iterator[np.ndarray]:
        """Blocks are for resampling, and encoders over tokens take them as they are: nobody asks for any."""
        raise AssertionError("tokens are not resampled")

    def _clip(self, example: int | None, start: int, count: int) -> np.ndarray:
        assert example is not None, "no segment of a document is dropped"
        return self._reader.read(self._place.shard, example, start, count).targets[TOKENS][0]


def segment_keys(track: str, segments: int) -> Sequence[str]:
    """Keys of the first segments of a track."""
    return [f"{track}-{number:05d}" for number in range(segments)]
