"""`mert inspect` on manifests, shard sets and runs: what it says is what is there, and no tar is read for a summary."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile
import yaml
from audio_files import mert_environment, noise, write_audio
from labelled_set import HOSTILE, label_manifest, write_manifest_folder
from shard_fixtures import as_dropped, index_shards, make_track, write_examples, write_set

from mert_foundry.jobs.probing.report import ProbeReport
from mert_foundry.model.probing.protocol import ProbeProtocol
from mert_foundry.model.runs.history import curves, load_run
from mert_foundry.pipeline.inspection.difference import difference
from mert_foundry.pipeline.inspection.shard_summary import subsample
from mert_foundry.pipeline.inspection.spread import histogram, spread
from mert_foundry.pipeline.manifest.rows import load_manifest
from mert_foundry.pipeline.manifest.scan import ManifestConfig, scan, write_manifest
from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.shards.record import DroppedTrack, load_record
from mert_foundry.pipeline.storage import files

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture
def answer(say):
    """The parsed --json of a call that must succeed."""

    def answer(*arguments: object) -> dict:
        code, out, err = say(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return answer


def test_the_summary_of_a_shard_set_needs_no_tar(labelled, tmp_path, answer, say):
    shards = shutil.copytree(labelled / "shards", tmp_path / "shards")
    index = load_index(str(shards))
    for tar in shards.glob("*.tar"):
        tar.unlink()
    found = answer(shards)
    assert found["kind"] == "shards" and found["index_sha256"] == index.digest()
    for split, totals in index.totals.items():
        each = found["splits"][split]
        assert (each["shards"], each["examples"], each["bytes"]) == (totals.shards, totals.examples, totals.bytes)
        assert each["hours"] == pytest.approx(totals.seconds / 3600)
    assert [target["name"] for target in found["targets"]] == ["codes", "cqt", "random_projection"]
    assert found["targets"][0]["statistics"]["perplexity"] == index.statistics["codes"].perplexity
    assert found["targets"][1]["fingerprint"] == index.targets[1].fingerprint
    # 9 s is 4 + 4 + 1, 5 s is 4 + 1, 3 s is 3
    assert found["tracks"] == 4 and found["track_seconds"]["maximum"] == 9
    assert found["example_seconds"]["count"] == 8 and found["example_seconds"]["minimum"] == 1
    assert found["records_read"] == found["records"] == len(index.shardlist) and found["rejected"] is None
    code, out, _ = say(shards)
    assert code == 0 and index.targets[0].fingerprint[:12] in out and "random_projection, codebook" in out
    assert max(map(len, out.splitlines())) < 160


def test_rejects_come_from_the_manifest_of_the_set(labelled, tmp_path, answer, say):
    assert answer(labelled / "shards", "--manifest", labelled / "manifest")["rejected"] == {"not_audio": 1}
    other = write_manifest_folder(tmp_path / "audio", tmp_path / "manifest", seed=5)
    code, _, err = say(labelled / "shards", "--manifest", other)
    assert code == 1 and load_manifest(str(other)).sha256 in err
    assert load_index(str(labelled / "shards")).manifest_sha256 in err


def test_dropped_tracks_are_named_with_their_reason(tmp_path, answer, say):
    drop = DroppedTrack(track="gone", reason="truncated", detail="3 s of \x1b[31m 9 s", segments=2)
    write_examples(tmp_path, "train-000000", [*make_track("one", 30, 15), drop])
    index_shards(tmp_path, ["train-000000"])
    found = answer(tmp_path)
    assert found["dropped"] == {"truncated": 2} and found["dropped_tracks"] == [drop.model_dump()]
    _, out, _ = say(tmp_path)
    assert "segments dropped: 2 truncated" in out and re.search(r"\n  gone +truncated +2  3 s of ", out)
    assert "\x1b" not in out


def test_dropped_segments_are_named_with_their_place(tmp_path, answer, say):
    first, last = make_track("one", 75, 150)
    write_examples(tmp_path, "train-000000", [first, as_dropped(last), *make_track("two", 75)])
    index_shards(tmp_path, ["train-000000"])
    found = answer(tmp_path)
    assert found["dropped"] == {"silent": 1} and found["dropped_segments"] == [as_dropped(last).model_dump()]
    assert found["dropped_tracks"] == [] and found["tracks"] == 2
    # A track is as long as it was; its examples are what is here.
    assert (found["track_seconds"]["maximum"], found["example_seconds"]["maximum"]) == (3, 1)
    _, out, _ = say(tmp_path)
    assert "segments dropped: 1 silent" in out and re.search(r"\n  one-00001 +silent +1.000  peak -70.0 dBFS", out)


def test_a_set_on_an_object_store(answer):
    folder = "memory://inspected/shards"
    write_set(folder, [2, 1], valid_sizes=[1])
    found = answer(folder)
    assert {split: each["examples"] for split, each in found["splits"].items()} == {"train": 3, "valid": 1}
    key = load_record(folder, "valid-000000").members[0].key
    shown = answer(folder, "--example", key)
    assert shown["shard"] == "valid-000000.tar"
    # Without tars the summary is the same, and the example cannot be shown.
    for name in files.list_names(folder):
        if name.endswith(".tar"):
            files.remove(files.join(folder, name))
    assert answer(folder) == found
    fsspec.filesystem("memory").rm("/inspected", recursive=True)


def test_one_shard_and_one_example(labelled, answer, say):
    shards = labelled / "shards"
    record = load_record(str(shards), "train-000000")
    assert answer(shards, "--shard", "train-000000.tar") == record.model_dump(mode="json")
    entry = record.members[0]
    code, out, _ = say(shards, "--shard", "train-000000")
    assert code == 0 and all(member.key in out for member in record.members)

    found = answer(shards, "--example", entry.key)
    members = {member["name"]: member for member in found["members"]}
    content = (shards / record.url).read_bytes()
    for suffix, (offset, size, checksum) in entry.members.items():
        assert (members[suffix]["offset"], members[suffix]["bytes"], members[suffix]["crc32"]) == (
            offset,
            size,
            checksum,
        )
        assert zlib.crc32(content[offset : offset + size]) == checksum
    codes = array_in(content, entry.members["codes.npy"])
    assert (members["codes.npy"]["dtype"], members["codes.npy"]["shape"]) == ("uint16", list(codes.shape))
    assert (members["codes.npy"]["minimum"], members["codes.npy"]["maximum"]) == (codes.min(), codes.max())
    assert members["codes.npy"]["first"] == codes[:, :8].tolist()
    assert members["codes.npy"]["distinct"] == [len(set(level.tolist())) for level in codes]
    spec = load_index(str(shards)).targets[1]
    values = spec.values(array_in(content, entry.members["cqt.npy"]))
    assert members["cqt.npy"]["maximum"] == pytest.approx(values.max())
    assert np.allclose(members["cqt.npy"]["first"], values[:2, :8])
    _, out, _ = say(shards, "--example", entry.key)
    assert f"segment       1 of {found['info']['segments']}, from 0.000 s" in out

    code, _, err = say(shards, "--example", "nobody-00000")
    assert code == 1 and "no example 'nobody-00000' in" in err
    code, _, err = say(shards, "--shard", "train-999999")
    assert code == 2 and "train-999999" in err


def array_in(tar: bytes, span: tuple[int, int, int]) -> np.ndarray:
    """A .npy member, read with NumPy alone."""
    return np.load(io.BytesIO(tar[span[0] : span[0] + span[1]]), allow_pickle=False)


def test_export_writes_what_the_shard_holds_and_overwrites_nothing(labelled, tmp_path, answer, say):
    shards = labelled / "shards"
    record = load_record(str(shards), "train-000000")
    key = record.members[1].key
    files = answer(shards, "--export", key, tmp_path / "out")["files"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(Path(file).name for file in files)
    assert len(files) == 5
    content = (shards / record.url).read_bytes()
    for suffix, span in record.members[1].members.items():
        written = (tmp_path / "out" / f"{key}.{suffix}").read_bytes()
        assert written == content[span[0] : span[0] + span[1]]
    audio, rate = soundfile.read(tmp_path / "out" / f"{key}.flac")
    assert (rate, len(audio)) == (24_000, 320 * record.members[1].num_frames)

    (tmp_path / "out" / f"{key}.json").write_text("mine")
    (tmp_path / "out" / f"{key}.codes.npy").unlink()
    code, _, err = say(shards, "--export", key, tmp_path / "out")
    assert code == 1 and "already there" in err
    assert (tmp_path / "out" / f"{key}.json").read_text() == "mine"
    assert not (tmp_path / "out" / f"{key}.codes.npy").exists()
    code, _, err = say(shards, "--export", "../../etc/passwd", tmp_path / "out")
    assert code == 1 and "no example" in err


def test_export_of_pcm_is_a_wav_file(tmp_path, answer):
    write_set(tmp_path / "shards", [1], audio_member="pcm.npy")
    key = load_record(str(tmp_path / "shards"), "train-000000").members[0].key
    answer(tmp_path / "shards", "--export", key, tmp_path / "out")
    audio, rate = soundfile.read(tmp_path / "out" / f"{key}.wav", dtype="int16")
    assert rate == 24_000 and audio.tolist() == (np.arange(len(audio)) % 32_000).tolist()


def test_a_damaged_member_is_named(labelled, tmp_path, say):
    shards = shutil.copytree(labelled / "shards", tmp_path / "shards")
    entry = load_record(str(shards), "train-000000").members[0]
    offset, size, _ = entry.members["cqt.npy"]
    content = bytearray((shards / "train-000000.tar").read_bytes())
    content[offset + size // 2] ^= 1
    (shards / "train-000000.tar").write_bytes(content)
    code, _, err = say(shards, "--example", entry.key)
    assert code == 1 and f"train-000000.tar: {entry.key}.cqt.npy: CRC-32" in err and "Traceback" not in err


def test_the_summary_of_a_manifest(labelled, answer, say):
    found = answer(labelled / "manifest")
    manifest = load_manifest(str(labelled / "manifest"))
    assert found["kind"] == "manifest" and found["manifest_sha256"] == manifest.sha256
    assert sum(split["tracks"] for split in found["splits"].values()) == 4
    assert sum(split["hours"] for split in found["splits"].values()) == pytest.approx(22 / 3600, rel=1e-3)
    assert [(name, each["tracks"]) for name, each in found["formats"].items()] == [(manifest.tracks[0].format, 4)]
    assert [(name, each["tracks"]) for name, each in found["sample_rates"].items()] == [("24000 Hz x 1", 4)]
    assert found["rejected"] == {"not_audio": 1} and found["rejects"][0]["path"] == "<b>not audio"
    assert found["track_seconds"]["minimum"] == 3 and HOSTILE in found["groups"]
    code, out, _ = say(labelled / "manifest")
    assert code == 0 and "1 not_audio" in out


def test_difference_of_manifests(labelled, tmp_path, answer, say):
    assert answer(labelled / "manifest", "--diff", labelled / "manifest")["same"] is True
    audio = shutil.copytree(labelled / "audio", tmp_path / "audio")
    (audio / "noise.wav").unlink()
    write_audio(audio / "new.wav", noise(4, seed=9))
    write_audio(audio / "low.wav", noise(9, seed=10))
    config = ManifestConfig(
        root=str(audio), out=str(tmp_path / "manifest"), splits={"valid": 0.3}, group_by="track", min_seconds=2.0
    )
    write_manifest(config, scan(config))
    found = answer(labelled / "manifest", "--diff", tmp_path / "manifest")
    assert [key.rpartition("-")[0] for key in found["added"]] == ["new"]
    assert [key.rpartition("-")[0] for key in found["removed"]] == ["noise"]
    assert [change["key"].rpartition("-")[0] for change in found["changed"]] == ["low"]
    assert found["changed"][0]["what"] == ["audio", "file"]
    settings = {change["key"]: (change["first"], change["second"]) for change in found["settings"]}
    assert settings["config.min_seconds"] == (3.0, 2.0) and "config.seed" not in settings
    code, out, _ = say(labelled / "manifest", "--diff", tmp_path / "manifest")
    assert code == 0 and "1 added, 1 removed, 1 changed" in out and "  ~ low-" in out


def test_difference_of_shard_sets_names_the_relabelled_targets(
    labelled, tmp_path, tiny_codec, other_codec, answer, say
):
    shards = labelled / "shards"
    assert answer(shards, "--diff", shards)["same"] is True
    label_manifest(labelled / "manifest", tmp_path / "recoded", other_codec)
    for tar in (tmp_path / "recoded").glob("*.tar"):
        tar.unlink()
    found = answer(shards, "--diff", tmp_path / "recoded")
    settings = {change["key"] for change in found["settings"]}
    assert "targets.codes.fingerprint" in settings and "targets.cqt.fingerprint" not in settings
    assert (found["added"], found["removed"], len(found["changed"])) == ([], [], 8)
    assert all(change["what"] == ["relabelled codes"] for change in found["changed"])

    label_manifest(labelled / "manifest", tmp_path / "retuned", tiny_codec, lowest_frequency=55.0)
    found = answer(shards, "--diff", tmp_path / "retuned")
    assert all(change["what"] == ["relabelled cqt"] for change in found["changed"]) and len(found["changed"]) == 8
    assert {"key": "targets.cqt.teacher.lowest_frequency", "first": 110.0, "second": 55.0} in found["settings"]
    code, out, _ = say(shards, "--diff", tmp_path / "retuned")
    assert code == 0 and "targets.cqt.teacher.lowest_frequency" in out


def test_difference_says_which_targets_came_and_went():
    rows = (
        {"t-00000": {"relabelled codes": 1, "relabelled cqt": 2}},
        {"t-00000": {"relabelled codes": 3, "relabelled mel": 2}},
    )
    (changed,) = difference("shards difference", "a", "b", [], "examples", *rows).changed
    assert changed.what == ["relabelled codes", "cqt removed", "mel added"]


def test_a_record_that_is_not_the_indexs_is_refused(labelled, tmp_path, say):
    shards = shutil.copytree(labelled / "shards", tmp_path / "shards")
    record = json.loads((shards / "train-000000.json").read_text())
    record["members"][0]["members"]["cqt.npy"][1] = 10**13
    (shards / "train-000000.json").write_text(json.dumps(record))
    for view in [
        (),
        ("--shard", "train-000000"),
        ("--example", record["members"][0]["key"]),
        ("--diff", labelled / "shards"),
    ]:
        code, out, err = say(shards, *view)
        assert (code, out) == (1, "") and "train-000000.json: SHA-256" in err and "the index says" in err
    index = json.loads((shards / "index.json").read_text())
    for entry in index["shardlist"]:
        entry["record_sha256"] = hashlib.sha256((shards / entry["record"]).read_bytes()).hexdigest()
    (shards / "index.json").write_text(json.dumps(index))
    code, _, err = say(shards, "--example", record["members"][0]["key"])
    assert code == 1 and "cqt.npy: 10000000000000 bytes at offset" in err and "of a tar of" in err


def test_no_text_of_a_file_steers_the_terminal(labelled, tmp_path, say):
    shards = shutil.copytree(labelled / "shards", tmp_path / "shards")
    index = json.loads((shards / "index.json").read_text())
    index["name"] = "\x1b[31mred\x07"
    (shards / "index.json").write_text(json.dumps(index))
    code, out, _ = say(shards)
    assert code == 0 and "\x1b" not in out and r"\x1b[31mred\x07" in out


def write_run(folder: Path, rate: float = 0.001, offset: float = 0.0) -> Path:
    """What a run leaves: three training records, two validations, a torn line."""
    folder.mkdir(parents=True)
    config = {
        "shards": "s3://music/shards",
        "out": str(folder),
        "trainer": {"schedule": {"total_steps": 40, "learning_rate": rate}},
    }
    document = {
        "config": config,
        "heads": [{"name": "codes", "kind": "discrete"}],
        "data": {"index_sha256": "f" * 64, "hours": {"train": 1.5}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(document))
    records = []
    for step in (10, 20, 30):
        records.append(
            {
                "kind": "train",
                "step": step,
                "loss": 9 - step / 10 + offset,
                "losses": {"codes": 5.0, "cqt": 1.0},
                "accuracy": {"codes": [step / 100, step / 200]},
                "learning_rate": rate * step,
                "gradient_norm": 2.0 + step,
                "audio_seconds_per_second": 100.0 + step,
                "data_wait_share": 0.01 * step,
                "skipped_steps": step // 30,
            }
        )
    for step, loss in ((10, 7.0 + offset), (20, 5.0 + offset), (30, None)):
        records.append(
            {
                "kind": "validation",
                "step": step,
                "loss": loss,
                "losses": {"codes": loss, "cqt": 0.5},
                "accuracy": {"codes": [0.5, 0.25]},
            }
        )
    records.append(
        {"kind": "diagnostics", "step": 30, "attention_entropy": [1.0, 2.0], "gradient_norms": {"heads.codes": 0.5}}
    )
    lines = [json.dumps(record) for record in sorted(records, key=lambda record: record["step"])]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"kind": "tra')
    (folder / "checkpoints" / "step_20").mkdir(parents=True)
    return folder


def test_the_summary_of_a_run(tmp_path, answer, say):
    found = answer(write_run(tmp_path / "run"))
    assert (found["kind"], found["step"], found["total_steps"], found["unreadable_lines"]) == ("run", 30, 40, 1)
    assert found["best_validation"]["step"] == 20 and found["last_validation"]["loss"] is None
    assert (found["audio_seconds_per_second"], found["data_wait_share"]) == (120.0, pytest.approx(0.2))
    assert found["skipped_steps"] == 1 and found["checkpoints"] == ["step_20"] and found["hours"] == {"train": 1.5}
    code, out, _ = say(tmp_path / "run")
    assert code == 0 and re.search(r"\n  steps +30 of 40\n", out) and re.search(r"\n  steps skipped +1\n", out)
    assert re.search(r"\n  waiting for data \(median\) +20.0%\n", out) and "1 lines that are no record" in out


def add_trivial(run: Path) -> Path:
    """A run of `write_run` as one that recorded what the best constants reach."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    codes = {"loss": 8.0, "codebooks": [3.0, 5.0], "most_frequent": [0.25, 0.125]}
    config["trivial"] = {
        "basis": "the best constants of train (3 of 3 shards)",
        "train": {"codes": codes},
        "validation": {"codes": {**codes, "loss": 10.0}},
        "unknown": {"cqt": "a frame of the encoder is the mean of 3"},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines[:-1]]
    for record in records:
        if record["kind"] in ("train", "validation"):
            loss, trivial = record["losses"]["codes"], config["trivial"][record["kind"]]["codes"]["loss"]
            record["explained"] = {"codes": None if loss is None else 1 - loss / trivial}
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + lines[-1])
    return run


