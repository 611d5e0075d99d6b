"""One shard task from decode to record: decode ahead in threads, label whole tracks, cut, write.

Every stage is a stream, so a track of any length needs the memory of a few segments, those being encoded, and of each
teacher's chunk; a teacher that labels tracks side by side also holds the labels of those that are ahead.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import tee

import numpy as np

from pipeline.audio_blocks import recut
from pipeline.decode import DecodeError
from pipeline.frames import HOP, SAMPLE_RATE
from pipeline.manifest import Track
from pipeline.read_ahead import read_ahead
from pipeline.shard_format import Example, SegmentInfo
from pipeline.shard_plan import SegmentConfig, ShardTask, cut, planned_segments
from pipeline.shard_record import DroppedTrack, ShardRecord
from pipeline.shard_writer import write_shard
from pipeline.teacher import TargetSpec, Teacher, label_tracks
from pipeline.track_audio import TrackAudio, decode_track

# Beside a process on every core, and for a GPU that must not wait.
DECODE_THREADS = {"cpu": 2, "cuda": 16}


def process_shard(
    task: ShardTask,
    teachers: list[Teacher],
    root: str,
    out: str,
    backend: dict,
    *,
    device: str = "cpu",
    decode_threads: int = DECODE_THREADS["cpu"],
    report: Callable[[float], None] = lambda seconds: None,
) -> ShardRecord:
    """Label one shard and publish it in the folder `out`.

    A track that cannot be used is dropped under a reason; a file that cannot be reached is an error, since
    another run may reach it. `device` is where tracks are resampled, with the same result on any. `report` is called with
    the seconds of each example handed to the writer and of each dropped track.

    Raises:
        OSError: a file of the manifest, or the output folder, cannot be reached.
        ValueError: a teacher wrote what its specification does not allow.
    """
    def outcomes() -> Iterator[Example | DroppedTrack]:
        with closing(_decode_ahead(task, root, decode_threads, device)) as decoded:
            # Each teacher has its own view of the tracks: one that labels several at once reads ahead, at most to the end.
            tracks, *views = tee(decoded, 1 + len(teachers))
            labels = [
                (teacher.spec, label_tracks(teacher, _audio(view))) for teacher, view in zip(teachers, views, strict=True)
            ]
            for track, audio in tracks:
                for outcome in _outcomes_of(track, audio, task.config, labels):
                    yield outcome
                    report(outcome.info.num_samples / SAMPLE_RATE if isinstance(outcome, Example) else track.seconds)

    with closing(outcomes()) as stream:
        return write_shard(
            out, task.name, stream, [teacher.spec for teacher in teachers],
            audio_member=task.config.audio, plan_fingerprint=task.fingerprint(), backend=backend,
        )


def _decode_ahead(
    task: ShardTask, root: str, threads: int, device: str
) -> Iterator[tuple[Track, TrackAudio | DecodeError]]:
    """Decode in threads, hand over in order; at most `threads` wait for the teacher that is furthest ahead."""
    def attempt(track: Track) -> TrackAudio | DecodeError:
        try:
            audio = decode_track(track, root, device)
        except DecodeError as error:
            return error
        if cut(audio.num_frames, task.config):
            return audio
        audio.close()
        return DecodeError("too_short", f"{track.seconds} s, the shortest segment has {task.config.shortest_seconds} s")

    return read_ahead(task.tracks, attempt, threads)


def _audio(tracks: Iterable[tuple[Track, TrackAudio | DecodeError]]) -> Iterator[Iterator[np.ndarray]]:
    """The blocks of each track that could be decoded."""
    return (audio.blocks() for _, audio in tracks if isinstance(audio, TrackAudio))


def _outcomes_of(
    track: Track,
    audio: TrackAudio | DecodeError,
    config: SegmentConfig,
    labels: list[tuple[TargetSpec, Iterator[Iterator[np.ndarray]]]],
) -> Iterator[Example | DroppedTrack]:
    if isinstance(audio, DecodeError):
        expected = max(1, len(planned_segments(track, config)))
        yield DroppedTrack(track=track.key, reason=audio.reason, detail=audio.detail, segments=expected)
        return
    with audio:
        lengths = cut(audio.num_frames, config)
        yield from _examples(track, audio, lengths, {
            spec.name: recut(next(of_tracks), [*lengths, 1], spec.frame_axis) for spec, of_tracks in labels
        })


def _examples(
    track: Track, audio: TrackAudio, lengths: list[int], labels: dict[str, Iterator[np.ndarray]]
) -> Iterator[Example]:
    """The track's examples, one at a time; `lengths` are the frames of its segments, and of the pieces of `labels`."""
    start = 0
    for number, frames in enumerate(lengths):
        info = SegmentInfo(
            track=track.key, segment=number, segments=len(lengths), start_sample=start * HOP,
            num_samples=frames * HOP, num_frames=frames, audio_sha256=track.audio_sha256, sample_rate=SAMPLE_RATE,
        )
        # A teacher that ends early gives a piece of the wrong shape, or none; the shard writer refuses both by name.
        targets = {name: piece for name, pieces in labels.items() if (piece := next(pieces, None)) is not None}
        yield Example(info, audio.read(start * HOP, frames * HOP), targets)
        start += frames
    for name, pieces in labels.items():
        if next(pieces, None) is not None:
            raise ValueError(f"{track.key}: the teacher of {name} gave more than the track's {start} frames")
