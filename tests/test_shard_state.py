"""What of a plan is done: only shard files count, and nothing stale goes unseen."""

import gc
import json
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.decode import DecodeError
from pipeline.manifest import Manifest, ManifestConfig, Track, load_manifest, scan, write_manifest
from pipeline.process_shard import process_shard
from pipeline.shard_plan import SegmentConfig, plan_shards
from pipeline.shard_state import find_unfinished, shard_names
from pipeline.teacher import TargetSpec
from pipeline.track_audio import decode_track


class CountingTeacher:
    """Frame numbers as values: a teacher that needs no weights."""

    spec = TargetSpec(name="count", kind="continuous", dtype="float16", frame_rate=75, size=1, fingerprint="a" * 64, teacher={})

    def label(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        start = 0
        for block in blocks:
            frames = len(block) // 320
            yield np.arange(start, start + frames, dtype=np.float16)[:, None]
            start += frames


@pytest.fixture
def manifest(synthetic_corpus: Path, tmp_path: Path) -> Manifest:
    config = ManifestConfig(root=str(synthetic_corpus), out=str(tmp_path / "manifest"), splits={})
    write_manifest(config, scan(config))
    return load_manifest(config.out)


def label_all(manifest: Manifest, out: Path):
    tasks = plan_shards(manifest, SegmentConfig(segment_seconds=2, shortest_seconds=1, examples_per_shard=4))
    for task in tasks:
        process_shard(task, [CountingTeacher()], manifest.root, str(out), {})
    return tasks


def test_stale_missing_foreign_and_unplanned(manifest: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    tasks = label_all(manifest, out)
    names = [task.name for task in tasks]
    spec = CountingTeacher.spec

    def unfinished(plan=tasks, teacher=spec, relabel=False) -> list[str]:
        return [task.name for task in find_unfinished(str(out), plan, [teacher], "flac", relabel)]

    (out / "notes.json").write_text("{}")
    (out / "dataset-infos.tar").write_text("not ours")
    assert shard_names(str(out)) == set(names) and unfinished() == []

    other = spec.model_copy(update={"fingerprint": "b" * 64})
    with pytest.raises(ValueError, match=f"{'a' * 64}.*{'b' * 64}"):
        unfinished(teacher=other)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert unfinished(teacher=other, relabel=True) == names
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before, "relabel removed a shard of the plan beforehand"

    record = json.loads((out / f"{names[0]}.json").read_text())
    (out / f"{names[0]}.json").write_text(json.dumps(record | {"schema_version": 99}))
    with pytest.raises(ValueError, match="schema_version"):
        unfinished()
    assert unfinished(relabel=True) == names[:1]

    (out / f"{names[0]}.json").unlink()
    assert unfinished() == names[:1]
    with pytest.raises(ValueError, match=f"{names[0]}: a shard this plan does not have"):
        unfinished(plan=tasks[1:])
    assert unfinished(plan=tasks[1:], relabel=True) == []
    assert shard_names(str(out)) == set(names[1:]) and (out / "dataset-infos.tar").exists()


def test_another_rounding_of_the_same_file_is_not_a_change(manifest: Manifest) -> None:
    track = manifest.tracks[0]

    def pretend(**changes: object) -> Track:
        return track.model_copy(update=changes)

    def decoded(track: Track) -> np.ndarray:
        with decode_track(track, manifest.root) as audio:
            return audio.read(0, track.num_samples)

    # The digest another CPU's lossy decoder might have given.
    assert np.array_equal(decoded(pretend(audio_sha256="0" * 64)), decoded(track))
    for changes in ({"sha256": "1" * 64}, {"num_samples": track.num_samples + 1}):
        with pytest.raises(DecodeError, match="changed"):
            decode_track(pretend(audio_sha256="0" * 64, **changes), manifest.root)


@pytest.mark.parametrize(("surplus", "words"), [(-1, "expected float16"), (-400, "expected"), (1, "more than the track's 300 frames")])
def test_a_teacher_that_loses_or_invents_frames_is_refused(manifest: Manifest, tmp_path: Path, surplus: int, words: str) -> None:
    class WrongTeacher(CountingTeacher):
        def label(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
            frames = max(0, sum(len(block) // 320 for block in blocks) + surplus)
            yield np.zeros((frames, 1), np.float16)

    task = plan_shards(manifest, SegmentConfig(segment_seconds=2.0, shortest_seconds=1.0))[0]
    threads = threading.active_count()
    with pytest.raises(ValueError, match=words):
        process_shard(task, [WrongTeacher()], manifest.root, str(tmp_path / "out"), {})
    assert threading.active_count() <= threads
    assert not list((tmp_path / "out").glob("[!.]*"))


def test_tracks_are_resampled_on_the_device_asked_for(manifest: Manifest, tmp_path: Path) -> None:
    task = plan_shards(manifest, SegmentConfig(segment_seconds=2.0, shortest_seconds=1.0))[0]
    assert any(track.sample_rate != 24_000 for track in task.tracks)
    with pytest.raises(NotImplementedError, match="meta"):  # of which nothing can be copied back
        process_shard(task, [CountingTeacher()], manifest.root, str(tmp_path / "out"), {}, device="meta")


def test_a_shard_that_fails_holds_no_file_open(manifest: Manifest, tmp_path: Path) -> None:
    """Without the help of the garbage collector: a decoded track takes its space in TMPDIR until its file is closed."""
    (task,) = plan_shards(manifest, SegmentConfig(segment_seconds=2.0, shortest_seconds=1.0))
    missing = task.tracks[2].model_copy(update={"path": "missing.wav"})
    task = task.model_copy(update={"tracks": [*task.tracks[:2], missing, *task.tracks[3:]]})
    open_files = psutil.Process().num_fds()
    gc.disable()
    try:
        with pytest.raises(FileNotFoundError, match="missing.wav"):
            process_shard(task, [CountingTeacher()], manifest.root, str(tmp_path / "out"), {})
        assert psutil.Process().num_fds() <= open_files
    finally:
        gc.enable()
