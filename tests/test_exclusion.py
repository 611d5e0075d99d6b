"""Test clips of probe sets kept out of a manifest: copies of all sorts go, others stay."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from audio_files import MUSIC, decoded, mert, noise, tone, write_audio

from mert_foundry.jobs import manifest
from mert_foundry.pipeline.audio.blocks import to_float
from mert_foundry.pipeline.manifest.exclusion import Exclusion, exclude, probe_files
from mert_foundry.pipeline.manifest.rows import Reject
from mert_foundry.pipeline.manifest.scan import ManifestConfig, scan, write_manifest
from mert_foundry.pipeline.storage.folder_kinds import FolderError

RATE = 24_000
TEST, TRAIN, OTHER = (
    "wesnoth-1.16-music/battle-epic.ogg", "hyperrogue-music/caribbean.ogg", "singularity-music/through-space.ogg",
)  # fmt: skip


def in_turn(work, items: list, workers: int, crashed) -> Iterator:
    return map(work, items)


def make_probe_set(folder: Path, lines: list[str]) -> Path:
    """A task of one's own with three clips of music, one of them of test."""
    folder.mkdir(parents=True)
    for name, split in {TEST: "test", TRAIN: "train", OTHER: "valid"}.items():
        (folder / f"{split}.ogg").symlink_to(MUSIC / name)
    task = {"name": "mine", "kind": "multiclass", "classes": ["a"], "metrics": ["accuracy"], "clips": "clips.csv"}
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    (folder / "clips.csv").write_text("\n".join(["path,label,split,start,end", *lines]) + "\n")
    return folder


