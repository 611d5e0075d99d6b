"""mert plan: what it says against what labelling and training then make, its formulas, and what it refuses."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from audio_files import MUSIC

from mert_foundry.jobs import plan
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.planning.figures import evaluate
from mert_foundry.pipeline.labelling.plan import SegmentConfig, plan_shards
from mert_foundry.pipeline.labelling.process_shard import process_shard
from mert_foundry.pipeline.manifest.rows import load_manifest
from mert_foundry.pipeline.manifest.scan import ManifestConfig, scan, write_manifest
from mert_foundry.pipeline.shards.record import ShardRecord
from mert_foundry.pipeline.teachers.cqt import CqtTeacherConfig
from mert_foundry.pipeline.teachers.encodec import EncodecTeacherConfig
from mert_foundry.pipeline.teachers.registry import build_teachers

SEGMENTS = {"segment_seconds": 5.0, "shortest_seconds": 2.0, "examples_per_shard": 8}
Plan = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture) -> Plan:
    """Run `mert plan` in this process; gives its exit code, stdout and stderr."""

    def say(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(plan.main, [str(argument) for argument in arguments], plan.__doc__, plan.CONFIG)
        output = capsys.readouterr()
        return code, output.out, output.err

    return say


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clips of two collections, a fourth of them to validate on; read only."""
    folder = tmp_path_factory.mktemp("plan")
    for collection in ("asc-music", "hyperrogue-music"):
        shutil.copytree(MUSIC / collection, folder / "music" / collection)
    out = str(folder / "manifest")
    config = ManifestConfig(root=str(folder / "music"), out=out, splits={"valid": 0.25}, group_by="track")
    write_manifest(config, scan(config))
    return Path(out)


@pytest.fixture(scope="module")
def label_yaml(tmp_path_factory: pytest.TempPathFactory, tiny_codec: Path) -> Path:
    """A config of mert label with a codec and a CQT of four octaves."""
    path = tmp_path_factory.mktemp("configs") / "label.yaml"
    teachers = [
        {"kind": "encodec", "weights": str(tiny_codec), "codebooks": 4},
        {"kind": "cqt", "lowest_frequency": 110.0, "bins": 48, "bins_per_octave": 12},
    ]
    path.write_text(yaml.safe_dump({"teachers": teachers, "segments": SEGMENTS}))
    return path


def label(manifest: Path, codec: Path, out: Path, audio: str, storage: str) -> list[ShardRecord]:
    """Really label the manifest; the records of its shards."""
    teachers = [
        EncodecTeacherConfig(kind="encodec", weights=str(codec), codebooks=4),
        CqtTeacherConfig(kind="cqt", lowest_frequency=110.0, bins=48, bins_per_octave=12, storage=storage),
    ]
    listing = load_manifest(str(manifest))
    built = build_teachers(teachers, "cpu")
    tasks = plan_shards(listing, SegmentConfig(**SEGMENTS, audio=audio))
    return [process_shard(task, built, listing.root, str(out), {}) for task in tasks]


def values(document: dict) -> dict[str, float]:
    return {f"{line['section']}/{line['name']}": line["value"] for line in document["figures"]}


