"""`mert verify`: a good set passes, every damage is named by shard and key, wrong labels only by the teachers."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from audio_files import mert, noise, tone, write_audio
from folders import make_manifest

from mert_foundry.jobs import verify
from mert_foundry.jobs.command.line import run
from mert_foundry.pipeline.labelling.plan import SegmentConfig, plan_shards
from mert_foundry.pipeline.labelling.process_shard import process_shard
from mert_foundry.pipeline.labelling.shard_writer import write_shard
from mert_foundry.pipeline.manifest.rows import load_manifest
from mert_foundry.pipeline.shards.format import Example, decode_example
from mert_foundry.pipeline.shards.index import ShardIndex, build_index, load_index
from mert_foundry.pipeline.shards.record import load_record
from mert_foundry.pipeline.teachers.cqt import CqtTeacherConfig
from mert_foundry.pipeline.teachers.encodec import EncodecTeacherConfig
from mert_foundry.pipeline.teachers.registry import build_teachers

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TAR = "train-000000.tar"
SEGMENTS = SegmentConfig(segment_seconds=0.6, shortest_seconds=0.4, examples_per_shard=3)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """Five tracks of 1.1 s, one of them held out."""
    root, out = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("manifest")
    for number in range(5):
        write_audio(root / f"track{number}.wav", tone(300 * 2**number, 1.1) * 0.5 + noise(1.1, seed=number))
    make_manifest(root, out, splits={"valid": 0.4}, group_by="track", min_seconds=0.5)
    return out


def teacher_configs(codec: Path) -> list[dict]:
    return [
        {"kind": "encodec", "weights": str(codec), "codebooks": 4},
        {"kind": "cqt", "lowest_frequency": 500.0, "bins": 24, "bins_per_octave": 12},
    ]


@pytest.fixture(scope="module")
def good(tmp_path_factory, manifest, tiny_codec) -> Path:
    """A labelled set as `mert label` leaves it, made without Ray; read only."""
    out = tmp_path_factory.mktemp("good") / "shards"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    codec, cqt = teacher_configs(tiny_codec)
    teachers = build_teachers([EncodecTeacherConfig(**codec), CqtTeacherConfig(**cqt)], "cpu")
    listing = load_manifest(str(manifest))
    for task in plan_shards(listing, SEGMENTS):
        process_shard(task, teachers, listing.root, str(out), {"device": "cpu"})
    torch.set_num_threads(threads)
    publish_index(out, [teacher.spec for teacher in teachers], listing.sha256)
    (out / "label.yaml").write_text(yaml.safe_dump({"teachers": [codec, cqt]}))
    return out


def publish_index(folder: Path, specs: list, manifest_sha256: str) -> ShardIndex:
    """Make index.json from the records that are there."""
    names = [path.stem for path in folder.glob("*-*.tar")]
    return build_index(
        str(folder),
        names,
        specs,
        name="test",
        manifest_sha256=manifest_sha256,
        segment_seconds=SEGMENTS.segment_seconds,
        audio_member="flac",
    )


@pytest.fixture
def shards(good, tmp_path) -> Path:
    """A copy to damage."""
    return shutil.copytree(good, tmp_path / "shards")


@pytest.fixture
def check(capsys):
    """Run the command in this process; gives its exit code, and all lines on stdout."""

    def check(*arguments: object) -> tuple[int, list[str]]:
        threads = torch.get_num_threads()
        capsys.readouterr()
        try:
            code = run(verify.main, [str(argument) for argument in arguments], verify.__doc__)
        finally:
            torch.set_num_threads(threads)
        output = capsys.readouterr()
        return code, [*output.out.splitlines(), *(line for line in output.err.splitlines() if "real time" not in line)]

    return check


def members(folder: Path, name: str = "train-000000") -> list[dict]:
    return json.loads((folder / f"{name}.json").read_text())["members"]


def damage(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 16
    path.write_bytes(content)


def test_a_good_set_passes(good, manifest, check):
    index = load_index(str(good))
    assert set(index.totals) == {"train", "valid"} and len(index.shardlist) >= 3
    examples = sum(entry.nsamples for entry in index.shardlist)
    code, lines = check(good, "--manifest", manifest, "--relabel", 1000)
    assert (code, lines) == (0, [f"{len(index.shardlist)} shards, {examples} examples: no fault"])


@pytest.mark.process
def test_exit_codes_of_the_console_script(shards, run_here):
    code, out, error = run_here(verify, shards)
    assert code == 0, error
    assert out.endswith("no fault\n")
    example = members(shards)[1]
    damage(shards / TAR, example["members"]["codes.npy"][0] + 200)
    done = mert("verify", shards)
    assert done.returncode == 1 and f"{TAR}: {example['key']}: codes.npy: CRC-32" in done.stdout
    assert "Traceback" not in done.stderr
    with pytest.raises(SystemExit, match="2"):
        verify.main([])


@pytest.mark.parametrize("suffix", ["codes.npy", "cqt.npy", "flac", "json"])
def test_a_flipped_bit_is_named_by_shard_and_key(shards, check, suffix):
    example = members(shards)[-1]
    offset, size, _ = example["members"][suffix]
    damage(shards / TAR, offset + size // 2)
    code, lines = check(shards)
    assert code == 1 and lines[-1].endswith("2 faults")
    assert lines[0].startswith(f"{TAR}: SHA-256 ")
    assert lines[1].startswith(f"{TAR}: {example['key']}: {suffix}: CRC-32 ")


def test_a_truncated_tar_is_named_by_shard_and_keys(shards, check):
    cut = members(shards)[-1]
    content = (shards / TAR).read_bytes()
    (shards / TAR).write_bytes(content[: cut["members"]["flac"][0] + 7])
    code, lines = check(shards)
    assert code == 1 and f"{TAR}: {cut['members']['flac'][0] + 7} bytes, the index says {len(content)}" in lines
    assert any(
        line.startswith(f"{TAR}: {cut['key']}: flac: ") and line.endswith(" 7 read; the file is truncated")
        for line in lines
    )
    assert not any(example["key"] in line for example in members(shards)[:-1] for line in lines)


@pytest.mark.parametrize("name", [TAR, "train-000000.json"])
def test_a_missing_file_is_named(shards, check, name):
    (shards / name).unlink()
    code, lines = check(shards)
    assert code == 1 and any(line.startswith(f"{name}: cannot be read (") for line in lines)


def test_swapped_tars_are_named_by_shard_and_key(shards, check):
    first, second = shards / TAR, shards / "train-000001.tar"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    code, lines = check(shards)
    assert code == 1
    for number in range(2):
        key, other = (members(shards, f"train-00000{shard}")[0]["key"] for shard in (number, 1 - number))
        assert any(line.startswith(f"train-00000{number}.tar: {key}: member ") and other in line for line in lines)


def edit_index(folder: Path, change) -> None:
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


def other_tar_digest(index):
    index["shardlist"][0]["sha256"] = "0" * 64


def other_teacher(index):
    index["targets"][0]["fingerprint"] = "1" * 64


def other_statistics(index):
    index["statistics"]["cqt"]["mean"][0] += 0.5


def other_drops(index):
    index["dropped"]["silent"] = 3


def no_last_shard(index):
    entry = index["shardlist"].pop()
    totals = index["totals"][entry["split"]]
    for total, part in {"shards": 1, "examples": entry["nsamples"], "bytes": entry["filesize"]}.items():
        totals[total] -= part
    totals["seconds"] = sum(kept["num_frames"] for kept in index["shardlist"] if kept["split"] == entry["split"]) / 75
    if not totals["shards"]:
        del index["totals"][entry["split"]]


@pytest.mark.parametrize(
    ("change", "start", "words"),
    [
        (other_tar_digest, "train-000000.json: sha256", f"the index says {'0' * 64}"),
        (other_teacher, "train-000000.json: target codes was labelled by", "1" * 64),
        (other_statistics, "index.json: the statistics", "are not those of the records"),
        (other_drops, "index.json: dropped segments", "'silent': 3"),
        (no_last_shard, "valid-00000", "the index does not list it"),
    ],
)
def test_an_edited_index_is_found(shards, check, change, start, words):
    edit_index(shards, change)
    code, lines = check(shards)
    assert code == 1 and any(line.startswith(start) and words in line for line in lines), lines


def test_an_index_that_contradicts_itself_or_is_none_is_one_line(shards, check):
    edit_index(shards, lambda index: index["shardlist"][0].update(nsamples=77))
    code, lines = check(shards)
    assert (code, lines) == (1, [f"error: {shards}/index.json: Value error, totals do not add up to the shardlist"])
    (shards / "index.json").unlink()
    code, lines = check(shards)
    assert code == 1 and len(lines) == 1 and f"{shards}/index.json" in lines[0]


def test_another_manifest_is_refused_by_both_digests(shards, manifest, tmp_path, check):
    other = shutil.copytree(manifest, tmp_path / "manifest")
    rows = (other / "manifest.jsonl").read_text().splitlines(keepends=True)
    (other / "manifest.jsonl").write_text("".join(rows[1:]))
    digest = load_manifest(str(manifest)).sha256
    (other / "manifest.yaml").write_text((other / "manifest.yaml").read_text().replace(digest, sha256_of(other)))
    code, lines = check(shards, "--manifest", other)
    assert code == 1 and lines[0] == f"index.json: made from manifest {digest}, this one is {sha256_of(other)}"


def sha256_of(manifest: Path) -> str:
    return hashlib.sha256((manifest / "manifest.jsonl").read_bytes()).hexdigest()


def test_a_track_in_another_split_than_the_manifest_says_is_named(shards, manifest, tmp_path, check):
    """The digest agrees, as if the shards had been planned wrongly."""
    other = shutil.copytree(manifest, tmp_path / "manifest")
    rows = [json.loads(line) for line in (other / "manifest.jsonl").read_text().splitlines()]
    track = members(shards)[0]["key"].rpartition("-")[0]
    for row in rows:
        if row["key"] == track:
            row["split"] = "valid"
    (other / "manifest.jsonl").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    text = (other / "manifest.yaml").read_text().replace(load_manifest(str(manifest)).sha256, sha256_of(other))
    (other / "manifest.yaml").write_text(text)
    edit_index(shards, lambda index: index.update(manifest_sha256=sha256_of(other)))
    code, lines = check(shards, "--manifest", other)
    assert code == 1 and lines[0] == f"{TAR}: {track}: split train, the manifest says valid"


def test_tracks_beyond_the_selection_and_missing_ones_are_named(shards, manifest, check):
    """A set of one split: the tracks of the other are not missing; those that are, and those too many, are."""
    listing = load_manifest(str(manifest))
    training = sorted(track.key for track in listing.tracks if track.split == "train")
    for path in shards.glob("valid-*"):
        path.unlink()
    publish_index(shards, load_index(str(shards)).targets, listing.sha256)
    code, lines = check(shards, "--manifest", manifest)
    assert code == 1 and all(line.endswith("a track of the manifest, in no shard") for line in lines[:-1])

    edit_index(shards, lambda index: index.update(selection={"splits": ["train"], "limit_hours": None}))
    assert check(shards, "--manifest", manifest)[0] == 0
    edit_index(shards, lambda index: index.update(selection={"splits": ["train"], "limit_hours": 1e-6}))
    code, lines = check(shards, "--manifest", manifest)
    assert code == 1 and len(lines) == len(training)
    assert all(line.endswith("not one of the tracks to take (splits train, limited to 1e-06 h)") for line in lines[:-1])
    edit_index(shards, lambda index: index.update(selection={"splits": ["test"], "limit_hours": None}))
    code, lines = check(shards, "--manifest", manifest)
    assert code == 1 and lines[0] == "index.json: splits: the manifest has no track in 'test', only in train, valid"


def read_examples(folder: Path, name: str) -> list[Example]:
    index = load_index(str(folder))
    content = (folder / f"{name}.tar").read_bytes()
    return [
        decode_example(
            entry.key,
            {suffix: content[offset : offset + size] for suffix, (offset, size, _) in entry.members.items()},
            index.targets,
            index.audio_member,
        )
        for entry in load_record(str(folder), name).members
    ]


def write_again(folder: Path, name: str, examples: list[Example]) -> None:
    """Publish a shard and its index anew, so that every checksum is right."""
    index, record = load_index(str(folder)), load_record(str(folder), name)
    write_shard(
        str(folder),
        name,
        examples,
        index.targets,
        audio_member="flac",
        plan_fingerprint=record.plan_fingerprint,
        backend=record.backend,
    )
    publish_index(folder, index.targets, index.manifest_sha256)


@pytest.mark.parametrize("target", ["codes", "cqt"])
def test_wrong_labels_with_right_checksums_are_found_by_the_teachers_alone(shards, manifest, check, target):
    examples = read_examples(shards, "train-000001")
    changed = np.array(examples[1].targets[target])
    if target == "codes":
        changed[2, 7] = (changed[2, 7] + 1) % 64  # one code of one frame in 45
    else:
        changed += 1  # the next level: 3.6 % louder
    examples[1] = Example(examples[1].info, examples[1].audio, {**examples[1].targets, target: changed})
    write_again(shards, "train-000001", examples)
    assert check(shards, "--manifest", manifest)[0] == 0
    code, lines = check(shards, "--relabel", 1000)
    assert code == 1 and len(lines) == 2
    assert lines[0].startswith(f"train-000001.tar: {examples[1].key}: {target}: ")


def test_labels_of_another_track_are_found_by_the_teachers(shards, check):
    """Two tracks of one length whose targets changed places, as labels matched by line order would."""
    examples = read_examples(shards, "train-000000")
    first, last = examples[0], next(example for example in examples if example.info.track != examples[0].info.track)
    swapped = {
        first.key: Example(first.info, first.audio, last.targets),
        last.key: Example(last.info, last.audio, first.targets),
    }
    write_again(shards, "train-000000", [swapped.get(example.key, example) for example in examples])
    assert check(shards)[0] == 0
    code, lines = check(shards, "--relabel", 1000)
    assert code == 1
    for key in swapped:
        assert any(line.startswith(f"{TAR}: {key}: codes: ") for line in lines)


def test_the_device_reaches_the_teachers(shards, check, monkeypatch):
    asked = []

    def build(configs, device, teachers):
        asked.append(device)
        return build_teachers(configs, "cpu", teachers)

    monkeypatch.setattr("mert_foundry.jobs.verify.build_teachers", build)
    monkeypatch.setattr("mert_foundry.jobs.verify.check_cuda", lambda device: None)
    assert check(shards, "--relabel", 1)[0] == check(shards, "--relabel", 1, "--device", "cuda")[0] == 0
    assert asked == ["cpu", "cuda"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_gpu_that_is_not_there_is_told_before_any_shard_is_read(shards, tiny_codec, check):
    for tar in shards.glob("*.tar"):
        tar.unlink()
    assert check(shards, "--relabel", 1, "--device", "cuda") == (
        1,
        ["error: device cuda: torch finds no CUDA device on this machine"],
    )
    codec, cqt = teacher_configs(tiny_codec)
    (shards / "label.yaml").write_text(yaml.safe_dump({"teachers": [codec | {"precision": "tf32"}, cqt]}))
    assert check(shards, "--relabel", 1) == (
        2,
        [f"{shards}/label.yaml: teachers.0.precision tf32 needs a GPU (device cuda), the device is cpu"],
    )


def test_teachers_from_another_config(good, shards, tmp_path, tiny_codec, other_codec, check):
    moved = shutil.copytree(tiny_codec, tmp_path / "moved-codec")
    (shards / "label.yaml").unlink()
    code, lines = check(shards, "--relabel", 2)
    assert code == 2 and lines == [f"{shards}/label.yaml: not there; --teachers names a label config"]

    for name, configs in {
        "moved": teacher_configs(moved),
        "turned": teacher_configs(moved)[::-1],
        "other": teacher_configs(other_codec),
        "fewer": teacher_configs(moved)[:1],
    }.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"teachers": configs, "segments": {}}))
    assert check(shards, "--relabel", 2, "--teachers", tmp_path / "moved.yaml")[0] == 0
    assert check(shards, "--relabel", 2, "--teachers", tmp_path / "turned.yaml")[0] == 0

    labelled_by = load_index(str(good)).targets[0].fingerprint
    other = build_teachers([EncodecTeacherConfig(**teacher_configs(other_codec)[0])], "cpu")[0].spec.fingerprint
    code, lines = check(shards, "--relabel", 2, "--teachers", tmp_path / "other.yaml")
    assert (code, lines) == (1, [f"error: target codes was labelled by teacher {labelled_by}, this teacher is {other}"])
    code, lines = check(shards, "--relabel", 2, "--teachers", tmp_path / "fewer.yaml")
    assert code == 1 and "['cqt'] are in the shards, none of these teachers makes them" in lines[0]
    (tmp_path / "none.yaml").write_text("segments: {}\n")
    code, lines = check(shards, "--relabel", 2, "--teachers", tmp_path / "none.yaml")
    assert code == 2 and "no label config with teachers" in lines[0]


def test_weights_that_have_moved_are_told_with_what_to_do(shards, tmp_path, check):
    for teacher, words in {
        "kmeans": f"{tmp_path}/moved/kmeans.yaml: not there",
        "encodec": f"codec weights '{tmp_path}/moved'",
    }.items():
        (shards / "label.yaml").write_text(
            yaml.safe_dump({"teachers": [{"kind": teacher, "weights": f"{tmp_path}/moved"}]})
        )
        code, (line,) = check(shards, "--relabel", 2)
        assert code == 2 and line.startswith(f"{shards}/label.yaml: {words}")
        assert line.endswith("; --teachers names another label config, where weights have moved")


def test_teachers_do_not_run_on_damaged_shards(shards, check):
    damage(shards / TAR, members(shards)[0]["members"]["flac"][0] + 50)
    code, lines = check(shards, "--relabel", 2)
    assert (
        code == 1
        and lines[-1] == "the shards are at fault, so neither teachers nor source files were compared with them"
    )