WHOLE = ["test.ogg,a,test,,", "train.ogg,a,train,,", "valid.ogg,a,valid,,"]
PART = ["test.ogg,a,test,4,8", *WHOLE[1:]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the test clip in several guises, and what has nothing to do with it."""
    root = tmp_path_factory.mktemp("corpus")
    clip, other = (to_float(decoded(MUSIC / name)) for name in (TEST, OTHER))
    (root / "same.ogg").write_bytes((MUSIC / TEST).read_bytes())
    write_audio(root / "encoded.mp3", clip)
    write_audio(root / "quiet.wav", clip * 0.1)
    write_audio(root / "trimmed.flac", clip[int(3.3 * RATE) : int(9.1 * RATE)])
    write_audio(root / "medley.wav", np.concatenate([other[: 5 * RATE], 0.5 * clip[: 9 * RATE], noise(3)]))
    write_audio(root / "beginning.wav", clip[: int(3.5 * RATE)])
    write_audio(root / "other.mp3", other)
    write_audio(root / "train.mp3", to_float(decoded(MUSIC / TRAIN)))
    write_audio(root / "tone.wav", tone(440, 5))
    return root


def leave_out(corpus: Path, data: Path) -> Exclusion:
    config = ManifestConfig(root=str(corpus), out=str(data / "manifest"))
    return exclude(scan(config), str(corpus), probe_files(str(data)), in_turn, 1)


def begin_of(detail: str) -> float:
    """Where a reject says that the test clip begins, seconds."""
    return float(re.search(r"from (-?[\d.]+) s on", detail)[1])


def excluded(exclusion: Exclusion) -> dict[str, str]:
    return {result.path: result.detail for result in exclusion.results if isinstance(result, Reject)}


def test_copies_of_a_test_clip_go_and_all_else_stays(corpus: Path, tmp_path: Path):
    exclusion = leave_out(corpus, make_probe_set(tmp_path / "probe", WHOLE))
    gone = excluded(exclusion)
    assert set(gone) == {"same.ogg", "encoded.mp3", "quiet.wav", "trimmed.flac", "medley.wav", "beginning.wav"}
    assert gone["same.ogg"] == "same audio as test clip mine: test.ogg"
    assert (
        gone["encoded.mp3"].startswith("holds test clip mine: test.ogg from ")
        and "landmarks agree" in gone["encoded.mp3"]
    )
    begins = {"trimmed.flac": -3.3, "medley.wav": 5.0, "quiet.wav": 0.0, "encoded.mp3": 0.0, "beginning.wav": 0.0}
    for name, seconds in begins.items():
        assert begin_of(gone[name]) == pytest.approx(seconds, abs=0.1), name
    assert (exclusion.clips, exclusion.plain, exclusion.faults) == (1, 0, {})
    assert [result.path for result in exclusion.results] == sorted(path.name for path in corpus.iterdir())


def test_of_a_stretch_only_what_overlaps_it_goes(corpus: Path, tmp_path: Path):
    gone = excluded(leave_out(corpus, make_probe_set(tmp_path / "probe", PART)))
    assert set(gone) == {"same.ogg", "encoded.mp3", "quiet.wav", "trimmed.flac", "medley.wav"}
    assert begin_of(gone["trimmed.flac"]) == pytest.approx(0.7, abs=0.05)


def test_probe_files_of_several_tasks_are_heard_once(tmp_path: Path):
    make_probe_set(tmp_path / "probe", [*WHOLE, "test.ogg,a,test,1,2"])
    folder = make_probe_set(tmp_path / "again", WHOLE)
    (folder / "task.yaml").write_text((folder / "task.yaml").read_text().replace("mine", "folded") + "folds: 3\n")
    (folder / "clips.csv").write_text(
        "path,label,fold\n../probe/test.ogg,a,0\n../probe/valid.ogg,a,1\n../probe/train.ogg,a,2\n"
    )
    [test, train, valid] = probe_files(str(tmp_path))
    assert train.stretches == (("folded: probe/train.ogg", 0.0, None),)
    assert test.path == str(tmp_path / "probe/test.ogg") and valid.path == str(tmp_path / "probe/valid.ogg")
    # The whole file is a clip of both tasks; clips of all folds are tested once.
    assert test.stretches == (("folded: probe/test.ogg", 0.0, None), ("mine: probe/test.ogg", 1.0, 2.0))
    assert valid.stretches == (("folded: probe/valid.ogg", 0.0, None),)


def test_what_cannot_be_looked_for_is_said(corpus: Path, tmp_path: Path):
    data = make_probe_set(tmp_path / "probe", [*WHOLE, "broken.wav,a,test,,", "plain.wav,a,test,,"])
    (data / "broken.wav").write_bytes(b"RIFF")
    write_audio(data / "plain.wav", tone(440, 5))
    exclusion = leave_out(corpus, data)
    assert list(exclusion.faults) == [str(data / "broken.wav")]
    assert exclusion.clips == 2 and exclusion.plain in (0, 1)
    assert excluded(exclusion)["tone.wav"] == "same audio as test clip mine: plain.wav"


def test_a_track_that_cannot_be_read_again_is_a_reject(corpus: Path, tmp_path: Path):
    data = make_probe_set(tmp_path / "probe", WHOLE)
    results = scan(ManifestConfig(root=str(corpus), out=str(tmp_path / "out")))
    found = exclude(results, str(tmp_path / "moved"), probe_files(str(data)), in_turn, 1)
    rejects = {result.path: result.reason for result in found.results}
    assert rejects.pop("same.ogg") == "excluded" and set(rejects.values()) == {"unreadable"}


@pytest.mark.process
@pytest.mark.slow
def test_mert_manifest_keeps_test_clips_out(corpus: Path, tmp_path: Path):
    data = make_probe_set(tmp_path / "probe", WHOLE)
    out = tmp_path / "manifest"
    done = mert("manifest", f"root={corpus}", f"out={out}", f"exclude={data}", "group_by=track", "workers=2")
    assert done.returncode == 0, done.stderr
    rejects = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert {reject["reason"] for reject in rejects} == {"excluded"} and len(rejects) == 6
    summary = yaml.safe_load((out / "manifest.yaml").read_text())
    assert summary["rejected"] == {"excluded": 6} and summary["config"]["exclude"] == str(data)


def test_probe_sets_that_are_not_there_stop_the_command_before_it_decodes(corpus: Path, tmp_path: Path):
    with pytest.raises(FolderError, match="none is not there"):
        manifest.main([f"root={corpus}", f"out={tmp_path / 'out'}", f"exclude={tmp_path / 'none'}"])
    assert not (tmp_path / "out").exists()


def test_a_manifest_without_exclusion_does_not_speak_of_it(corpus: Path, tmp_path: Path):
    config = ManifestConfig(root=str(corpus), out=str(tmp_path))
    assert "exclude" not in write_manifest(config, scan(config))["config"]