def in_json(say: Plan, *arguments: object) -> dict:
    code, out, err = say(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize(("audio", "storage"), [("flac", "uint8"), ("pcm.npy", "float16")])
def test_the_plan_says_what_labelling_makes(
    audio: str, storage: str, say: Plan, manifest: Path, label_yaml: Path, tiny_codec: Path, tmp_path: Path
):
    settings = [f"manifest={manifest}", f"segments.audio={audio}", f"teachers.1.storage={storage}", "labelling_rate=1"]
    told = values(in_json(say, label_yaml, *settings))
    records = label(manifest, tiny_codec, tmp_path, audio, storage)
    members: Counter[str] = Counter()
    for record in records:
        for entry in record.members:
            members.update({suffix: size for suffix, (_, size, _) in entry.members.items()})
    for split in ("train", "valid"):
        made = [record for record in records if record.split == split]
        assert told[f"shards/{split}: shards"] == len(made) > 0
        assert told[f"shards/{split}: examples"] == sum(record.examples for record in made)
        assert told[f"shards/{split}: hours"] == pytest.approx(sum(record.seconds for record in made) / 3600)
    on_disk = sum((tmp_path / record.url).stat().st_size for record in records)
    exact = 0.03 if audio == "flac" else 0.0
    for suffix, size in members.items():
        assert told[f"bytes/{suffix}"] == pytest.approx(size, rel=exact if suffix == "flac" else 1e-12), suffix
    assert told["bytes/all shards"] == pytest.approx(on_disk, rel=exact, abs=1e-6)
    assert told[f"bytes/all shards, stored as {audio}, cqt {storage}"] == told["bytes/all shards"]


def test_flac_of_some_tracks_stands_for_all(say: Plan, manifest: Path, label_yaml: Path):
    every, some = (
        in_json(say, label_yaml, f"manifest={manifest}", "labelling_rate=1", f"calibration_tracks={count}")
        for count in (24, 3)
    )
    rates = [line["inputs"] for document in (every, some) for line in document["figures"] if line["name"] == "flac"]
    assert rates[1]["flac_seconds"] < rates[0]["flac_seconds"]
    note = next(line["note"] for line in some["figures"] if line["name"] == "flac")
    assert "3 tracks" in note and "standard errors" in note


def test_every_formula_gives_its_figure(say: Plan, manifest: Path, label_yaml: Path):
    """By Python's own arithmetic; the plan's reads the same formulas."""
    lines = in_json(say, label_yaml, f"manifest={manifest}", "calibration_seconds=10")["figures"]
    assert len(lines) > 20
    for line in lines:
        functions = {"ceil": math.ceil, "floor": math.floor, "min": min, "max": max}
        assert eval(line["formula"], {"__builtins__": {}}, functions | line["inputs"]) == line["value"], line["name"]
        assert line["value"] >= 0


def test_explain_shows_formulas_inputs_and_their_source(say: Plan, manifest: Path, label_yaml: Path):
    stated = [f"manifest={manifest}", "flac_bytes_per_second=30000", "labelling_rate=5", "workers=4"]
    code, out, _ = say(label_yaml, *stated, "--explain")
    assert code == 0
    lines = [line.strip() for line in out.splitlines()]
    at = lines.index("= track_seconds / labelling_rate / workers / 3600")
    assert lines[at - 1].startswith("hours, all workers at once: ") and "workers = 4" in lines[at : at + 4]
    assert "flac_bytes_per_second as stated" in lines
    code, out, _ = say(label_yaml, *stated)
    assert code == 0 and "workers = 4" not in out and "hours, all workers at once" in out


def test_stated_rates_need_no_audio(say: Plan, manifest: Path, label_yaml: Path, tmp_path: Path):
    gone = tmp_path / "manifest"
    gone.mkdir()
    document = yaml.safe_load((manifest / "manifest.yaml").read_text())
    (gone / "manifest.yaml").write_text(yaml.safe_dump(document | {"root": str(tmp_path / "gone")}))
    (gone / "manifest.jsonl").write_bytes((manifest / "manifest.jsonl").read_bytes())
    stated = ["flac_bytes_per_second=30000", "labelling_rate=5"]
    told = values(in_json(say, label_yaml, f"manifest={gone}", *stated))
    tracks = load_manifest(str(manifest)).tracks
    assert told["labelling/hours of one worker"] == pytest.approx(sum(track.seconds for track in tracks) / 5 / 3600)
    seconds = 3600 * (told["shards/train: hours"] + told["shards/valid: hours"])
    assert told["bytes/flac"] == pytest.approx(30000 * seconds)
    code, _, err = say(label_yaml, f"manifest={gone}", "labelling_rate=5")
    assert code == 1 and str(tmp_path / "gone") in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that the test wants to be missing")
def test_a_worker_on_a_gpu_is_not_guessed(say: Plan, manifest: Path, label_yaml: Path):
    document = in_json(say, label_yaml, f"manifest={manifest}", "device=cuda", "flac_bytes_per_second=30000")
    (missing,) = [line for line in document["missing"] if line["section"] == "labelling"]
    assert "labelling_rate=" in missing["needs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{label}", "{label}"], "label.yaml are both configs of mert label"),
        (["{pretrain}"], "a config of mert label is needed"),
        (["{other}"], "other.yaml: by its keys (root) it is neither of mert label"),
        (["{label}", "stream.batch_size=4"], "is a setting of mert pretrain"),
        (["{label}", "out=shards"], "out=shards: a plan writes nothing"),
        (["{label}", "{pretrain}", "seeed=1"], "unknown key 'seeed'"),
        (["{label}", "segments.audio=mp3"], "label.yaml: segments.audio"),
        (["{label}", "{pretrain}", "stream.batch_size=0"], "pretrain.yaml: stream.batch_size"),
        (["{label}", "splits=[test]"], "no track in 'test'"),
        (["{label}", "labelling_rate=0"], "labelling_rate"),
    ],
)
def test_what_is_refused(
    arguments: list[str], message: str, say: Plan, manifest: Path, label_yaml: Path, tmp_path: Path
):
    (tmp_path / "pretrain.yaml").write_text("stream: {batch_size: 4}\n")
    (tmp_path / "other.yaml").write_text("root: music\n")
    places = {"label": label_yaml, "pretrain": tmp_path / "pretrain.yaml", "other": tmp_path / "other.yaml"}
    code, _, err = say(*[argument.format(**places) for argument in arguments], f"manifest={manifest}")
    assert code == 2 and message in err


def test_a_formula_is_arithmetic_only():
    assert evaluate("ceil(a / 2) * 3 - min(a, 1)", {"a": 5}) == 8
    with pytest.raises(KeyError, match="b"):
        evaluate("a + b", {"a": 1})
    with pytest.raises(TypeError, match="no arithmetic"):
        evaluate("a if a else 1", {"a": 1})
