"""`mert label` on a local Ray: same bytes whatever happens, only whole shards, and a reason for all that is missing."""

import hashlib
import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webdataset
import yaml
from audio_files import mert, noise, started, tone, wait_until, write_audio
from folders import make_manifest

from mert_foundry.jobs import inspect as inspect_job
from mert_foundry.jobs import label as label_job
from mert_foundry.jobs import verify as verify_job
from mert_foundry.jobs.command.line import run
from mert_foundry.pipeline.labelling.plan import SegmentConfig, plan_shards
from mert_foundry.pipeline.labelling.process_shard import process_shard
from mert_foundry.pipeline.manifest.decode_track import decode_track
from mert_foundry.pipeline.manifest.rows import load_manifest
from mert_foundry.pipeline.shards.index import Selection, load_index
from mert_foundry.pipeline.shards.record import load_record
from mert_foundry.pipeline.teachers.codec.encoder import BATCH_SLOTS
from mert_foundry.pipeline.teachers.cqt import CqtTeacherConfig
from mert_foundry.pipeline.teachers.encodec import EncodecTeacherConfig
from mert_foundry.pipeline.teachers.registry import build_teachers
from mert_foundry.pipeline.teachers.teacher import label_track

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]

CQT = {"kind": "cqt", "lowest_frequency": 500.0, "bins": 24, "bins_per_octave": 12}
MANIFEST = {"group_by": "track", "splits": {"valid": 0.3}}
SEGMENTS = {"segment_seconds": 2.0, "shortest_seconds": 1.0, "examples_per_shard": 4}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Path:
    """Two real clips and ten short synthetic tracks."""
    root = tmp_path_factory.mktemp("corpus")
    for clip in ("wesnoth-1.16-music/transience.flac", "hyperrogue-music/laboratory.ogg"):
        shutil.copy(clips / clip, root / Path(clip).name)
    for number in range(10):
        sound = tone(300 + 100 * number, 3.1) + noise(3.1, seed=number)
        write_audio(root / f"track{number}.{('wav', 'flac')[number % 2]}", sound)
    return root


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    return make_manifest(corpus, tmp_path_factory.mktemp("manifest"), **MANIFEST)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, manifest: Path, tiny_codec: Path) -> Path:
    """What one actor makes in one go, started by the command as users give it; read only."""
    out = tmp_path_factory.mktemp("undisturbed") / "shards"
    done = mert(*label_arguments(manifest, out, tiny_codec))
    assert done.returncode == 0, done.stderr
    assert len(tars(out)) >= 6 and {name.split("-")[0] for name in tars(out)} == {"train", "valid"}
    return out


def label_arguments(manifest: Path, out: Path, codec: Path, *more: str) -> list[str]:
    teachers = [{"kind": "encodec", "weights": str(codec), "codebooks": 4}, CQT]
    segments = [f"segments.{key}={value}" for key, value in SEGMENTS.items()]
    return [
        "label",
        f"manifest={manifest}",
        f"out={out}",
        f"teachers={json.dumps(teachers)}",
        "actors=1",
        *segments,
        *more,
    ]


Label = Callable[..., tuple[int, str, str]]


@pytest.fixture
def label(ray_address: str, run_here: Callable) -> Label:
    """The command in this process, on the session's Ray; gives its exit code, stdout and stderr."""

    def label(manifest: Path, out: Path, codec: Path, *more: str) -> tuple[int, str, str]:
        return run_here(label_job, *label_arguments(manifest, out, codec, f"address={ray_address}", *more)[1:])

    return label


def refusal(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str]:
    """Exit code and the one line of a command that ends before it starts Ray; run in this process, to be quick."""
    code = run(label_job.main, label_arguments(*arguments)[1:], "")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return code, lines[0]


def tars(out: Path) -> list[str]:
    return sorted(path.stem for path in out.glob("[a-z]*.tar"))


def contents(out: Path) -> dict[str, bytes]:
    """All visible files."""
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}


def assert_no_torn_file(out: Path, whole: dict[str, bytes]) -> None:
    """Every visible file is one of the undisturbed run, to the byte; each record has its tar; no index yet."""
    found = contents(out)
    assert {name: whole.get(name) == content for name, content in found.items()} == dict.fromkeys(found, True)
    assert all(name.removesuffix(".json") + ".tar" in found for name in found if name.endswith(".json"))
    assert "index.json" not in found


