"""One shard task from decode to record: decode ahead in threads, label whole tracks, cut, write.

Every stage is a stream, so a track of any length needs the memory of a segment and of each teacher's chunk.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.audio_blocks import recut
from pipeline.decode import DecodeError
from pipeline.frames import HOP, SAMPLE_RATE
from pipeline.manifest import Track
from pipeline.shard_format import Example, SegmentInfo
from pipeline.shard_plan import ShardTask, cut, planned_segments
from pipeline.shard_record import DroppedTrack, ShardRecord
from pipeline.shard_writer import write_shard
from pipeline.teacher import Teacher
from pipeline.track_audio import TrackAudio, decode_track


def process_shard(
    task: ShardTask,
    teachers: list[Teacher],
    root: str,
    out: str,
    backend: dict,
    decode_threads: int = 2,
    report: Callable[[float], None] = lambda seconds: None,
) -> ShardRecord:
    """Label one shard and publish it in the folder `out`.

    A track that cannot be used is dropped under a reason; a file that cannot be reached is an error, since
    another run may reach it. `report` is called with the seconds of each finished example or dropped track.

    Raises:
        OSError: a file of the manifest, or the output folder, cannot be reached.
        ValueError: a teacher wrote what its specification does not allow.
    """
    def outcomes() -> Iterator[Example | DroppedTrack]:
        for track, decoded in _decode_ahead(task.tracks, root, decode_threads):
            for outcome in _outcomes_of(track, decoded, task, teachers):
                yield outcome
                report(outcome.info.num_samples / SAMPLE_RATE if isinstance(outcome, Example) else track.seconds)

    return write_shard(
        out, task.name, outcomes(), [teacher.spec for teacher in teachers],
        audio_member=task.config.audio, plan_fingerprint=task.fingerprint(), backend=backend,
    )


def _decode_ahead(tracks: list[Track], root: str, threads: int) -> Iterator[tuple[Track, TrackAudio | DecodeError]]:
    """Decode in threads, hand over in order; at most `threads` decoded tracks wait on disk."""
    def attempt(track: Track) -> TrackAudio | DecodeError:
        try:
            return decode_track(track, root)
        except DecodeError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[Track, Future]] = deque()
        try:
            for track in tracks:
                waiting.append((track, pool.submit(attempt, track)))
                if len(waiting) > threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _outcomes_of(
    track: Track, decoded: TrackAudio | DecodeError, task: ShardTask, teachers: list[Teacher]
) -> Iterator[Example | DroppedTrack]:
    expected = max(1, len(planned_segments(track, task.config)))
    if isinstance(decoded, DecodeError):
        yield DroppedTrack(track=track.key, reason=decoded.reason, detail=decoded.detail, segments=expected)
        return
    with decoded:
        lengths = cut(decoded.num_frames, task.config)
        if lengths:
            yield from _label_segments(track, decoded, lengths, teachers)
        else:
            detail = f"{track.seconds} s, the shortest segment has {task.config.shortest_seconds} s"
            yield DroppedTrack(track=track.key, reason="too_short", detail=detail, segments=expected)


def _label_segments(
    track: Track, audio: TrackAudio, lengths: list[int], teachers: list[Teacher]
) -> Iterator[Example]:
    """The track's examples, one at a time; `lengths` are the frames of its segments."""
    labels = {
        teacher.spec.name: recut(teacher.label(audio.blocks()), [*lengths, 1], teacher.spec.frame_axis)
        for teacher in teachers
    }
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
