"""Re-read one shard against the index and its record, and name every fault by file and key.

A damaged shard must yield a list, never a traceback: each step goes as far as the bytes let it.
"""

import hashlib
import heapq
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mert_foundry.pipeline.frames import resampled_length, whole_frames
from mert_foundry.pipeline.labelling.plan import choose_tracks
from mert_foundry.pipeline.labelling.resume import shard_names
from mert_foundry.pipeline.manifest.rows import Manifest, Track
from mert_foundry.pipeline.manifest.shifted_track import semitones_of
from mert_foundry.pipeline.shards.format import Example, SegmentInfo, decode_example, member_suffixes
from mert_foundry.pipeline.shards.index import (
    ShardEntry,
    ShardIndex,
    find_digest_fault,
    find_record_faults,
)
from mert_foundry.pipeline.shards.members import Span, read_members
from mert_foundry.pipeline.shards.record import DroppedSegment, ExampleEntry, ShardRecord, load_record
from mert_foundry.pipeline.shards.set_statistics import empty_statistics, measure_example, sum_records, summarise_all
from mert_foundry.pipeline.shards.statistics import agree, merge
from mert_foundry.pipeline.shards.text import TOKENIZER_NAME, Text
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.documents import parse_model
from mert_foundry.pipeline.text.tokenizer import TextTokenizer, load_set_tokenizer


@dataclass(frozen=True)
class Fault:
    """One thing wrong: `file` is a name in the shard folder, `key` an example key or None."""

    file: str
    key: str | None
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.message}" if self.key else f"{self.file}: {self.message}"


def verify_shard(folder: str, entry: ShardEntry, index: ShardIndex) -> list[Fault]:
    """All faults of one shard, in the order found; none means tar, record and index agree.

    Checked: presence, size and SHA-256 of tar and record; counts; the member table against the
    tar itself; every member's CRC-32, decodable audio and its length, code ranges, finite values,
    equal frame counts; duplicate keys; every track whole but for the segments dropped; the recorded statistics; that
    tokens are those of the text beside them.
    """
    return list(_faults(folder, entry, index))


def _faults(folder: str, entry: ShardEntry, index: ShardIndex) -> Iterator[Fault]:
    record, faults = _read_record(folder, entry)
    yield from faults
    if record is not None:
        yield from _check_record(record, entry, index)
    with ExitStack() as stack:
        try:
            tar = stack.enter_context(files.local_copy(folder, entry.url))
            size, digest = _size_and_digest(tar)
        except OSError as error:
            yield Fault(entry.url, None, f"cannot be read ({error})")
            return
        if size != entry.filesize:
            yield Fault(entry.url, None, f"{size} bytes, the index says {entry.filesize}")
        if digest != entry.sha256:
            yield Fault(entry.url, None, f"SHA-256 {digest}, the index says {entry.sha256}")
        if record is not None:
            yield from _check_layout(tar, entry.url, record)
            tokenizer, faults = _load_tokenizer(folder, index)
            yield from faults
            yield from _check_examples(tar, entry.url, record, index, tokenizer)


def _read_record(folder: str, entry: ShardEntry) -> tuple[ShardRecord | None, list[Fault]]:
    try:
        content = files.read_bytes(files.join(folder, entry.record))
    except OSError as error:
        return None, [Fault(entry.record, None, f"cannot be read ({error})")]
    faults = []
    if fault := find_digest_fault(entry, hashlib.sha256(content).hexdigest()):
        faults.append(Fault(entry.record, None, fault))
    try:
        return parse_model(entry.record, content, ShardRecord), faults
    except ValueError as error:
        return None, [*faults, Fault(entry.record, None, str(error).removeprefix(f"{entry.record}: "))]


def _check_record(record: ShardRecord, entry: ShardEntry, index: ShardIndex) -> Iterator[Fault]:
    for fault in find_record_faults(record, entry, index):
        yield Fault(entry.record, None, fault)
    seen = set()
    for example in record.members:
        if example.key in seen:
            yield Fault(entry.record, example.key, "the key stands twice in the member table")
        seen.add(example.key)


