"""Short measurements on this machine: what music becomes as FLAC, and how fast a worker labels."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from mert_foundry.pipeline.audio.blocks import SILENCE_DBFS, peak_of, to_dbfs
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE
from mert_foundry.pipeline.labelling.plan import SegmentConfig, ShardTask, cut
from mert_foundry.pipeline.labelling.process_shard import process_shard
from mert_foundry.pipeline.manifest.decode_track import decode_track
from mert_foundry.pipeline.manifest.rows import Track
from mert_foundry.pipeline.shards.format import encode_flac
from mert_foundry.pipeline.teachers.teacher import Teacher


@dataclass(frozen=True)
class FlacSample:
    """FLAC bytes and audio seconds of `tracks` tracks.

    error: standard error of bytes / seconds, bytes per second, as of a random sample of tracks; 0 for a single one.
    """

    tracks: int
    bytes: int
    seconds: float
    error: float


@dataclass(frozen=True)
class LabellingSample:
    """Audio seconds labelled by one worker, and how long it took; teachers were loaded before."""

    seconds: float
    wall_seconds: float


def evenly(tracks: Sequence[Track], count: int) -> list[Track]:
    """At most `count` tracks at even distances."""
    count = min(count, len(tracks))
    return [tracks[number * len(tracks) // count] for number in range(count)]


def measure_flac(
    tracks: Sequence[Track], root: str, config: SegmentConfig, report: Callable[[float], None]
) -> FlacSample:
    """Encode the segments of tracks as a shard would hold them; `report` is called with the seconds of tracks done so
    far.

    Raises:
        OSError: a file cannot be reached.
        ValueError: no track of them gives a segment.
    """
    sizes, done = [], 0.0
    for track in tracks:
        size = _flac_of(track, root, config)
        done += track.seconds
        report(done)
        if size[1] > 0:
            sizes.append(size)
    total, seconds = sum(size for size, _ in sizes), sum(length for _, length in sizes)
    if not seconds:
        raise ValueError(
            f"none of {len(tracks)} tracks gives a segment to measure FLAC on; flac_bytes_per_second= states it"
        )
    # Of a ratio estimator: what tracks differ from the common rate, by their length.
    rate = total / seconds
    left = [size - rate * length for size, length in sizes]
    error = statistics.stdev(left) * math.sqrt(len(left)) / seconds if len(left) > 1 else 0.0
    return FlacSample(len(sizes), total, seconds, error)


def _flac_of(track: Track, root: str, config: SegmentConfig) -> tuple[int, float]:
    """FLAC bytes and seconds of a track's segments; none of a track that labelling would drop."""
    try:
        audio = decode_track(track, root)
    except DecodeError:
        return 0, 0.0
    size, samples, start = 0, 0, 0
    with audio:
        for frames in cut(audio.num_frames, config):
            segment = audio.read(start * HOP, frames * HOP)
            start += frames
            if config.drop_silent and to_dbfs(peak_of(segment)) < SILENCE_DBFS:
                continue
            size += len(encode_flac(segment))
            samples += len(segment)
    return size, samples / SAMPLE_RATE


def choose_for_labelling(tracks: Sequence[Track], seconds: float) -> list[Track]:
    """Tracks of together about so many seconds; those that are longer by themselves are passed over, if others are
    there.
    """
    chosen: list[Track] = []
    for track in tracks:
        if track.seconds <= seconds and sum(each.seconds for each in chosen) < seconds:
            chosen.append(track)
    return chosen or [min(tracks, key=lambda track: track.seconds)]


def measure_labelling(
    task: ShardTask, teachers: list[Teacher], root: str, device: Literal["cpu", "cuda"], decode_threads: int
) -> LabellingSample:
    """Label a shard as a worker does, into a temporary folder.

    Raises as `process_shard`, ValueError when nothing was labelled.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a labelling worker
    try:
        with tempfile.TemporaryDirectory(prefix="mert-plan-") as folder:
            begin = time.perf_counter()
            record = process_shard(task, teachers, root, folder, {}, device=device, decode_threads=decode_threads)
            wall_seconds = time.perf_counter() - begin
    finally:
        torch.set_num_threads(threads)
    if not record.seconds:
        raise ValueError(
            f"none of {len(task.tracks)} tracks gives an example to measure a worker on; labelling_rate= states it"
        )
    return LabellingSample(record.seconds, wall_seconds)
