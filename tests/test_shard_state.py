"""What of a plan is done: only shard files count, and nothing stale goes unseen."""

import gc
import json
import tarfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import psutil
import pytest
from msgspec.structs import replace

from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.labelling.plan import SegmentConfig, plan_shards
from mert_foundry.pipeline.labelling.process_shard import process_shard
from mert_foundry.pipeline.labelling.resume import find_unfinished, remove_unplanned, shard_names
from mert_foundry.pipeline.manifest.decode_track import decode_track
from mert_foundry.pipeline.manifest.rows import Manifest, Track, load_manifest
from mert_foundry.pipeline.manifest.scan import ManifestConfig, scan, write_manifest
from mert_foundry.pipeline.shards.catalogue import read_catalogue
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.storage.folder_kinds import FolderError


class CountingTeacher:
    """Frame numbers as values: a teacher that needs no weights."""

    spec = TargetSpec(
        name="count", kind="continuous", dtype="float16", frame_rate=75, size=1, fingerprint="a" * 64, teacher={}
    )

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

    def unfinished(plan=tasks, teacher=spec, overwrite=False) -> list[str]:
        return [task.name for task in find_unfinished(str(out), plan, [teacher], "flac", overwrite)]

    (out / "notes.json").write_text("{}")
    (out / "dataset-infos.tar").write_text("not ours")
    assert shard_names(str(out)) == set(names) and unfinished() == []

    other = spec.model_copy(update={"fingerprint": "b" * 64})
    with pytest.raises(ValueError, match=f"{'a' * 64}.*{'b' * 64}"):
        unfinished(teacher=other)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert unfinished(teacher=other, overwrite=True) == names
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before, (
        "overwrite removed a shard of the plan beforehand"
    )

    record = json.loads((out / f"{names[0]}.json").read_text())
    (out / f"{names[0]}.json").write_text(json.dumps(record | {"schema_version": 99}))
    with pytest.raises(ValueError, match="schema_version"):
        unfinished()
    assert unfinished(overwrite=True) == names[:1]

    (out / f"{names[0]}.json").unlink()
    assert unfinished() == names[:1]
    with pytest.raises(ValueError, match=f"{names[0]}: a shard this plan does not have"):
        unfinished(plan=tasks[1:])
    assert unfinished(plan=tasks[1:], overwrite=True) == [] and shard_names(str(out)) == set(names)
    remove_unplanned(read_catalogue(str(out)), tasks[1:])
    assert shard_names(str(out)) == set(names[1:]) and (out / "dataset-infos.tar").exists()


def foreign_tar(**changes: object) -> bytes:
    """A tar of one member as `mert label` writes it, but for the attributes of its header named."""
    member = tarfile.TarInfo("song-00000.flac")
    member.uname = member.gname = "mert"
    member.mode, member.size = 0o444, 4
    for name, value in changes.items():
        setattr(member, name, value)
    return member.tobuf(tarfile.GNU_FORMAT if not changes else tarfile.USTAR_FORMAT) + b"mine".ljust(10240 - 512, b"\0")


FOREIGN_FILES = {
    "user": ("tar", foreign_tar(uname="alice"), "the user of its first member is 'alice', of ours it is 'mert'"),
    "group": ("tar", foreign_tar(gname="users"), "'users'"),
    "mode": ("tar", foreign_tar(mode=0o644), "'644', of ours it is '444'"),
    "time": ("tar", foreign_tar(mtime=1), "the time of its first member is 1, of ours it is 0"),
    "format": ("tar", foreign_tar(), "the format"),
    "no tar": ("tar", b"mine" * 200, "does not begin with the header of a tar"),
    "short": ("tar", b"mine", "does not begin with the header of a tar"),
    "other record": ("json", b'{"url": "x", "members": []}', "it has no plan_fingerprint, schema_version"),
    "list": ("json", b"[1]", "no JSON object"),
    "text": ("json", b"my notes", "no JSON object"),
}