def test_two_actors_write_the_same_bytes_as_one(
    manifest: Path, tiny_codec: Path, undisturbed: Path, tmp_path: Path, label: Label
):
    code, _, errors = label(manifest, tmp_path / "shards", tiny_codec, "actors=2", "decode_threads=1")
    assert code == 0, errors
    assert contents(tmp_path / "shards") == contents(undisturbed)
    assert not list((tmp_path / "shards").glob(".*.tmp"))


def test_index_and_records_tell_what_is_there(manifest: Path, undisturbed: Path):
    index = load_index(str(undisturbed))
    tracks = load_manifest(str(manifest)).tracks
    assert index.manifest_sha256 == hashlib.sha256((manifest / "manifest.jsonl").read_bytes()).hexdigest()
    assert sum(totals.seconds for totals in index.totals.values()) == pytest.approx(
        sum(track.seconds for track in tracks), abs=0.3
    )
    assert index.dropped == {} and [entry.name for entry in index.shardlist] == tars(undisturbed)
    for entry in index.shardlist:
        assert entry.sha256 == hashlib.sha256((undisturbed / entry.url).read_bytes()).hexdigest()
    statistics = index.statistics["codes"]
    assert len(statistics.perplexity) == 4 and all(1 <= value <= 64 for value in statistics.perplexity)