def _check_layout(tar: Path, url: str, record: ShardRecord) -> Iterator[Fault]:
    """Compare the tar's own headers, as far as they can be read, with the member table."""
    wanted = [
        (f"{example.key}.{suffix}", offset, size)
        for example in record.members
        for suffix, (offset, size, _) in example.members.items()
    ]
    found = []
    try:
        with tarfile.open(tar, "r:") as file:
            for member in file:
                found.append((member.name, member.offset_data, member.size))
    except (tarfile.TarError, OSError, ValueError) as error:
        yield Fault(url, None, f"not a whole tar: {error}")
    for there, here in zip(found, wanted, strict=False):
        if there != here:
            yield Fault(url, _key(here[0]), f"member (name, offset, bytes) {there} in the tar, {here} in the record")
    if len(found) < len(wanted):
        missing = wanted[len(found)][0]
        yield Fault(url, _key(missing), f"no {missing}: {len(found)} of {len(wanted)} members found in the tar")
    if len(found) > len(wanted):
        yield Fault(url, _key(found[len(wanted)][0]), f"{len(found)} members in the tar, {len(wanted)} in the record")


def _key(member: str) -> str:
    return member.partition(".")[0]


def _load_tokenizer(folder: str, index: ShardIndex) -> tuple[TextTokenizer | None, list[Fault]]:
    if index.tokenizer is None:
        return None, []
    try:
        return load_set_tokenizer(folder, index.tokenizer), []
    except (OSError, ValueError) as error:
        return None, [Fault(TOKENIZER_NAME, None, str(error))]


def _check_examples(
    tar: Path, url: str, record: ShardRecord, index: ShardIndex, tokenizer: TextTokenizer | None
) -> Iterator[Fault]:
    infos: list[SegmentInfo] = []
    statistics = empty_statistics(index.targets, index.text)
    with open(tar, "rb") as file:
        for entry in record.members:
            try:
                example = _read_example(file, entry, record, index)
            except ValueError as error:
                yield Fault(url, entry.key, str(error))
                continue
            infos.append(example.info)
            if tokenizer and example.text:
                yield from _check_tokens(url, entry.key, example.text, tokenizer)
            for name, partial in measure_example(example, index.targets, index.text).items():
                statistics[name] = merge(statistics[name], partial)
    if len(infos) < len(record.members):
        return  # statistics and tracks of a part would only repeat the faults above
    if not agree(statistics, record.statistics):
        yield Fault(f"{record.name}.json", None, "the statistics are not those of the examples")
    yield from _check_tracks(url, infos, record.dropped_segments)


def _read_example(file: BinaryIO, entry: ExampleEntry, record: ShardRecord, index: ShardIndex) -> Example:
    def read(spans: Sequence[Span]) -> list[bytes]:
        return [os.pread(file.fileno(), span.size, span.offset) for span in spans]

    suffixes = member_suffixes(index.targets, index.audio_member, index.text)
    members = read_members("", entry, suffixes, record.bytes, read)
    example = decode_example(entry.key, members, index.targets, index.audio_member, index.text)
    if example.info.num_frames != entry.num_frames:
        raise ValueError(f"{example.info.num_frames} frames, the record says {entry.num_frames}")
    return example


def _check_tokens(url: str, key: str, text: Text, tokenizer: TextTokenizer) -> Iterator[Fault]:
    if not np.array_equal(text.tokens, tokenizer.encode(text.text).tokens):
        yield Fault(url, key, f"the tokens are not those of the text {text.text!r}")


def _check_tracks(url: str, infos: list[SegmentInfo], dropped: list[DroppedSegment]) -> Iterator[Fault]:
    """Every track must stand in a row, from its first sample to its last segment, dropped ones in their places."""
    holes: dict[str, list[DroppedSegment]] = {}
    for hole in dropped:
        holes.setdefault(hole.track, []).append(hole)
    for track, group in groupby(infos, key=attrgetter("track")):
        segments = list(heapq.merge(group, holes.pop(track, []), key=attrgetter("segment")))
        yield from (Fault(_file(url, info), info.key, message) for info, message in _track_faults(segments))
    for hole in (hole for of_track in holes.values() for hole in of_track):
        yield Fault(_file(url, hole), hole.key, "dropped as a segment, but no other one of its track is here")