def test_losses_of_a_run_beside_the_best_constants(tmp_path, answer, say):
    run, older = add_trivial(write_run(tmp_path / "run")), write_run(tmp_path / "older")
    found = answer(run)
    assert found["best_validation"]["explained"] == {"codes": 0.5} and found["last_validation"]["explained"] == {
        "codes": None
    }
    assert found["trivial"]["train"]["codes"]["codebooks"] == [3.0, 5.0]
    code, out, _ = say(run)
    assert code == 0 and re.search(r"\n  best constant +- +- +10 +-\n", out)
    assert re.search(r"\n  explained, % +step +codes\n  first +10 +30.0\n  best +20 +50.0\n  last +30 +-\n", out)
    assert re.search(r"\n  most frequent code +- +25.00 +12.50\n", out)
    assert "best constants of train (3 of 3 shards)" in out and "cqt: not compared: a frame of the encoder" in out
    found = curves(load_run(run))
    assert found["loss of codes"]["best constant, validation"] == [(10, 10.0), (30, 10.0)]
    assert found["loss of codes"]["best constant, train"] == [(10, 8.0), (30, 8.0)]
    assert set(found["loss of cqt"]) == {"train", "validation"}
    assert found["explained share of codes"]["validation"] == [(10, pytest.approx(0.3)), (20, 0.5), (30, None)]
    assert found["accuracy of codes"]["most frequent code, train"] == [(10, 0.1875), (30, 0.1875)]

    code, out, _ = say(older)
    assert code == 0 and "what a trivial predictor reaches is not recorded" in out and "best constant" not in out
    assert "explained" not in " ".join(curves(load_run(older))) and answer(older)["trivial"] is None
    code, out, _ = say(run, older)
    assert code == 0 and "codes 50.0%" in out
    assert not [change for change in answer(older, "--diff", run)["settings"] if "trivial" in change["key"]]
    assert say(run, older, "--html", tmp_path / "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert all(
        words in page for words in ("best constant, train", "explained share of codes", "most frequent code, train")
    )


