"""One shard task from decode to record: decode ahead in threads, label whole tracks, cut, write."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from pipeline.decode import AudioDigest, DecodeError, open_audio
from pipeline.frames import HOP, SAMPLE_RATE
from pipeline.manifest import Track, file_sha256
from pipeline.resample import decoded_track, to_float
from pipeline.shard_format import Example, SegmentInfo
from pipeline.shard_plan import ShardTask, cut, planned_segments
from pipeline.shard_record import DroppedTrack, ShardRecord
from pipeline.shard_writer import write_shard
from pipeline.storage import local_copy
from pipeline.teacher import Teacher


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
    another run may reach it. `report` is called with the seconds of each finished track.

    Raises:
        OSError: a file of the manifest, or the output folder, cannot be reached.
        ValueError: a teacher wrote what its specification does not allow.
    """
    def outcomes() -> Iterator[Example | DroppedTrack]:
        for track, decoded in _decode_ahead(task.tracks, root, decode_threads):
            yield from _label_track(track, decoded, task, teachers)
            report(track.seconds)

    return write_shard(
        out, task.name, outcomes(), [teacher.spec for teacher in teachers],
        audio_member=task.config.audio, plan_fingerprint=task.fingerprint(), backend=backend,
    )


def decode_track(track: Track, root: str) -> np.ndarray:
    """Decode a track of the manifest to int16 `[T]`, 24 kHz mono, T a multiple of 320.

    Raises:
        DecodeError: `changed` when the decoded audio is not the one the manifest knows, or as `open_audio`.
    """
    with local_copy(root, track.path) as path, open_audio(path) as audio:
        digest = AudioDigest(audio.header)
        samples = decoded_track(digest.follow(audio.blocks()), audio.header.sample_rate)
        # Lossy decoders round differently on another CPU: the same file of the same length is the same music.
        same = digest.hexdigest() == track.audio_sha256 or (
            digest.num_samples == track.num_samples and file_sha256(path) == track.sha256
        )
    if not same:
        raise DecodeError(
            "changed", f"{digest.num_samples} samples with SHA-256 {digest.hexdigest()},"
            f" the manifest has {track.num_samples} with {track.audio_sha256}"
        )
    return samples


def _decode_ahead(tracks: list[Track], root: str, threads: int) -> Iterator[tuple[Track, np.ndarray | DecodeError]]:
    """Decode in threads, hand over in order; at most `threads` tracks wait in memory."""
    def attempt(track: Track) -> np.ndarray | DecodeError:
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


def _label_track(
    track: Track, decoded: np.ndarray | DecodeError, task: ShardTask, teachers: list[Teacher]
) -> Iterator[Example | DroppedTrack]:
    expected = max(1, len(planned_segments(track, task.config)))
    if isinstance(decoded, DecodeError):
        yield DroppedTrack(track=track.key, reason=decoded.reason, detail=decoded.detail, segments=expected)
        return
    lengths = cut(len(decoded) // HOP, task.config)
    if not lengths:
        detail = f"{track.seconds} s, the shortest segment has {task.config.shortest_seconds} s"
        yield DroppedTrack(track=track.key, reason="too_short", detail=detail, segments=expected)
        return
    audio = to_float(decoded)
    targets = {teacher.spec.name: teacher.label(audio) for teacher in teachers}
    start = 0
    for number, frames in enumerate(lengths):
        stop = start + frames
        info = SegmentInfo(
            track=track.key, segment=number, segments=len(lengths), start_sample=start * HOP,
            num_samples=frames * HOP, num_frames=frames, audio_sha256=track.audio_sha256, sample_rate=SAMPLE_RATE,
        )
        pieces = {
            teacher.spec.name: np.take(targets[teacher.spec.name], range(start, stop), teacher.spec.frame_axis)
            for teacher in teachers
        }
        yield Example(info, decoded[start * HOP : stop * HOP], pieces)
        start = stop
