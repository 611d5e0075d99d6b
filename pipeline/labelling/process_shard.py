"""One shard task from decode to record: decode ahead in threads, label whole tracks, cut, write.

Every stage is a stream, so a track of any length needs the memory of a few segments, those being encoded, and of each
teacher's chunk; a teacher that labels tracks side by side also holds the labels of those that are ahead.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import tee
from types import MappingProxyType

import numpy as np

from mert_foundry.pipeline.audio.blocks import SILENCE_DBFS, peak_of, recut, to_dbfs
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.read_ahead import read_ahead
from mert_foundry.pipeline.audio.track_audio import TrackAudio
from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE
from mert_foundry.pipeline.labelling.plan import SegmentConfig, ShardTask, cut, planned_segments, segment_values
from mert_foundry.pipeline.labelling.shard_writer import Outcome, write_shard
from mert_foundry.pipeline.manifest.decode_track import decode_track
from mert_foundry.pipeline.manifest.rows import Track
from mert_foundry.pipeline.shards.format import Example, SegmentInfo, check_example
from mert_foundry.pipeline.shards.record import DroppedSegment, DroppedTrack, ShardRecord
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.shards.text import Text
from mert_foundry.pipeline.teachers.teacher import Teacher, label_tracks
from mert_foundry.pipeline.text.tokenizer import TextTokenizer

# Threads of one process share an interpreter, which takes a part of the decoding: 16 of them decoded MP3 at half the
# speed of one, on 16 cores (docs/measurements.md). More processes decode more.
DECODE_THREADS = 2
# Processes that share a GPU, no more than its share of the cores: each decodes for itself, and needs about 1.5 GB
# there.
LABELLERS_PER_GPU = 8

NONE_REFUSED: Mapping[str, DecodeError] = MappingProxyType({})


def process_shard(
    task: ShardTask,
    teachers: list[Teacher],
    root: str,
    out: str,
    backend: dict,
    *,
    device: str = "cpu",
    decode_threads: int = DECODE_THREADS,
    refused: Mapping[str, DecodeError] = NONE_REFUSED,
    report: Callable[[float], None] = lambda seconds: None,
    tokenizer: TextTokenizer | None = None,
) -> ShardRecord:
    """Label one shard and publish it in the folder `out`.

    A track or segment that cannot be used is dropped under a reason; a file that cannot be reached is an error, since
    another run may reach it. `device` is where tracks are resampled, with the same result on any. `refused` has tracks
    by key that are not to be opened, and why. `report` is called with the seconds of each example handed to the writer
    and of each dropped track or segment.

    Raises:
        OSError: a file of the manifest, or the output folder, cannot be reached.
        ValueError: a teacher wrote what its specification does not allow.
    """
    decoded = read_ahead(task.tracks, partial(_attempt, root, device, task.config, refused), decode_threads)
    assert (task.text is None) == (tokenizer is None), "a task with text needs a tokenizer"
    with closing(_outcomes(decoded, task, teachers, tokenizer, report)) as outcomes:
        return write_shard(
            out,
            task.name,
            outcomes,
            [teacher.spec for teacher in teachers],
            audio_member=task.config.audio,
            plan_fingerprint=task.fingerprint(),
            backend=backend,
            text=tokenizer.spec(task.text) if tokenizer and task.text else None,
        )


def _outcomes(
    decoded: Generator[tuple[Track, "_SegmentedTrack | DecodeError"], None, None],
    task: ShardTask,
    teachers: list[Teacher],
    tokenizer: TextTokenizer | None,
    report: Callable[[float], None],
) -> Generator[Outcome, None, None]:
    """What the shard's tracks come to, in the order of the task. They are decoded ahead; at most as many as there are
    threads wait for the teacher that is furthest ahead."""
    with closing(decoded):
        # Each teacher has its own view of the tracks: one that labels several at once reads ahead, at most to the end.
        tracks, *views = tee(decoded, 1 + len(teachers))
        labels = [
            (teacher.spec, label_tracks(teacher, _audio(view))) for teacher, view in zip(teachers, views, strict=True)
        ]
        for track, segmented in tracks:
            text = tokenizer.encode(task.text.text_of(track)) if tokenizer and task.text else None
            for outcome in _outcomes_of(track, segmented, task.config, labels, text):
                yield outcome
                report(_seconds(outcome, track))


@dataclass(frozen=True)
class _SegmentedTrack:
    """A decoded track, to be cut into segments of `lengths` frames.

    `silent` are those to drop, whose samples are zero by now: segment number to detail.
    """

    audio: TrackAudio
    lengths: list[int]
    silent: dict[int, str]


def _attempt(
    root: str, device: str, config: SegmentConfig, refused: Mapping[str, DecodeError], track: Track
) -> _SegmentedTrack | DecodeError:
    """A decoded track, or why it cannot be used; called in threads."""
    if track.key in refused:
        return refused[track.key]
    try:
        return _segment(track, decode_track(track, root, device), config)
    except DecodeError as error:
        return error


def _segment(track: Track, audio: TrackAudio, config: SegmentConfig) -> _SegmentedTrack:
    """Lay out the segments of a track and set silent ones to zero. Raises DecodeError when no other is there."""
    lengths = cut(audio.num_frames, config)
    peaks = _silence(audio, lengths) if config.drop_silent else {}
    if len(peaks) < len(lengths):
        return _SegmentedTrack(audio, lengths, {number: _too_quiet(peak) for number, peak in peaks.items()})
    audio.close()
    if lengths:
        raise DecodeError("silent", _too_quiet(max(peaks.values())))
    raise DecodeError("too_short", f"{track.seconds} s, the shortest segment has {config.shortest_seconds} s")


def _silence(audio: TrackAudio, lengths: list[int]) -> dict[int, float]:
    """Set silent segments to zero; their peaks (dBFS) by number.

    Before any teacher hears them: the labels beside a silent segment then do not depend on samples that the shard
    will not have, and can be made again from the shard alone.
    """
    peaks, start = {}, 0
    for number, frames in enumerate(lengths):
        peak = to_dbfs(peak_of(audio.read(start * HOP, frames * HOP)))
        if peak < SILENCE_DBFS:
            audio.silence(start * HOP, frames * HOP)
            peaks[number] = peak
        start += frames
    return peaks


def _too_quiet(peak: float) -> str:
    return f"peak {peak:.1f} dBFS, at least {SILENCE_DBFS} dBFS is asked for"


def _audio(tracks: Iterable[tuple[Track, _SegmentedTrack | DecodeError]]) -> Iterator[Iterator[np.ndarray]]:
    """The blocks of each track that could be decoded."""
    return (segmented.audio.blocks() for _, segmented in tracks if isinstance(segmented, _SegmentedTrack))


def _outcomes_of(
    track: Track,
    segmented: _SegmentedTrack | DecodeError,
    config: SegmentConfig,
    labels: list[tuple[TargetSpec, Iterator[Iterator[np.ndarray]]]],
    text: Text | None,
) -> Iterator[Outcome]:
    if isinstance(segmented, DecodeError):
        expected = max(1, len(planned_segments(track, config)))
        yield DroppedTrack(track=track.key, reason=segmented.reason, detail=segmented.detail, segments=expected)
        return
    with segmented.audio:
        pieces = {
            spec.name: recut(next(of_tracks), [*segmented.lengths, 1], spec.frame_axis) for spec, of_tracks in labels
        }
        specs = [spec for spec, _ in labels]
        for example in _examples(track, segmented, pieces):
            detail = segmented.silent.get(example.info.segment)
            if detail is None:
                yield replace(example, text=text)
            else:
                check_example(example, specs)  # as the shard writer would: a teacher at fault is not passed over
                yield DroppedSegment(**example.info.model_dump(), reason="silent", detail=detail)


def _examples(track: Track, segmented: _SegmentedTrack, labels: dict[str, Iterator[np.ndarray]]) -> Iterator[Example]:
    """The track's segments, one at a time, those to drop included; `labels` are cut as they are."""
    for values in segment_values(track, segmented.lengths):
        info = SegmentInfo(**values)
        # A teacher that ends early gives a piece of the wrong shape, or none; the shard writer refuses both by name.
        targets = {name: piece for name, pieces in labels.items() if (piece := next(pieces, None)) is not None}
        yield Example(info, segmented.audio.read(info.start_sample, info.num_samples), targets)
    for name, pieces in labels.items():
        if next(pieces, None) is not None:
            raise ValueError(
                f"{track.key}: the teacher of {name} gave more than the track's {sum(segmented.lengths)} frames"
            )


def _seconds(outcome: Outcome, track: Track) -> float:
    if isinstance(outcome, DroppedTrack):
        return track.seconds
    info = outcome.info if isinstance(outcome, Example) else outcome
    return info.num_samples / SAMPLE_RATE