def test_what_a_crash_or_another_writer_leaves_in_a_run(tmp_path, answer, say):
    metrics = write_run(tmp_path / "run") / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_bytes("\n".join([*lines[:-1], lines[0].replace("8.0", "NaN")]).encode() + b"\n\x98\xff\x00\n")
    found = answer(tmp_path / "run")
    assert found["unreadable_lines"] == 1 and found["last_train"]["loss"] is None
    (tmp_path / "run" / "config.yaml").unlink()
    assert re.search(r"\n  shards +-\n", say(tmp_path / "run")[1])
    (tmp_path / "run" / "config.yaml").write_text("[1]")
    code, _, err = say(tmp_path / "run")
    assert code == 1 and "config.yaml: not the config of a run" in err


def test_curves_are_the_records(tmp_path):
    found = curves(load_run(write_run(tmp_path / "run")))
    assert found["loss"] == {
        "train": [(10, 8.0), (20, 7.0), (30, 6.0)],
        "validation": [(10, 7.0), (20, 5.0), (30, None)],
    }
    assert found["train accuracy of codes by codebook"]["codebook 1"] == [(10, 0.05), (20, 0.1), (30, 0.15)]
    assert found["accuracy of codes"]["validation"] == [(10, 0.375), (20, 0.375), (30, 0.375)]
    assert found["gradient norm"] == {"train": [(10, 12.0), (20, 22.0), (30, 32.0)]}
    assert found["diagnostics: attention entropy"] == {"layer 0": [(30, 1.0)], "layer 1": [(30, 2.0)]}
    assert {"learning rate", "audio seconds a second", "share of time waiting for data", "loss of cqt"} <= set(found)


