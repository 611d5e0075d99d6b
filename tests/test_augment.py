"""Copies of tracks, shifted in pitch, in a labelled set: what they are, and that each command knows them."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from audio_files import noise, tone, write_audio
from folders import change_yaml, make_manifest

from mert_foundry.jobs import inspect as inspect_job
from mert_foundry.jobs import label as label_job
from mert_foundry.jobs import plan as plan_job
from mert_foundry.jobs import status as status_job
from mert_foundry.jobs import verify as verify_job
from mert_foundry.jobs.command.config import load_config
from mert_foundry.jobs.label import LabelConfig, describe_contents, plan_tasks, write_index
from mert_foundry.pipeline.audio.decoding import decoding
from mert_foundry.pipeline.features.shard_tracks import ShardTracks
from mert_foundry.pipeline.labelling.plan import SegmentConfig, plan_shards
from mert_foundry.pipeline.labelling.process_shard import process_shard
from mert_foundry.pipeline.labelling.status import JobPlan, write_plan
from mert_foundry.pipeline.labelling.work_order import Labeller, WorkOrder
from mert_foundry.pipeline.manifest.rows import Track, load_manifest
from mert_foundry.pipeline.manifest.shifted_track import split_key
from mert_foundry.pipeline.shards.catalogue import read_catalogue
from mert_foundry.pipeline.shards.index import Augment, load_index
from mert_foundry.pipeline.shards.reader import ShardReader
from mert_foundry.pipeline.shards.record import load_record
from mert_foundry.pipeline.teachers.cqt import CqtTeacher, CqtTeacherConfig
from mert_foundry.pipeline.teachers.registry import build_teachers
from mert_foundry.pipeline.teachers.teacher import label_track

CQT = {"kind": "cqt", "lowest_frequency": 220.0, "bins": 36, "bins_per_octave": 12, "storage": "float16"}
SEGMENTS = {"segment_seconds": 2.0, "shortest_seconds": 1.0, "examples_per_shard": 6}
SHIFTS = [-2, 3]
TONE = "tone440"
RunHere = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven tracks of 3.3 s, of several formats and rates, two or so of them held out; the first is a tone of 440 Hz in
    train.
    """
    root, out = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("manifest")
    write_audio(root / f"{TONE}.wav", tone(440, 3.3, 44_100), 44_100)
    for number in range(1, 7):
        rate, kind = [(24_000, "flac"), (44_100, "mp3"), (22_050, "ogg")][number % 3]
        write_audio(root / f"track{number}.{kind}", tone(200 + 90 * number, 3.3, rate) + noise(3.3, rate), rate)
    make_manifest(root, out, group_by="track", splits={"valid": 0.3})
    splits = {track.key.split("-")[0]: track.split for track in load_manifest(str(out)).tracks}
    assert splits[TONE] == "train" and set(splits.values()) == {"train", "valid"}
    return out


@pytest.fixture(scope="module")
def teacher() -> CqtTeacher:
    return build_teachers([CqtTeacherConfig(**CQT)], "cpu")[0]


