"""Random access to the examples of shards: any frame range of any example; no randomness in here.

Local tars are read by `pread` on a bounded set of open files, others by ranges through fsspec, or from local copies.
Only what is needed is read: the rows of a continuous target, the samples of PCM; FLAC and codes
are read whole (a member is small) and cut after decoding. Threads may share a reader.
"""

import heapq
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from mert_foundry.pipeline.frames import HOP
from mert_foundry.pipeline.shards.arrays import decode_array
from mert_foundry.pipeline.shards.format import NO_AUDIO, AudioMember, SegmentInfo, decode_info, decode_intact_flac
from mert_foundry.pipeline.shards.index import ShardEntry, ShardIndex, load_listed_record, parse_listed_record
from mert_foundry.pipeline.shards.members import Span, check_checksum, check_size, find_member, find_rows, read_spans
from mert_foundry.pipeline.shards.record import DroppedSegment, ExampleEntry, ShardRecord
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.shards.text import TOKENS_MEMBER, decode_tokens
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.patience import Patience, ShortRead

AUDIO = "audio"  # among the arrays of a cut, beside the names of targets

_Place = tuple[int, np.ndarray]  # a frame, and what to fill from there on
FindCopy = Callable[[int], tuple[Path, Path]]  # of a shard: tar and record


@dataclass(frozen=True)
class Clip:
    """A frame range of an example: `audio` int16 `[320 n]`, of no sample in a set without audio, targets `[K, n]` or
    `[n, bins]`.
    """

    key: str
    audio: np.ndarray
    targets: Mapping[str, np.ndarray]


class Cut(NamedTuple):
    """The frames of an example that fill `arrays`: `audio`, where the set has any, and every target, in a clip's shapes
    and dtypes.

    The arrays are contiguous but for those of discrete targets.
    """

    start_frame: int
    num_frames: int
    arrays: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class LabelledTrack:
    """A whole track put together from its segments: `audio` int16 `[T]`, targets over T / 320 frames.

    Both are zero where a segment was dropped. For the audio that is what the teachers heard; of the targets only the
    frames of examples mean anything, and `starts` has the first frame of each, by its number in the shard.
    """

    key: str
    audio_sha256: str
    starts: Mapping[int, int]
    audio: np.ndarray
    targets: Mapping[str, np.ndarray]