def test_runs_side_by_side_and_their_difference(tmp_path, answer, say):
    first, second = write_run(tmp_path / "first"), write_run(tmp_path / "second", rate=0.002, offset=1.0)
    assert [each["best_validation"]["loss"] for each in answer(first, second)["runs"]] == [5.0, 6.0]
    code, out, _ = say(first, second)
    assert code == 0 and str(first) in out and str(second) in out
    found = answer(first, "--diff", second)
    settings = {change["key"]: (change["first"], change["second"]) for change in found["settings"]}
    assert settings["config.trainer.schedule.learning_rate"] == (0.001, 0.002)
    assert "config.out" not in settings and found["same"] is False
    assert {"key": "validation at step 20", "what": ["loss 5 -> 6"]} in found["changed"]


def test_other_places_are_refused_in_one_line(labelled, tmp_path, say):
    for location, words in {
        tmp_path / "nothing": "there is no such folder",
        tmp_path: "none of shard folder (index.json), manifest folder (manifest.yaml)",
        labelled: f"did you mean {labelled}/manifest or {labelled}/shards?",
    }.items():
        code, out, err = say(location)
        assert (code, out, err.count("\n")) == (2, "", 1) and words in err
    unfinished = shutil.copytree(labelled / "shards", tmp_path / "unfinished")
    (unfinished / "index.json").unlink()
    assert "tars but no index.json" in say(unfinished)[2]
    (unfinished / "index.json").write_text('{"schema_version": 7}')
    code, _, err = say(unfinished)
    assert code == 1 and f"{unfinished}/index.json: schema_version" in err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("not json\n")
    code, _, err = say(tmp_path / "run")
    assert code == 1 and "metrics.jsonl: no record" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["manifest", "--shard", "train-000000"], "--shard means nothing on a manifest folder"),
        (["shards", "--track", "x"], "--track means nothing on a shard folder"),
        (["shards", "manifest"], "several locations must be of one kind"),
        (["shards", "shards"], "only runs are shown together"),
        (["shards", "--diff", "manifest"], "--diff compares two of a kind"),
        (["shards", "--seed", "0"], "--seed belongs to --html"),
        (["shards", "--html", "page.txt"], "ends with .html"),
        (["shards", "--html", "x.html", "--json"], "--html and --json"),
        (["shards", "--html", "x.html", "--diff", "y"], "--diff and --html"),
        (["shards", "--html", "x.html", "--shard", "y"], "--shard and --html"),
        (["shards", "--manifest", "manifest", "--example", "y"], "--manifest and --example"),
        (["shards", "--html", "x.html", "--examples", "-1"], "0 or more"),
        (["shards", "--html", "x.html", "--examples", "2", "--keys", "a"], "--keys names the examples"),
    ],
)
def test_options_that_do_not_go_together_are_refused(labelled, say, arguments, words):
    places = [str(labelled / each) if each in ("shards", "manifest") else each for each in arguments]
    code, out, err = say(*places)
    assert code == 2 and words in err and out == ""


