"""A folder of another kind is refused by name, before any work and as it was; a manifest's audio is
looked for first.
"""

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import yaml
from audio_files import noise, write_audio
from folders import contents, make_manifest
from shard_fixtures import write_set

from mert_foundry.pipeline.labelling.plan import SegmentConfig, plan_shards
from mert_foundry.pipeline.labelling.process_shard import process_shard
from mert_foundry.pipeline.labelling.resume import shard_names
from mert_foundry.pipeline.manifest.rows import load_manifest
from mert_foundry.pipeline.storage.folder_kinds import (
    FEATURES,
    KINDS,
    MANIFEST,
    RUN,
    SHARDS,
    FolderError,
    check_output,
    find_kind,
)
from mert_foundry.pipeline.teachers.cqt import CqtTeacherConfig
from mert_foundry.pipeline.teachers.registry import build_teachers

CQT = {"kind": "cqt", "lowest_frequency": 110.0, "bins": 12, "bins_per_octave": 12}
TEACHERS = f"teachers=[{yaml.safe_dump(CQT, default_flow_style=True, width=1000).strip()}]"
# Every command that writes a folder: its arguments, of which no input is there, and the kind that it writes.
WRITERS = {
    "manifest": (["root=nowhere", "out=OUT"], "manifest folder"),
    "label": (["manifest=nowhere", "out=OUT", TEACHERS, "overwrite=true"], "shard folder"),
    "pretrain": (["configs/tiny.yaml", "shards=nowhere", "out=OUT"], "run folder"),
    "export": (["nowhere", "OUT"], "model folder"),
    "import": (["nowhere", "OUT"], "model folder"),
    "codec": (["manifest=nowhere", "out=OUT"], "codec folder"),
    "fit": (["manifest=nowhere", "out=OUT", "teacher={kind: mel_rvq}"], "Mel-RVQ folder"),
    "extract": (["model=nowhere", "input=nowhere", "out=OUT", "overwrite=true"], "feature store"),
}
# Folders by the names in them, and what they are called.
FOLDERS = {
    "manifest": (["manifest.jsonl", "rejected.jsonl", "manifest.yaml"], "manifest folder (it has manifest.yaml)"),
    "unfinished manifest": (
        ["manifest.jsonl", "rejected.jsonl"],
        "manifest folder (it has manifest.jsonl and rejected.jsonl)",
    ),
    "index": (["index.json"], "shard folder (it has index.json)"),
    "run": (["config.yaml", "metrics.jsonl"], "run folder (it has metrics.jsonl)"),
    "begun run": (["config.yaml", "checkpoints/step_5/state.json"], "run folder (it has checkpoints)"),
    "checkpoint": (["model.safetensors", "config.yaml", "checksums.json"], "checkpoint (it has checksums.json)"),
    "store": (["zarr.json", "parts/000000.json"], "feature store (it has zarr.json)"),
    "model": (
        ["config.json", "model.safetensors", "README.md"],
        "model folder (it has config.json and model.safetensors)",
    ),
    "codec": (["codec.yaml", "codec.safetensors"], "codec folder (it has codec.yaml and codec.safetensors)"),
    "kmeans": (
        ["kmeans.yaml", "centroids.safetensors"],
        "k-means folder (it has kmeans.yaml and centroids.safetensors)",
    ),
    "mel_rvq": (
        ["mel_rvq.yaml", "mel_rvq.safetensors"],
        "Mel-RVQ folder (it has mel_rvq.yaml and mel_rvq.safetensors)",
    ),
    "encoder_codes": (
        ["encoder_codes.yaml", "encoder_codes.safetensors"],
        "encoder codes folder (it has encoder_codes.yaml and encoder_codes.safetensors)",
    ),
    "suite": (["suite.yaml", "pitch/task.yaml"], "suite folder (it has suite.yaml)"),
}
UNRELATED = ["README.md", ".lock", ".gitignore", "notes/config.json", "config.json", "data.tar"]


