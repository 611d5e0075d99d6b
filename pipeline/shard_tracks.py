"""The tracks of a shard set, their audio put together again from its segments; no decoder of files is needed."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import numpy as np

from pipeline.feature_plan import ShardPlace, SourceTrack
from pipeline.frames import HOP
from pipeline.pcm import to_float
from pipeline.shard_index import ShardIndex, load_index
from pipeline.shard_reader import ShardReader

THREADS = 16  # that wait for an object store


class ShardTracks:
    """The tracks of all splits of a shard folder (local or fsspec URL), sorted by key."""

    def __init__(self, folder: str):
        self.index: ShardIndex = load_index(folder)
        # A reader that knows no target reads none.
        audio_only = self.index.model_copy(update={"targets": []})
        self._reader = ShardReader(folder, audio_only, self.index.shardlist)

    def list_tracks(self) -> list[SourceTrack]:
        """Every track, from the records alone. Raises ValueError when a track is not whole or stands in two shards."""
        tracks: dict[str, SourceTrack] = {}
        with ThreadPoolExecutor(THREADS) as threads:
            all_entries = list(threads.map(self._reader.entries, range(len(self.index.shardlist))))
        for number, (shard, entries) in enumerate(zip(self.index.shardlist, all_entries)):
            for key, members in groupby(enumerate(entries), key=lambda item: item[1].track):
                members = list(members)
                if key in tracks or [entry.key for _, entry in members] != segment_keys(key, len(members)):
                    raise ValueError(f"{shard.url}: the segments of track {key} are not all here, one after another")
                frames = tuple(entry.num_frames for _, entry in members)
                examples = tuple(place for place, _ in members)
                audio = tuple(entry.members[self.index.audio_member][2] for _, entry in members)
                place = ShardPlace(shard=number, examples=examples, frames=frames, audio=audio)
                tracks[key] = SourceTrack(key=key, num_samples=sum(frames) * HOP, split=shard.split, group="", place=place)
        return [tracks[key] for key in sorted(tracks)]

    def open(self, track: SourceTrack) -> "SegmentedAudio":
        """The audio of one of `list_tracks`; nothing is read yet."""
        return SegmentedAudio(self._reader, track.place)

    def close(self) -> None:
        """Let go of all files."""
        self._reader.close()


class SegmentedAudio:
    """A track in a shard: int16, 24 kHz mono, read segment by segment."""

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
        for example, begin, end in zip(self._place.examples, self._starts, self._starts[1:]):
            if begin < last and first < end:
                start = max(first, int(begin))
                clip = self._reader.read(self._place.shard, example, start - int(begin), min(last, int(end)) - start)
                yield clip.audio


def segment_keys(track: str, segments: int) -> Sequence[str]:
    """Keys of the first segments of a track."""
    return [f"{track}-{number:05d}" for number in range(segments)]