def test_where_no_report_can_be_written_is_told_before_the_work(labelled, tmp_path, say):
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "index.json").write_text("{}")  # which the work would stumble over
    (tmp_path / "page.html").mkdir()
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for place, words in {
        "/proc/nowhere/page.html": "nothing can be written in /proc",
        tmp_path / "file" / "page.html": "file: Not a directory",
        tmp_path / "page.html": "a folder of that name is there",
        "s3://bucket/page.html": "a local file is needed",
    }.items():
        code, out, err = say(shards, "--html", place)
        assert (code, out, err.count("\n")) == (2, "", 1) and words in err and str(place) in err
    assert sorted(tmp_path.rglob("*")) == before
    assert say(labelled / "manifest", "--html", tmp_path / "new" / "deep" / "page.html")[0] == 0
    assert (tmp_path / "new" / "deep" / "page.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["manifest", "shards", "run"])
def test_the_kind_can_be_named(name, labelled, tmp_path, say, monkeypatch):
    location = write_run(tmp_path / "other") if name == "run" else labelled / name
    guessed, named = say(location), say(name, location)
    assert guessed[0] == 0 and named == guessed
    assert say(location, name) != guessed  # only the first word names it
    wrong = "features" if name == "run" else "run"
    code, out, err = say(wrong, location)
    assert (code, out) == (2, "") and err.startswith(f"{location} is a ") and ", not a " in err
    # Alone it is the folder of that name; before another location it is not, and that is said.
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).symlink_to(location)
    assert [code for code, _, err in (say(name), say(name, name), say(name, f"./{name}")) if not err] == [0, 0, 0]
    code, out, err = say(name, location)
    assert code == 0 and err == f"{name} is taken for the kind of folder; ./{name} is the folder of that name\n"