def _track_faults(segments: list[SegmentInfo]) -> Iterator[tuple[SegmentInfo, str]]:
    """What is wrong with the segments of one track, with the segment where it shows."""
    first = segments[0]
    numbers = [info.segment for info in segments]
    if numbers != list(range(first.segments)):
        yield first, f"track {first.track}: segments {numbers} of {first.segments}"
    end = 0
    for info in segments:
        if info.start_sample != end:
            yield info, f"starts at sample {info.start_sample}, the one before ends at {end}"
        if (info.segments, info.audio_sha256) != (first.segments, first.audio_sha256):
            track, other = (f"{each.segments} segments with audio {each.audio_sha256}" for each in (info, first))
            yield info, f"of a track of {track}, {first.key} is of one of {other}"
        end = info.start_sample + info.num_samples


def _file(url: str, info: SegmentInfo) -> str:
    """Where a segment is described: in the tar, or in its record."""
    return f"{url.removesuffix('.tar')}.json" if isinstance(info, DroppedSegment) else url


def _size_and_digest(path: Path) -> tuple[int, str]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def verify_index(folder: str, index: ShardIndex) -> list[Fault]:
    """Faults of what index.json says over all shards, when no shard has one: those it leaves out, and its sums."""
    listed = [entry.name for entry in index.shardlist]
    faults = [
        Fault(name, None, "this shard lies in the folder, but the index does not list it")
        for name in sorted(shard_names(folder) - set(listed))
    ]
    partials, dropped = sum_records(index.targets, (load_record(folder, name) for name in listed), index.text)
    if not agree(summarise_all(partials), index.statistics):
        faults.append(Fault("index.json", None, "the statistics are not those of the records"))
    if dropped != index.dropped:
        faults.append(Fault("index.json", None, f"dropped segments {index.dropped}, the records say {dropped}"))
    return faults


def compare_with_manifest(folder: str, index: ShardIndex, manifest: Manifest) -> list[Fault]:
    """Faults of the index's manifest digest, and of split and length of every track that the set was to take."""
    if manifest.sha256 != index.manifest_sha256:
        return [Fault("index.json", None, f"made from manifest {index.manifest_sha256}, this one is {manifest.sha256}")]
    try:
        chosen = choose_tracks(manifest, index.selection, index.augment)
    except ValueError as error:
        return [Fault("index.json", None, str(error))]
    missing = {track.key: track for tracks in chosen.values() for track in tracks}
    rows, meant = {track.key: track for track in manifest.tracks} | missing, set(missing)
    faults = []
    for entry in index.shardlist:
        try:
            record = load_record(folder, entry.name)
        except (OSError, ValueError):
            continue  # a fault of the record, which verify_shards has named
        frames = record.track_frames()
        for key in dict.fromkeys([*frames, *(drop.track for drop in record.dropped_tracks)]):
            missing.pop(key, None)
            message = _track_difference(rows.get(key), entry.split, frames.get(key))
            if not message and key not in meant:
                message = f"not one of the tracks to take ({index.selection})"
            if message:
                faults.append(Fault(entry.url, key, message))
    for key, track in sorted(missing.items()):
        kind = "a shifted copy of a track" if semitones_of(track) else "a track"
        faults.append(Fault("index.json", key, f"{kind} of the manifest, in no shard"))
    return faults


def _track_difference(track: Track | None, split: str, frames: int | None) -> str:
    """How a track in a shard differs from its row of the manifest, or an empty string; `frames` None:
    it was dropped.
    """
    if track is None or track.split != split:
        return f"split {split}, the manifest says {track.split if track else None}"
    planned = whole_frames(resampled_length(track.num_samples, track.sample_rate))
    if frames not in (None, planned):
        return f"{frames} frames in its segments, the manifest says {planned}"
    return ""