def make_folder(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("precious")
    return folder


@pytest.fixture
def command(run_here: Callable) -> Callable[..., tuple[int, list[str]]]:
    """Run a command in this process; gives its exit code and the lines of stderr."""

    def command(name: str, *arguments: object) -> tuple[int, list[str]]:
        code, _, err = run_here(importlib.import_module(f"mert_foundry.jobs.{name}"), *arguments)
        return code, err.splitlines()

    return command


@pytest.mark.parametrize("name", WRITERS)
def test_output_into_a_folder_of_another_kind_is_refused_and_leaves_it(name: str, tmp_path: Path, command):
    arguments, kind = WRITERS[name]
    for place, (names, words) in FOLDERS.items():
        if not words.startswith(kind):
            out = make_folder(tmp_path / place, names)
            before = contents(out)
            code, lines = command(name, *(argument.replace("OUT", str(out)) for argument in arguments))
            assert (code, lines) == (2, [f"out {out} is a {words}; a {kind} goes into another folder"])
            assert contents(out) == before


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("place", ["new", "empty", "unrelated", "own"])
def test_any_other_output_folder_is_not(name: str, place: str, tmp_path: Path, command):
    """The command gets as far as its input, which is not there, or as refusing what it would not write beside."""
    arguments, kind = WRITERS[name]
    own = next(names for names, words in FOLDERS.values() if words.startswith(kind))
    out = tmp_path / "out"
    if place != "new":
        out.mkdir()
        make_folder(out, {"empty": [], "unrelated": UNRELATED, "own": own}[place])
    before = contents(tmp_path)
    code, lines = command(name, *(argument.replace("OUT", str(out)) for argument in arguments))
    assert code == 1 and len(lines) == 1 and "goes into another folder" not in lines[0], lines
    assert contents(tmp_path) == before and out.exists() == (place != "new")


def test_shards_are_told_by_a_tar_of_ours_alone(tmp_path: Path, command):
    shards = tmp_path / "shards"
    write_set(shards, [2])
    (shards / "index.json").unlink()
    code, lines = command("manifest", "root=nowhere", f"out={shards}")
    assert code == 2 and lines[0].startswith(f"out {shards} is a shard folder (it has train-000000.tar); ")
    code, lines = command("pretrain", "configs/tiny.yaml", f"shards={shards}", f"out={tmp_path / 'run'}")
    assert (code, lines) == (1, [f"error: {shards}/index.json is not there, mert label writes it last"])
    code, lines = command("label", "manifest=nowhere", f"out={shards}", TEACHERS)
    assert code == 1 and "nowhere: there is no such folder" in lines[0]


def test_a_folder_of_several_kinds_goes_on_as_each(tmp_path: Path):
    """Nothing kept them apart before."""
    folder = make_folder(tmp_path, ["index.json", "manifest.yaml"])
    for kind in (SHARDS, MANIFEST):
        check_output(str(folder), kind)
        assert find_kind(str(folder), kind) == (kind, kind.marker)
    with pytest.raises(FolderError, match="is a shard folder"):
        check_output(str(folder), RUN)


def test_kinds_are_told_apart_on_an_object_store():
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/folder-kinds/f.zarr/zarr.json", b"{}")
    try:
        assert find_kind("memory://folder-kinds/f.zarr") == (FEATURES, "zarr.json")
        assert find_kind("memory://folder-kinds") is None and find_kind("memory://folder-kinds/none") is None
        with pytest.raises(FolderError, match="out memory://folder-kinds/f.zarr is a feature store"):
            check_output("memory://folder-kinds/f.zarr", SHARDS)
    finally:
        memory.rm("/folder-kinds", recursive=True)


RUN_CHECKPOINT_OR_MODEL = (
    "a run folder (made by mert pretrain) or a checkpoint (made by mert pretrain)"
    " or a model folder (made by mert export or mert import)"
)
# Command, arguments with the input as IN, what is wrongly given, what is needed.
READERS = [
    ("label", ["manifest=IN", "out=OUT", TEACHERS], "index", "a manifest folder (made by mert manifest)"),
    ("codec", ["manifest=IN", "out=OUT"], "run", "a manifest folder (made by mert manifest)"),
    ("fit", ["manifest=IN", "out=OUT", "teacher={kind: mel_rvq}"], "store", "a manifest folder (made by mert manifest)"),  # noqa: E501
    ("pretrain", ["configs/tiny.yaml", "shards=IN", "out=OUT"], "manifest", "a shard folder (made by mert label)"),
    ("pretrain", ["configs/tiny.yaml", "shards=SHARDS", "out=OUT", "initial=IN"], "manifest", RUN_CHECKPOINT_OR_MODEL),
    ("verify", ["IN"], "manifest", "a shard folder (made by mert label)"),
    ("verify", ["SHARDS", "--manifest", "IN"], "run", "a manifest folder (made by mert manifest)"),
    ("inspect", ["SHARDS", "--manifest", "IN"], "index", "a manifest folder (made by mert manifest)"),
    ("export", ["IN", "OUT"], "index", RUN_CHECKPOINT_OR_MODEL),
    ("import", ["IN", "OUT"], "begun run", "a model folder (made by mert export or mert import)"),
    ("extract", ["model=IN", "input=SHARDS", "out=OUT"], "index", RUN_CHECKPOINT_OR_MODEL),
    ("label", ["manifest=MANIFEST", "out=OUT", "teachers=[{kind: encodec, weights: IN}]"], "manifest", "a codec folder (made by mert codec)"),  # noqa: E501
    ("label", ["manifest=MANIFEST", "out=OUT", "teachers=[{kind: kmeans, weights: IN}]"], "codec", "a k-means folder"
    " (made by mert fit)"),
    ("label", ["manifest=MANIFEST", "out=OUT", "teachers=[{kind: mel_rvq, weights: IN}]"], "kmeans", "a Mel-RVQ"
    " folder (made by mert fit)"),
]  # fmt: skip


SETTINGS = {"group_by": "track", "splits": {}, "min_seconds": 1.0}  # of manifests


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds") / "shards"
    write_set(folder, [2], valid_sizes=[2])
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two tracks, its root absolute."""
    folder = tmp_path_factory.mktemp("kinds")
    for number in range(2):
        write_audio(folder / "audio" / f"{number}.wav", noise(4, seed=number))
    return make_manifest(folder / "audio", folder / "manifest", **SETTINGS)


@pytest.mark.parametrize(("name", "arguments", "place", "needed"), READERS)
def test_input_of_another_kind_is_refused_with_the_command_that_makes_the_right_one(
    name: str, arguments: list[str], place: str, needed: str, tmp_path: Path, shards: Path, manifest: Path, command
):
    names, words = FOLDERS[place]
    found = make_folder(tmp_path / "in", names)
    out = tmp_path / "out"
    places = {"IN": found, "OUT": out, "SHARDS": shards, "MANIFEST": manifest}
    for word, path in places.items():
        arguments = [argument.replace(word, str(path)) for argument in arguments]
    code, lines = command(name, *arguments)
    assert code == 2 and lines[-1] == f"{found} is a {words}; {needed} is needed"
    assert not out.exists()


@pytest.mark.parametrize("place", ["run", "store", "codec"])
def test_extract_names_what_it_takes(place: str, tmp_path: Path, model: Path, command):
    names, words = FOLDERS[place]
    found = make_folder(tmp_path / "in", names)
    code, lines = command("extract", f"model={model}", f"input={found}", f"out={tmp_path / 'f.zarr'}")
    needed = (
        "a shard folder (made by mert label) or a manifest folder (made by mert manifest) or a suite folder"
        " (made by mert suite) or a folder of audio"
    )
    assert (code, lines) == (2, [f"{found} is a {words}; {needed} is needed"]) and not (tmp_path / "f.zarr").exists()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hubert_sources import TINY, random_hubert, save_hubert

    folder = tmp_path_factory.mktemp("kinds") / "model"
    save_hubert(random_hubert(**TINY), folder, 24_000)
    return folder


def test_inspect_says_what_it_does_not_show(tmp_path: Path, say):
    for place in ("checkpoint", "model", "codec", "kmeans", "mel_rvq"):
        names, words = FOLDERS[place]
        code, _, err = say(make_folder(tmp_path / place, names))
        assert code == 2 and err.startswith(f"{tmp_path / place} is a {words}; mert inspect reads a shard folder")


def test_every_kind_is_told_by_its_own_files_only():
    markers = [set(names) for kind in KINDS for names in kind.markers]
    assert not any(one <= other for one in markers for other in markers if one is not other)


def audio_readers(manifest: Path, out: Path, model: Path) -> dict[str, list[str]]:
    """Every command that opens the audio of a manifest."""
    return {
        "label": [f"manifest={manifest}", f"out={out}", TEACHERS, "overwrite=true"],
        "codec": [f"manifest={manifest}", f"out={out}"],
        "fit": [f"manifest={manifest}", f"out={out}", "teacher={kind: kmeans}"],
        "extract": [f"model={model}", f"input={manifest}", f"out={out}", "address=local"],
    }


@pytest.mark.parametrize("name", ["label", "codec", "fit", "extract"])
def test_a_relative_root_used_from_elsewhere_is_named_with_the_folder_tried(
    name: str, tmp_path: Path, model: Path, command, say, monkeypatch
):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    write_audio(home / "audio" / "a.wav", noise(4))
    elsewhere.mkdir()
    monkeypatch.chdir(home)
    below, here = (
        make_manifest("audio", tmp_path / "below", **SETTINGS),
        make_manifest(".", tmp_path / "here", **SETTINGS),
    )
    monkeypatch.chdir(elsewhere)
    hint = "; run the command in the folder where the manifest was made, or make the manifest with an absolute root"
    for folder, root, fault in [
        (below, "audio", f"there is no folder {elsewhere}/audio"),
        (here, ".", f"the folder {elsewhere} has none of its 1 tracks"),
    ]:
        code, lines = command(name, *audio_readers(folder, tmp_path / "out", model)[name])
        assert code == 1 and lines == [
            f"error: manifest {folder} says its audio lies below the relative path {root}; {fault}{hint}"
        ]
        assert not (tmp_path / "out").exists()
        assert say(folder)[0] == 0  # which opens none of it


@pytest.mark.parametrize("name", ["label", "codec", "fit", "extract"])
def test_an_absolute_root_that_is_gone_is_named(name: str, tmp_path: Path, model: Path, command):
    root = tmp_path / "audio"
    write_audio(root / "a.wav", noise(4))
    manifest = make_manifest(root, tmp_path / "manifest", **SETTINGS)
    shutil.rmtree(root)
    code, lines = command(name, *audio_readers(manifest, tmp_path / "out", model)[name])
    assert (code, lines) == (
        1,
        [f"error: manifest {manifest} says its audio lies below {root}; there is no folder {root}"],
    )
    assert not (tmp_path / "out").exists()


def test_finished_shards_need_no_audio_and_unplanned_ones_stay_without(tmp_path: Path, command):
    root, out = tmp_path / "audio", tmp_path / "shards"
    for number in range(2):
        write_audio(root / f"{number}.wav", noise(4, seed=number))
    manifest = make_manifest(root, tmp_path / "manifest", **SETTINGS)
    segments = {"segment_seconds": 2.0, "shortest_seconds": 1.0, "examples_per_shard": 2}
    teachers = build_teachers([CqtTeacherConfig(**CQT)], "cpu")
    for task in plan_shards(load_manifest(str(manifest)), SegmentConfig(**segments)):
        process_shard(task, teachers, str(root), str(out), {})
    names = shard_names(str(out))
    assert len(names) == 2
    shutil.rmtree(root)
    arguments = [
        "label",
        f"manifest={manifest}",
        f"out={out}",
        TEACHERS,
        *(f"segments.{key}={value}" for key, value in segments.items()),
    ]
    assert command(*arguments) == (0, [])
    assert (out / "index.json").exists()
    # One shard is left of the new plan: the others go only when the first can be made.
    before = contents(out)
    code, lines = command(*arguments, "segments.examples_per_shard=4", "overwrite=true")
    assert code == 1 and lines == [
        f"error: manifest {manifest} says its audio lies below {root}; there is no folder {root}"
    ]
    assert contents(out) == before


def test_a_label_run_into_others_shards_writes_and_removes_nothing(manifest: Path, tmp_path: Path, command):
    out = make_folder(tmp_path / "out", ["train-000000.tar", "other-000007.tar", ".train-000001.tar.0.tmp"])
    before = contents(out)
    for more in ([], ["overwrite=true"]):
        code, lines = command("label", f"manifest={manifest}", f"out={out}", TEACHERS, *more)
        assert code == 2 and lines == [
            f"{out}/other-000007.tar was not written by mert label: it does not begin with the header of a tar"
            " (truncated header); move it away, or use another out folder"
        ]
        assert contents(out) == before


def test_a_label_yaml_beside_no_shard_is_left_alone(tmp_path: Path, command):
    write_audio(tmp_path / "music" / "a.wav", noise(4))
    make_manifest(tmp_path / "music", tmp_path / "manifest")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "label.yaml").write_text("mine")
    code, lines = command("label", f"manifest={tmp_path / 'manifest'}", f"out={tmp_path / 'configs'}", TEACHERS)
    assert code == 2 and len(lines) == 1 and "label.yaml is not ours" in lines[0]
    assert [path.name for path in (tmp_path / "configs").iterdir()] == ["label.yaml"]
    assert (tmp_path / "configs" / "label.yaml").read_text() == "mine"