def test_labels_of_a_segment_are_those_of_the_whole_track_cut(
    corpus: Path, manifest: Path, tiny_codec: Path, undisturbed: Path
):
    codec = EncodecTeacherConfig(kind="encodec", weights=str(tiny_codec), codebooks=4)
    teachers = build_teachers([codec, CqtTeacherConfig(**CQT)], "cpu")
    tracks = {track.key: track for track in load_manifest(str(manifest)).tracks}
    index = load_index(str(undisturbed))
    frames = dict.fromkeys(tracks, 0)
    for entry in index.shardlist:
        for example in webdataset.WebDataset(str(undisturbed / entry.url), shardshuffle=False).decode():
            info = example["json"]
            track, start, count = info["track"], info["start_sample"], info["num_samples"]
            assert start == 320 * frames[track] and tracks[track].split == entry.split
            assert example["__key__"] == f"{track}-{info['segment']:05d}"
            frames[track] += info["num_frames"]
            with decode_track(tracks[track], str(corpus)) as decoded:
                audio = decoded.read(0, decoded.num_frames * 320)
            stored, rate = soundfile.read(io.BytesIO(example["flac"]), dtype="int16")
            assert rate == 24_000
            np.testing.assert_array_equal(stored, audio[start : start + count])
            codes, cqt = (label_track(teacher, audio) for teacher in teachers)
            np.testing.assert_array_equal(example["codes.npy"], codes[:, start // 320 : (start + count) // 320])
            np.testing.assert_array_equal(example["cqt.npy"], cqt[start // 320 : (start + count) // 320])
    for key, track in tracks.items():
        source, rate = soundfile.read(corpus / track.path)
        assert frames[key] == -(-len(source) * 24_000 // rate) // 320


def test_a_rerun_does_nothing_and_a_faulty_shard_is_done_again(
    manifest: Path, tiny_codec: Path, undisturbed: Path, tmp_path: Path, label: Label, capsys: pytest.CaptureFixture
):
    out = tmp_path / "shards"
    shutil.copytree(undisturbed, out)
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*-*")}
    code, said, errors = label(manifest, out, tiny_codec)
    assert code == 0 and "0 to do" in said, errors
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*-*")} == times
    assert contents(out) == contents(undisturbed)

    lost, cut, torn, *others = tars(out)
    (out / f"{lost}.json").unlink()
    os.truncate(out / f"{cut}.tar", 1024)
    os.truncate(out / f"{torn}.json", 100)
    (out / ".leftover.tar.99.tmp").write_bytes(b"of a killed writer")
    code, line = refusal(capsys, manifest, out, tiny_codec)
    assert code == 1 and f"{torn}.json" in line and "overwrite=true" in line
    code, said, errors = label(manifest, out, tiny_codec, "overwrite=true")
    assert code == 0 and "3 to do" in said, errors
    assert contents(out) == contents(undisturbed) and not list(out.glob(".*.tmp"))
    for name in others:
        assert (out / f"{name}.tar").stat().st_mtime_ns == times[f"{name}.tar"]


def test_a_part_of_the_manifest_and_then_all_of_it(
    manifest: Path, tiny_codec: Path, undisturbed: Path, tmp_path: Path, label: Label, capsys: pytest.CaptureFixture
):
    out = tmp_path / "shards"
    code, line = refusal(capsys, manifest, out, tiny_codec, "splits=[trian]")
    assert code == 2 and "'trian'" in line and "train, valid" in line and not out.exists()
    code, said, errors = label(manifest, out, tiny_codec, "splits=[train]", "limit_hours=0.006")  # 21.6 s
    assert code == 0, errors
    assert "(splits train, limited to 0.006 h); " in said
    index = load_index(str(out))
    assert index.selection == Selection(splits=["train"], limit_hours=0.006) and set(index.totals) == {"train"}
    tracks = {example["json"]["track"]: example["json"] for example in webdataset.WebDataset(
        [str(out / entry.url) for entry in index.shardlist], shardshuffle=False).decode()}  # fmt: skip
    rows = {track.key: track for track in load_manifest(str(manifest)).tracks}
    assert 21.6 <= sum(rows[key].seconds for key in tracks) < sum(track.seconds for track in rows.values()) / 2
    recorded = yaml.safe_load((out / "label.yaml").read_text())
    assert (recorded["splits"], recorded["limit_hours"]) == (["train"], 0.006)
    capsys.readouterr()
    assert run(verify_job.main, [str(out), "--manifest", str(manifest)], "") == 0
    assert run(inspect_job.main, [str(out)], "") == 0
    assert "splits train, limited to 0.006 h" in capsys.readouterr().out

    *whole, last = tars(out)
    assert whole
    times = {name: (out / f"{name}.tar").stat().st_mtime_ns for name in whole}
    code, line = refusal(capsys, manifest, out, tiny_codec)
    assert code == 1 and f"{last}.json is stale" in line and "overwrite=true" in line
    code, _, errors = label(manifest, out, tiny_codec, "overwrite=true")
    assert code == 0, errors
    assert contents(out) == contents(undisturbed)
    assert {name: (out / f"{name}.tar").stat().st_mtime_ns for name in whole} == times
    code, line = refusal(capsys, manifest, out, tiny_codec, "splits=[train]")
    assert code == 1 and "valid-000000: a shard this plan does not have" in line


def test_the_order_of_splits_makes_no_other_set(
    manifest: Path, tiny_codec: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """All splits by name are one selection in any order; its shards are those of no selection."""
    out = tmp_path / "shards"
    shutil.copytree(undisturbed, out)
    found = []
    for splits in ("[valid,train]", "[train,valid]"):
        assert run(label_job.main, label_arguments(manifest, out, tiny_codec, f"splits={splits}")[1:], "") == 0
        assert "0 to do" in capsys.readouterr().out
        found.append(contents(out))
    assert found[0] == found[1]
    assert {name for name, content in found[0].items() if contents(undisturbed)[name] != content} == {
        "index.json",
        "label.yaml",
    }
    assert load_index(str(out)).selection == Selection(splits=["train", "valid"])


def test_stale_shards_are_refused_until_told(
    manifest: Path,
    tiny_codec: Path,
    other_codec: Path,
    undisturbed: Path,
    tmp_path: Path,
    label: Label,
    capsys: pytest.CaptureFixture,
):
    out = tmp_path / "shards"
    shutil.copytree(undisturbed, out)
    before = contents(out)
    fingerprint = load_record(str(out), tars(out)[0]).teachers["codes"]
    other = build_teachers([EncodecTeacherConfig(kind="encodec", weights=str(other_codec), codebooks=4)], "cpu")[
        0
    ].spec.fingerprint
    plan = load_record(str(out), tars(out)[0]).plan_fingerprint
    longer = SegmentConfig(**SEGMENTS | {"segment_seconds": 3.0})
    new_plan = plan_shards(load_manifest(str(manifest)), longer)[0].fingerprint()
    for codec, more, words in [
        (other_codec, [], [fingerprint, other]),
        (tiny_codec, ["segments.segment_seconds=3.0"], [plan, new_plan]),
        (tiny_codec, ["segments.examples_per_shard=40"], [plan]),
        (tiny_codec, ["segments.audio=pcm.npy"], ["flac", "pcm.npy"]),
        (tiny_codec, [f"teachers=[{json.dumps(CQT)}]"], ["codes"]),
    ]:
        code, line = refusal(capsys, manifest, out, codec, *more)
        assert code == 1 and all(word in line for word in [*words, "overwrite=true"]), line
        assert contents(out) == before

    code, _, errors = label(manifest, out, other_codec, "overwrite=true", "segments.examples_per_shard=40")
    assert code == 0, errors
    assert len(tars(out)) < len(tars(undisturbed))
    for name in tars(out):
        record = load_record(str(out), name)
        assert record.teachers["codes"] == other
        assert record.sha256 == hashlib.sha256((out / record.url).read_bytes()).hexdigest()
    assert {path.stem for path in out.glob("*.json")} == {*tars(out), "index"}
    assert run(verify_job.main, [str(out)], "") == 0


def test_tf32_without_a_gpu_is_refused_before_any_work(
    manifest: Path, tiny_codec: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    code, line = refusal(capsys, manifest, tmp_path / "shards", tiny_codec, "teachers.0.precision=tf32")
    assert code == 2 and "teachers.0.precision tf32" in line and "device is cpu" in line
    assert not (tmp_path / "shards").exists()


def test_files_that_changed_are_dropped_and_missing_ones_fail_their_shard(
    corpus: Path, tiny_codec: Path, undisturbed: Path, tmp_path: Path, label: Label
):
    root, out = tmp_path / "corpus", tmp_path / "shards"
    shutil.copytree(corpus, root)
    manifest = make_manifest(root, tmp_path / "manifest", **MANIFEST)
    tasks = plan_shards(load_manifest(str(manifest)), SegmentConfig(**SEGMENTS))
    paths = {track.path: (task.name, track) for task in tasks for track in task.tracks}
    changed, damaged, missing = "track0.wav", "transience.flac", "track3.flac"
    audio, rate = soundfile.read(root / changed, dtype="int16")
    audio[5000] ^= 1
    write_audio(root / changed, audio, rate)
    content = bytearray((root / damaged).read_bytes())
    content[len(content) // 2] ^= 1
    (root / damaged).write_bytes(content)
    (root / missing).rename(root / "aside")

    code, _, errors = label(manifest, out, tiny_codec)
    assert code == 1 and "Traceback" not in errors
    assert paths[missing][0] in errors and missing in errors and "1 of" in errors
    assert tars(out) == sorted({task.name for task in tasks} - {paths[missing][0]})
    assert not (out / "index.json").exists() and not (out / f"{paths[missing][0]}.json").exists()

    (root / "aside").rename(root / missing)
    code, said, errors = label(manifest, out, tiny_codec)
    assert code == 0 and "1 to do" in said, errors
    index = load_index(str(out))
    assert index.dropped == {"changed": 2, "unreadable": 5}
    dropped = {drop.track: drop for name in tars(out) for drop in load_record(str(out), name).dropped_tracks}
    assert set(dropped) == {paths[changed][1].key, paths[damaged][1].key}
    assert paths[changed][1].audio_sha256 in dropped[paths[changed][1].key].detail
    assert "damaged after" in dropped[paths[damaged][1].key].detail
    untouched = {task.name for task in tasks} - {paths[changed][0], paths[damaged][0]}
    assert untouched and all(
        (out / f"{name}.tar").read_bytes() == (undisturbed / f"{name}.tar").read_bytes() for name in untouched
    )


@pytest.mark.timeout(400)
def test_killed_at_any_moment_and_run_again_gives_the_same_bytes(
    manifest: Path, tiny_codec: Path, undisturbed: Path, tmp_path: Path, label: Label
):
    out, log = tmp_path / "shards", tmp_path / "log"
    whole = contents(undisturbed)
    moments: list[Callable[[], bool]] = [
        lambda: "to do" in log.read_text(),
        lambda: any(out.glob(".*.tmp")),
        lambda: len(list(out.glob("*.json"))) >= 3,
    ]
    for moment in moments:
        with started([*label_arguments(manifest, out, tiny_codec), "actors=2"], log) as process:
            wait_until(process, moment)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        if out.exists():
            assert_no_torn_file(out, whole)
    code, _, errors = label(manifest, out, tiny_codec)
    assert code == 0, errors
    assert contents(out) == whole and not list(out.glob(".*.tmp"))


def test_interrupted_with_one_line_and_only_whole_shards(
    manifest: Path, tiny_codec: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out, log = tmp_path / "shards", tmp_path / "log"
    with started(label_arguments(manifest, out, tiny_codec), log) as process:
        wait_until(process, lambda: len(tars(out)) >= 1)
        code, line = refusal(capsys, manifest, out, tiny_codec)
        assert code == 1 and "another process" in line and str(out) in line
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 1
    lines = log.read_text().splitlines()
    assert lines[0].startswith("plan:") and lines[-1].startswith("interrupted"), lines
    assert all(line.startswith("label: ") for line in lines[1:-1]), lines  # progress, on a slow machine
    assert_no_torn_file(out, contents(undisturbed))


def test_a_task_needs_no_ray(corpus: Path, manifest: Path, tiny_codec: Path, undisturbed: Path, tmp_path: Path):
    """The unit of work in this process, into a remote store, gives the bytes that actors gave."""
    import fsspec

    task = plan_shards(load_manifest(str(manifest)), SegmentConfig(**SEGMENTS))[0]
    codec = EncodecTeacherConfig(kind="encodec", weights=str(tiny_codec), codebooks=4)
    teachers = build_teachers([codec, CqtTeacherConfig(**CQT)], "cpu")
    seconds: list[float] = []
    record = process_shard(task, teachers, str(corpus), "memory://label-test", {}, report=seconds.append)
    stored = fsspec.filesystem("memory").cat(f"/label-test/{task.name}.tar")
    assert stored == (undisturbed / f"{task.name}.tar").read_bytes()
    assert (
        sum(seconds) == pytest.approx(record.seconds)
        and record.examples == load_record(str(undisturbed), task.name).examples
    )


def test_tracks_labelled_side_by_side_get_their_own_labels(
    corpus: Path, tiny_codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With slots as on a GPU, and tracks among them that come to nothing."""
    monkeypatch.setitem(BATCH_SLOTS, "cpu", 3)
    root, out = tmp_path / "corpus", tmp_path / "shards"
    shutil.copytree(corpus, root)
    write_audio(root / "short.wav", noise(0.5))
    config = SegmentConfig(**SEGMENTS | {"examples_per_shard": 100})
    make_manifest(root, tmp_path, min_seconds=0.1, splits={})
    (task,) = plan_shards(load_manifest(str(tmp_path)), config)
    damaged = task.tracks[1].path
    (root / damaged).write_bytes(b"no audio")
    teachers = build_teachers(
        [EncodecTeacherConfig(kind="encodec", weights=str(tiny_codec), codebooks=4), CqtTeacherConfig(**CQT)], "cpu"
    )
    record = process_shard(task, teachers, str(root), str(out), {})
    assert {drop.track: drop.reason for drop in record.dropped_tracks} == {
        track.key: {damaged: "unreadable", "short.wav": "too_short"}[track.path]
        for track in task.tracks
        if track.path in (damaged, "short.wav")
    }
    pieces: dict[str, list[dict]] = {}
    for example in webdataset.WebDataset(str(out / f"{task.name}.tar"), shardshuffle=False).decode():
        pieces.setdefault(example["json"]["track"], []).append(example)
    kept = [track for track in task.tracks if track.path not in (damaged, "short.wav")]
    assert list(pieces) == [track.key for track in kept]
    for track in kept:
        with decode_track(track, str(root)) as decoded:
            audio = decoded.read(0, decoded.num_frames * 320)
        codes, cqt = (label_track(teacher, audio) for teacher in teachers)
        np.testing.assert_array_equal(
            np.concatenate([piece["codes.npy"] for piece in pieces[track.key]], axis=1), codes
        )
        np.testing.assert_array_equal(np.concatenate([piece["cqt.npy"] for piece in pieces[track.key]]), cqt)


def test_mistakes_end_in_one_line(manifest: Path, tiny_codec: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    for more, code, words in [
        (["segments.segment_secs=3"], 2, ["segments.segment_secs", "segment_seconds"]),
        (["teachers.0.weights=foundry-tiny"], 1, ["foundry-tiny", "not a shipped codec"]),
        (["teachers.0.codebooks=9"], 1, ["4 codebooks, 9 asked for"]),
        ([f"manifest={tmp_path}"], 1, ["manifest.yaml"]),
    ]:
        found, line = refusal(capsys, manifest, tmp_path / "shards", tiny_codec, *more)
        assert found == code and all(word in line for word in words), line
    assert not (tmp_path / "shards").exists()