@pytest.fixture(scope="module")
def shards(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `mert label` makes of the manifest with its copies, without Ray; read only."""
    out = tmp_path_factory.mktemp("labelled") / "shards"
    words = label_arguments(manifest, out, f"augment.semitones={SHIFTS}")
    config, listing = load_config(LabelConfig, words), load_manifest(str(manifest))
    tasks = plan_tasks(str(manifest), listing, config)
    labeller = Labeller(WorkOrder(config.teachers, listing.root, str(out), "cpu", 1))
    for task in tasks:
        labeller.run(task)
    write_plan(str(out), JobPlan(shards=len(tasks), seconds=sum(task.seconds for task in tasks)))
    write_index(config, listing, tasks, describe_contents(config), read_catalogue(str(out)))
    return out


def rows(manifest: Path) -> dict[str, Track]:
    return {track.key: track for track in load_manifest(str(manifest)).tracks}


def count(manifest: Path, split: str) -> int:
    return sum(track.split == split for track in rows(manifest).values())


def label_arguments(manifest: Path, out: Path, *more: str) -> list[str]:
    segments = [f"segments.{key}={value}" for key, value in SEGMENTS.items()]
    return [f"manifest={manifest}", f"out={out}", f"teachers={json.dumps([CQT])}", "actors=1", *segments, *more]


def test_each_track_of_train_has_a_copy_for_each_shift_in_its_own_split(manifest: Path, shards: Path):
    tracks, found = rows(manifest), ShardTracks(str(shards)).list_tracks()
    splits = {track.key: track.split for track in found}
    for key, track in tracks.items():
        copies = {f"{key}-down2", f"{key}-up3"} if track.split == "train" else set()
        assert {each for each in splits if each.startswith(key)} == {key} | copies
        assert {splits[each] for each in [key, *copies]} == {track.split}
    assert {split_key(key) for key in splits if key.startswith(TONE)} == {
        (key, shift) for key in tracks if key.startswith(TONE) for shift in [0, *SHIFTS]
    }
    assert len(found) == count(manifest, "train") * 3 + count(manifest, "valid")
    lengths = {track.key: track.num_samples for track in found}
    assert all(length == lengths[split_key(key)[0]] for key, length in lengths.items()), (
        "a copy is as long as its track"
    )


def test_a_copy_holds_the_shifted_sound_and_labels_made_from_it(manifest: Path, shards: Path, teacher: CqtTeacher):
    tracks, index = rows(manifest), load_index(str(shards))
    root, reader = Path(load_manifest(str(manifest)).root), ShardReader(str(shards), index, index.shardlist)
    entries = [(shard, entry) for shard in range(len(index.shardlist)) for entry in reader.entries(shard)]
    keys = dict.fromkeys((shard, entry.track) for shard, entry in entries)
    highest = {}
    for shard, key in keys:
        original, semitones = split_key(key)
        with decoding(root / tracks[original].path, semitones=semitones) as file:
            audio = np.concatenate(list(file.blocks))
        stored = reader.read_track(shard, key)
        np.testing.assert_array_equal(stored.audio, audio[: len(audio) // 320 * 320])
        np.testing.assert_array_equal(stored.targets["cqt"], label_track(teacher, stored.audio))
        assert stored.audio_sha256 == tracks[original].audio_sha256
        if original.startswith(TONE):
            highest[semitones] = np.argmax(stored.targets["cqt"][40:-40], axis=1)
            power = np.abs(np.fft.rfft(stored.audio * np.hanning(len(stored.audio)), 1 << 20))
            frequency = int(power.argmax()) * 24_000 / (1 << 20)
            assert 1200 * abs(math.log2(frequency / (440 * 2 ** (semitones / 12)))) < 5
    reader.close()
    assert {semitones: set(bins) for semitones, bins in highest.items()} == {0: {12}, -2: {10}, 3: {15}}


def test_verify_knows_the_copies_and_misses_those_that_are_not_there(
    manifest: Path, shards: Path, tmp_path: Path, run_here: RunHere
):
    code, said, errors = run_here(verify_job, shards, "--manifest", manifest, "--relabel", 1000, "--corpus", 1000)
    assert code == 0 and "no fault" in said, said + errors
    assert f"{len(rows(manifest))} source files" in said, "the files of the copies are those of their tracks"

    other = tmp_path / "shards"
    other.mkdir()
    for path in shards.iterdir():
        if path.is_file():
            (other / path.name).symlink_to(path)
    for semitones, missing, surplus in [([-2, 3, 4], "-up4", None), ([-2], None, "-up3"), ([], None, "")]:
        index = load_index(str(shards)).model_copy(update={"augment": Augment(semitones=semitones)})
        (other / "index.json").unlink()
        (other / "index.json").write_bytes(index.to_bytes())
        code, said, _ = run_here(verify_job, other, "--manifest", manifest)
        *lines, _ = said.splitlines()
        assert code == 1
        if missing:
            assert len(lines) == count(manifest, "train")
            for line in lines:
                assert f"{missing}: a shifted copy of a track of the manifest, in no shard" in line
        if surplus:
            assert len(lines) == count(manifest, "train") and all(f"{surplus}: " in line for line in lines)
    assert len(lines) == 2 * count(manifest, "train")


def test_inspect_status_and_the_difference_of_two_sets_tell_of_copies(
    manifest: Path, shards: Path, labelled: Path, run_here: RunHere, tmp_path: Path
):
    code, said, _ = run_here(inspect_job, shards, "--manifest", manifest)
    copies, tracks = 2 * count(manifest, "train"), 2 * count(manifest, "train") + len(rows(manifest))
    assert code == 0 and "of each track of train, shifted by -2, +3 semitones" in said
    assert re.search(rf"tracks +{tracks}\n +shifted copies among them +{copies}\n", said), said
    summary = json.loads(run_here(inspect_job, shards, "--json")[1])
    assert (summary["augment"], summary["tracks"], summary["copies"]) == ({"semitones": SHIFTS}, tracks, copies)
    said = run_here(inspect_job, labelled / "shards")[1]
    assert re.search(r"copies +none", said) and "shifted" not in said
    code, said, _ = run_here(inspect_job, shards, "--diff", labelled / "shards")
    assert "augment.semitones" in said
    page = tmp_path / "page.html"
    key = next(entry.key for entry in load_record(str(shards), "train-000000").members if "-up3-" in entry.key)
    code, _, errors = run_here(inspect_job, shards, "--manifest", manifest, "--html", page, "--keys", key)
    assert code == 0 and "shifted by +3 semitones" in page.read_text(), errors

    status = json.loads(run_here(status_job, shards, "--json")[1])
    assert status["hours"] == pytest.approx(status["planned_hours"], rel=0.01)
    assert status["hours"] * 3600 == pytest.approx(3.3 * tracks, rel=0.01)


def test_a_plan_counts_the_copies_and_gives_the_shards_that_are_made(
    manifest: Path, shards: Path, tmp_path: Path, run_here: RunHere
):
    path = tmp_path / "label.yaml"
    path.write_text(yaml.safe_dump({"teachers": [CQT], "segments": SEGMENTS, "augment": {"semitones": SHIFTS}}))
    words = [path, f"manifest={manifest}", "flac_bytes_per_second=30000", "labelling_rate=5", "--json"]
    figures = {each["name"]: each for each in json.loads(run_here(plan_job, *words)[1])["figures"]}
    training = count(manifest, "train")
    assert figures["train: tracks"]["inputs"] == {"tracks": training, "copies": 2 * training}
    assert figures["valid: tracks"]["inputs"] == {"tracks": count(manifest, "valid")}
    index = load_index(str(shards))
    for split, totals in index.totals.items():
        assert figures[f"{split}: shards"]["value"] == totals.shards
        assert figures[f"{split}: examples"]["value"] == totals.examples
        assert figures[f"{split}: hours"]["value"] == pytest.approx(totals.seconds / 3600)
    change_yaml(path, augment={"semitones": []})
    figures = {each["name"]: each for each in json.loads(run_here(plan_job, *words)[1])["figures"]}
    assert figures["train: tracks"]["inputs"] == {"tracks": training}


def test_a_file_that_changed_drops_its_track_and_each_copy_with_the_reason(teacher: CqtTeacher, tmp_path: Path):
    root = tmp_path / "corpus"
    for number in range(2):
        write_audio(root / f"{number}.wav", noise(3.3, seed=number))
    listing = load_manifest(str(make_manifest(root, tmp_path / "manifest", splits={})))
    changed, other = listing.tracks
    write_audio(root / changed.path, noise(3.3, seed=5))
    config = SegmentConfig(**SEGMENTS | {"examples_per_shard": 100})
    [task] = plan_shards(listing, config, augment=Augment(semitones=SHIFTS))
    record = process_shard(task, [teacher], listing.root, str(tmp_path / "shards"), {})
    assert {drop.track: drop.reason for drop in record.dropped_tracks} == dict.fromkeys(
        [changed.key, f"{changed.key}-down2", f"{changed.key}-up3"], "changed"
    )
    assert set(record.track_frames()) == {other.key, f"{other.key}-down2", f"{other.key}-up3"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["augment.semitones=[0,2]"], "0 semitones would be the track itself"),
        (["augment.semitones=[12]"], "augment.semitones"),
        (["augment.semitones=[0.5]"], "augment.semitones"),
        (["augment.semitones=[2]", "splits=[valid]"], "tracks of the split train are copied, and only valid"),
    ],
)
def test_mistakes_end_in_one_line_before_any_work(
    manifest: Path, tmp_path: Path, run_here: RunHere, settings: list[str], words: str
):
    code, _, errors = run_here(label_job, *label_arguments(manifest, tmp_path / "out", *settings))
    assert code == 2 and words in errors and len(errors.splitlines()) == 1, errors
    assert not (tmp_path / "out").exists()


@pytest.mark.process
@pytest.mark.slow
def test_the_command_makes_the_shard_that_is_missing_and_another_set_is_not_mixed_in(
    manifest: Path, shards: Path, tmp_path: Path, ray_address: str, run_here: RunHere
):
    """Kills at any moment are in test_label.py: a shard with copies is published as any other."""
    out = tmp_path / "shards"
    shutil.copytree(shards, out)
    for name in ("index.json", "train-000000.json"):
        (out / name).unlink()
    words = label_arguments(manifest, out, "augment.semitones=[3,-2]", f"address={ray_address}")
    code, said, errors = run_here(label_job, *words)
    copied = 2 * 3.3 * count(manifest, "train") / 3600
    assert code == 0 and f" and {copied:.3f} h of copies of each track of train, shifted by -2, +3 semi" in said, errors
    assert files_of(out) == files_of(shards)

    code, _, errors = run_here(label_job, *label_arguments(manifest, out))
    assert code == 1 and "train-000000.json is stale" in errors and "overwrite=true" in errors
    assert files_of(out) == files_of(shards)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}