# What the extras of pyproject.toml bring.
OPTIONAL = [
    "av",
    "encodec",
    "mir_eval",
    "ray",
    "sklearn",
    "torchmetrics",
    "threadpoolctl",
    "webdataset",
    "zarr",
    "nnAudio",
    "transformers",
]


@pytest.mark.process
@pytest.mark.slow
def test_text_needs_the_base_packages_alone_and_a_page_names_the_extra_that_it_lacks(labelled, tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "probe").mkdir()
    report = ProbeReport(
        version="1", data="d", score="test", pooling="mean", protocol=ProbeProtocol(), compared_with="m",
        models=(), tasks=(), rows=(), layers=(), differences=(),
    )  # fmt: skip
    (tmp_path / "probe" / "report.json").write_text(report.model_dump_json())
    program = f"""
import sys
for name in {OPTIONAL}:
    sys.modules[name] = None  # as if it were not installed
from mert_foundry.jobs import inspect
from mert_foundry.jobs.command.line import run
folders = [[folder] for folder in sys.argv[1:]]
for arguments in (*folders, [sys.argv[2], "--html", "page.html"], ["store.zarr"]):
    print(run(inspect.main, arguments, ""))
"""
    (tmp_path / "store.zarr").mkdir()
    (tmp_path / "store.zarr" / "zarr.json").write_text("{}")
    places = [
        str(place) for place in (labelled / "manifest", labelled / "shards", tmp_path / "run", tmp_path / "probe")
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *places], capture_output=True, text=True, cwd=tmp_path, env=mert_environment()
    )
    codes = [line for line in done.stdout.splitlines() if line in ("0", "1")]
    assert codes == ["0", "0", "0", "0", "0", "1"], done.stderr
    assert done.stderr.splitlines() == [
        "There is no audio decoded from codes: the package encodec is not installed; pip install '.[label]' adds it.",
        "error: the package zarr is not installed; pip install '.[features]' adds it",
    ]
    assert (tmp_path / "page.html").read_text().count("audio/mpeg") == 6