@pytest.mark.parametrize("where", ["local", "memory"])
@pytest.mark.parametrize("case", FOREIGN_FILES)
def test_a_file_of_others_under_the_name_of_a_shard_is_refused_and_left(
    manifest: Manifest, tmp_path: Path, case: str, where: str
):
    kind, content, words = FOREIGN_FILES[case]
    out = str(tmp_path / "out") if where == "local" else f"memory://{tmp_path.name}/out"
    filesystem, folder = fsspec.url_to_fs(out)
    filesystem.makedirs(folder)
    tasks = plan_shards(manifest, SegmentConfig())
    for name in ("train-000000", "valid-000123"):  # in the plan, and outside
        file = f"{folder}/{name}.{kind}"
        filesystem.pipe_file(file, content)
        for overwrite in (False, True):
            with pytest.raises(FolderError, match="not written by mert label") as error:
                find_unfinished(out, tasks, [CountingTeacher.spec], "flac", overwrite)
            assert f"{out}/{name}.{kind}" in str(error.value) and words in str(error.value)
        assert filesystem.find(folder) == [file] and filesystem.cat_file(file) == content
        filesystem.rm_file(file)


def test_an_index_of_others_is_refused(manifest: Manifest, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.json").write_text('{"__kind__": "wids-shard-index-v1", "shardlist": []}')
    with pytest.raises(
        FolderError, match=r"index.json was not written by mert label: it has no schema_version, targets"
    ):
        find_unfinished(str(tmp_path / "out"), [], [CountingTeacher.spec], "flac", True)


def test_what_killed_labellers_and_damage_leave_of_ours_is_no_one_elses(manifest: Manifest, tmp_path: Path):
    out = tmp_path / "shards"
    tasks = label_all(manifest, out)
    tar, record = out / f"{tasks[0].name}.tar", out / f"{tasks[0].name}.json"
    whole, text = tar.read_bytes(), record.read_text()

    def unfinished(overwrite: bool) -> list[str]:
        return [task.name for task in find_unfinished(str(out), tasks, [CountingTeacher.spec], "flac", overwrite)]

    for content in (whole, whole[:1024], bytes(10240), b""):  # the third as of a shard without an example
        tar.write_bytes(content)
        record.unlink()
        assert unfinished(overwrite=False) == unfinished(overwrite=True) == [tasks[0].name]
        record.write_text(text)
    tar.write_bytes(whole)
    for damaged in (text[:100], "", "\0" * 100, json.dumps(json.loads(text) | {"schema_version": 2})):
        record.write_text(damaged)
        with pytest.raises(ValueError, match="is stale.*overwrite=true"):
            unfinished(overwrite=False)
        assert unfinished(overwrite=True) == [tasks[0].name]


def test_another_rounding_of_the_same_file_is_not_a_change(manifest: Manifest) -> None:
    track = manifest.tracks[0]

    def pretend(**changes: object) -> Track:
        return replace(track, **changes)

    def decoded(track: Track) -> np.ndarray:
        with decode_track(track, manifest.root) as audio:
            return audio.read(0, track.num_samples)

    # The digest another CPU's lossy decoder might have given.
    assert np.array_equal(decoded(pretend(audio_sha256="0" * 64)), decoded(track))
    for changes in ({"sha256": "1" * 64}, {"num_samples": track.num_samples + 1}):
        with pytest.raises(DecodeError, match="changed"):
            decode_track(pretend(audio_sha256="0" * 64, **changes), manifest.root)


@pytest.mark.parametrize(
    ("surplus", "words"), [(-1, "expected float16"), (-400, "expected"), (1, "more than the track's 300 frames")]
)
def test_a_teacher_that_loses_or_invents_frames_is_refused(
    manifest: Manifest, tmp_path: Path, surplus: int, words: str
) -> None:
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
    missing = replace(task.tracks[2], path="missing.wav")
    task = task.model_copy(update={"tracks": [*task.tracks[:2], missing, *task.tracks[3:]]})
    open_files = psutil.Process().num_fds()
    gc.disable()
    try:
        with pytest.raises(FileNotFoundError, match="missing.wav"):
            process_shard(task, [CountingTeacher()], manifest.root, str(tmp_path / "out"), {})
        assert psutil.Process().num_fds() <= open_files
    finally:
        gc.enable()