class ShardReader:
    """Reads from `shards` of the set in `folder`; shard numbers are positions in `shards`.

    Args:
        folder: local path or fsspec URL of the shard folder.
        index: its index.
        shards: the shards to read from, for example `index.shards("train")`.
        open_shards: shards whose file and member table are kept at hand.
        patience: seconds that a remote storage may be out of reach before a read fails.
        find_copy: gives tar and record of a shard on this machine, once they are there, instead of those in `folder`.
    """

    def __init__(
        self,
        folder: str,
        index: ShardIndex,
        shards: Sequence[ShardEntry],
        open_shards: int = 32,
        patience: float = 0.0,
        find_copy: FindCopy | None = None,
    ) -> None:
        self._specs = index.targets
        self._audio_member = index.audio_member
        self._text = index.text
        self._patience = waiting = Patience(patience)

        def open_shard(shard: int) -> _OpenShard:
            return _OpenShard(folder, shards[shard], waiting, find_copy(shard) if find_copy else None)

        self._open_shards = _OpenShards(open_shard, open_shards)

    def entries(self, shard: int) -> list[ExampleEntry]:
        """Key, frames and members of every example of a shard, in the order of the tar.

        Raises as `read` does when there is no record, or not the one the index names.
        """
        return self._open_shards.get(shard).entries

    def dropped_segments(self, shard: int) -> list[DroppedSegment]:
        """What was dropped of tracks that have examples in a shard. Raises as `entries`."""
        return self._open_shards.get(shard).dropped_segments

    def read(self, shard: int, example: int, start_frame: int = 0, num_frames: int | None = None) -> Clip:
        """Frames [start_frame, start_frame + num_frames) of an example, to its end if None. Raises as `read_cuts`."""
        entry = self._open_shards.get(shard).entries[example]
        num_frames = entry.num_frames - start_frame if num_frames is None else num_frames
        arrays = self._allocate(max(0, num_frames))
        self.read_cuts(shard, example, [Cut(start_frame, num_frames, arrays)])
        return Clip(entry.key, arrays.get(AUDIO, NO_AUDIO), {spec.name: arrays[spec.name] for spec in self._specs})

    def read_cuts(self, shard: int, example: int, cuts: Sequence[Cut]) -> None:
        """Read cuts of an example into their arrays: what is stored in one piece is read, and its start decoded, once
        for all.

        Raises:
            OSError: no tar or record, or the storage failed; names the file, or shard and key.
            ValueError: a short file, damaged member or foreign record; names shard, key and both values.
        """
        opened = self._open_shards.get(shard)
        entry = opened.entries[example]
        for start, frames in ((cut.start_frame, cut.num_frames) for cut in cuts):
            if start < 0 or frames < 1 or start + frames > entry.num_frames:
                raise ValueError(
                    f"{opened.url}: {entry.key}: frames {start} to {start + frames} asked for, it has"
                    f" {entry.num_frames}"
                )
        parts: list[_Part] = []
        if self._audio_member:
            places = [(cut.start_frame, cut.arrays[AUDIO]) for cut in cuts]
            parts += self._audio_parts(opened, entry, self._audio_member, places)
        for spec in self._specs:
            parts += _target_parts(opened, entry, spec, [(cut.start_frame, cut.arrays[spec.name]) for cut in cuts])
        opened.read_parts(parts)

    def read_target(self, shard: int, example: int, name: str) -> np.ndarray:
        """A target of a whole example as it is stored, `[K, F]` or `[F, bins]`, without its audio. Raises as `read`."""
        opened = self._open_shards.get(shard)
        entry = opened.entries[example]
        spec = next(spec for spec in self._specs if spec.name == name)
        array = np.empty(spec.shape(entry.num_frames), spec.dtype)
        opened.read_parts(_target_parts(opened, entry, spec, [(0, array)]))
        return array

    def read_tokens(self, shard: int, example: int) -> np.ndarray | None:
        """The tokens `[n]` of the text of an example, as stored; None in a set without text. Raises as `read_cuts`."""
        if self._text is None:
            return None
        opened = self._open_shards.get(shard)
        entry = opened.entries[example]
        span = opened.member(entry, TOKENS_MEMBER)
        [data] = opened.read([span])
        check_checksum(span.name, data, entry.members[TOKENS_MEMBER][2])
        return decode_tokens(span.name, data, self._text)

    def read_track(self, shard: int, track: str) -> LabelledTrack:
        """All segments of a track, put together in order, with zeros in place of those that were dropped.

        Raises ValueError, besides as `read` does, when the shard does not hold the track from its
        first sample to its last segment.
        """
        opened = self._open_shards.get(shard)
        numbers = [number for number, entry in enumerate(opened.entries) if entry.track == track]
        infos = [self._read_info(opened, opened.entries[number]) for number in numbers]
        holes = [hole for hole in opened.dropped_segments if hole.track == track]
        segments = list(heapq.merge(infos, holes, key=attrgetter("segment")))
        starts = np.cumsum([0] + [info.num_samples for info in segments])[:-1].tolist()
        places = [(info.segment, info.start_sample) for info in segments]
        if not infos or len(segments) != infos[0].segments or places != list(enumerate(starts)):
            wanted = infos[0].segments if infos else "some"
            raise ValueError(
                f"{opened.url}: track {track}: {len(segments)} segments found, {wanted} expected, one after another"
            )
        kept = iter(numbers)
        clips = [
            self._hole(info) if isinstance(info, DroppedSegment) else self.read(shard, next(kept)) for info in segments
        ]
        return LabelledTrack(
            key=track,
            audio_sha256=infos[0].audio_sha256,
            starts={number: info.start_sample // HOP for number, info in zip(numbers, infos, strict=True)},
            audio=np.concatenate([clip.audio for clip in clips]),
            targets={
                spec.name: np.concatenate([clip.targets[spec.name] for clip in clips], axis=spec.frame_axis)
                for spec in self._specs
            },
        )

    @property
    def says_that_it_waits(self) -> bool:
        """Whether a read has said within the last minute that it waits for the storage."""
        return self._patience.has_spoken

    def stop_waiting(self) -> None:
        """Let no read wait for the storage any more, in whatever thread."""
        self._patience.end()

    def keep_only(self, shards: Container[int]) -> None:
        """Close the files of all other shards."""
        self._open_shards.keep_only(lambda shard: shard in shards)

    def close_shard(self, shard: int) -> None:
        """Close the file of a shard; the next read opens it again."""
        self._open_shards.keep_only(lambda other: other != shard)

    def close(self) -> None:
        """Let go of all files."""
        self.keep_only(())

    def _hole(self, info: DroppedSegment) -> Clip:
        targets = {spec.name: np.zeros(spec.shape(info.num_frames), spec.dtype) for spec in self._specs}
        return Clip(info.key, np.zeros(info.num_samples if self._audio_member else 0, np.int16), targets)

    def _read_info(self, opened: "_OpenShard", entry: ExampleEntry) -> SegmentInfo:
        span = opened.member(entry, "json")
        return decode_info(span.name, opened.read([span])[0])

    def _allocate(self, num_frames: int) -> dict[str, np.ndarray]:
        arrays = {spec.name: np.empty(spec.shape(num_frames), spec.dtype) for spec in self._specs}
        return {**({AUDIO: np.empty(HOP * num_frames, np.int16)} if self._audio_member else {}), **arrays}

    def _audio_parts(
        self, opened: "_OpenShard", entry: ExampleEntry, audio_member: AudioMember, places: Sequence[_Place]
    ) -> list["_Part"]:
        whole = opened.member(entry, audio_member)
        num_samples = HOP * entry.num_frames
        if audio_member == "flac":

            def decode(data: bytes) -> None:
                check_checksum(whole.name, data, entry.members["flac"][2])
                decode_intact_flac(whole.name, data, num_samples, [(HOP * start, audio) for start, audio in places])

            return [_Part(whole, decode)]
        return [_Part(find_rows(whole, num_samples, 2, HOP * start, len(audio)), audio) for start, audio in places]


class _Part(NamedTuple):
    """Bytes to read, and where they go: right into a contiguous array, or to a function that decodes them."""

    span: Span
    into: np.ndarray | Callable[[bytes], None]


def _target_parts(opened: "_OpenShard", entry: ExampleEntry, spec: TargetSpec, places: Sequence[_Place]) -> list[_Part]:
    """The parts of a target that the arrays hold, each from a frame on."""
    suffix = f"{spec.name}.npy"
    whole = opened.member(entry, suffix)
    if spec.kind == "continuous":
        return [
            _Part(find_rows(whole, entry.num_frames, spec.size * array.itemsize, start, len(array)), array)
            for start, array in places
        ]

    def decode(data: bytes) -> None:  # frames are the last axis: a range of them is not one range of bytes
        check_checksum(whole.name, data, entry.members[suffix][2])
        codes = decode_array(whole.name, data, spec.dtype, spec.shape(entry.num_frames))
        for start, array in places:
            np.copyto(array, codes[:, start : start + array.shape[1]])

    return [_Part(whole, decode)]


class _OpenShards:
    """The shards used last, at most `size` of them; threads may share it."""

    def __init__(self, open_shard: Callable[[int], "_OpenShard"], size: int) -> None:
        self._open_shard = open_shard
        self._size = size
        self._lock = Lock()
        self._shards: OrderedDict[int, _OpenShard] = OrderedDict()

    def get(self, shard: int) -> "_OpenShard":
        """A shard, opened when it is not at hand. Raises as opening it does."""
        with self._lock:
            if opened := self._shards.get(shard):
                self._shards.move_to_end(shard)
                return opened
        opened = self._open_shard(shard)  # which may take long, and must not keep other shards waiting
        with self._lock:
            opened = self._shards.setdefault(shard, opened)
            if len(self._shards) > self._size:
                self._shards.popitem(last=False)
        return opened

    def keep_only(self, wanted: Callable[[int], bool]) -> None:
        """Drop the others; their files are closed once no thread reads them."""
        with self._lock:
            for shard in [shard for shard in self._shards if not wanted(shard)]:
                del self._shards[shard]


def _load_record(folder: str, shard: ShardEntry, patience: Patience, copy: Path | None) -> ShardRecord:
    """The record that the index names, of a copy or of the folder."""
    if copy is not None:
        return parse_listed_record(str(copy), copy.read_bytes(), shard)
    if files.is_local(folder):
        return load_listed_record(folder, shard)
    return patience.read(f"record of {shard.url}", lambda: load_listed_record(folder, shard))


class _OpenShard:
    """One shard at hand: its tar, open when local, and what its record lists, read when first asked for."""

    def __init__(
        self, folder: str, shard: ShardEntry, patience: Patience, copy: tuple[Path, Path] | None = None
    ) -> None:
        self.url = shard.url
        self._patience = patience
        self._shard = shard
        self._lock = Lock()
        self._listed: tuple[list[ExampleEntry], list[DroppedSegment]] | None = None
        self._load_record = partial(_load_record, folder, shard, patience, copy[1] if copy else None)
        self._filesystem, self._path = files.open_filesystem(str(copy[0]) if copy else files.join(folder, shard.url))
        self._descriptor: int | None = None
        if copy or files.is_local(folder):
            self._descriptor = os.open(self._path, os.O_RDONLY)
            # Closed with the last reference, so never under a thread that still reads.
            weakref.finalize(self, os.close, self._descriptor)

    @property
    def entries(self) -> list[ExampleEntry]:
        """The member table."""
        return self._load()[0]

    @property
    def dropped_segments(self) -> list[DroppedSegment]:
        """What is missing between its examples."""
        return self._load()[1]

    def _load(self) -> tuple[list[ExampleEntry], list[DroppedSegment]]:
        """Member table and dropped segments, from the record that the index names."""
        with self._lock:
            if self._listed is None:
                record = self._load_record()
                self._listed = record.members, record.dropped_segments
            return self._listed

    def member(self, entry: ExampleEntry, suffix: str) -> Span:
        """Where a member of an example lies."""
        return find_member(f"{self.url}: {entry.key}.", entry, suffix, self._shard.filesize)

    def read(self, spans: Sequence[Span]) -> Sequence[bytes]:
        """The bytes of each span. Raises OSError or, for a file too short, ValueError, naming the member."""
        if self._descriptor is None:
            return read_spans(spans, self._read_remote)
        try:
            return read_spans(spans, self._read_local)
        except OSError as error:
            raise OSError(f"{spans[0].name}: {error}") from error

    def read_parts(self, parts: Sequence[_Part]) -> None:
        """Read each part to where it goes. Raises as `read`, and as the functions that decode."""
        if self._descriptor is None:
            for part, content in zip(parts, self.read([part.span for part in parts]), strict=True):
                if isinstance(part.into, np.ndarray):
                    np.copyto(part.into, np.frombuffer(content, part.into.dtype).reshape(part.into.shape))
                else:
                    part.into(content)
            return
        for span, into in parts:
            if isinstance(into, np.ndarray):
                assert into.nbytes == span.size, f"{span.name}: {span.size} bytes do not fit {into.nbytes}"
                try:
                    found = os.preadv(self._descriptor, [into.data], span.offset)
                except OSError as error:
                    raise OSError(f"{span.name}: {error}") from error
                check_size(span, found)
            else:
                into(self.read([span])[0])

    def _read_local(self, spans: Sequence[Span]) -> Sequence[bytes]:
        assert self._descriptor is not None
        return [os.pread(self._descriptor, span.size, span.offset) for span in spans]

    def _read_remote(self, spans: Sequence[Span]) -> Sequence[bytes]:
        starts = [span.offset for span in spans]
        ends = [span.offset + span.size for span in spans]

        def attempt() -> Sequence[bytes]:
            contents = self._filesystem.cat_ranges([self._path] * len(spans), starts, ends, on_error="raise")
            if any(len(content) != span.size for content, span in zip(contents, spans, strict=True)):
                raise ShortRead(contents)
            return contents

        try:
            return self._patience.read(spans[0].name, attempt)
        except ShortRead as error:
            return error.contents