@pytest.mark.parametrize(
    "arguments", [[""], ["shards", "--shard", ""], ["shards", "--export", "", "x"], ["shards", "--html", ""]]
)
def test_an_empty_value_such_as_an_unset_variable_gives_is_refused(arguments, say):
    code, out, err = say(*arguments)
    assert (code, out) == (2, "") and "the value is empty" in err


def test_a_report_shows_file_names_that_are_no_utf_8(tmp_path, say):
    write_audio(tmp_path / "audio" / "a.wav", noise(3, seed=0))
    (tmp_path / "audio" / "a.wav").rename(os.fsdecode(os.fsencode(tmp_path) + b"/audio/\xfcber.wav"))
    config = ManifestConfig(root=str(tmp_path / "audio"), out=str(tmp_path / "manifest"), group_by="track")
    write_manifest(config, scan(config))
    assert say(tmp_path / "manifest")[0] == 0
    code, _, err = say(tmp_path / "manifest", "--html", tmp_path / "page.html")
    assert code == 0, err
    assert r"\udcfcber.wav" in (tmp_path / "page.html").read_text()


@pytest.mark.process
def test_as_a_module_of_its_own(labelled):
    command = [sys.executable, "-m", "mert_foundry.jobs.inspect", str(labelled / "shards")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=mert_environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"shards {labelled / 'shards'}\n")


def test_a_large_set_is_sampled_evenly():
    assert subsample(range(10), 20) == list(range(10))
    assert subsample(range(100), 4) == [0, 25, 50, 75]


def test_spread_and_histogram():
    values = np.random.default_rng(0).gamma(2, 30, 1000)
    found = spread(values)
    assert (found.minimum, found.maximum, found.median) == (values.min(), values.max(), np.median(values))
    assert spread([]) is None
    bars = histogram(values)
    assert (
        sum(bars.counts) == 1000
        and len(bars.counts) <= 41
        and bars.edges[0] <= values.min()
        and bars.edges[-1] >= values.max()
    )
    naive = [
        sum(low <= value < high for value in values) for low, high in zip(bars.edges, bars.edges[1:], strict=False)
    ]
    assert bars.counts == naive
    assert sum(histogram([30.0] * 5).counts) == 5 and sum(histogram([-3, 4, 0]).counts) == 3
