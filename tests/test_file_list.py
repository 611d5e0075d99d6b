"""A scan of the user's own list of files: these alone, in the groups and splits it gives, with its other columns."""

import json
import os
from pathlib import Path

import pytest
from audio_files import noise, write_audio

from mert_foundry.pipeline.manifest.examine import result_version
from mert_foundry.pipeline.manifest.rows import Track, load_manifest
from mert_foundry.pipeline.manifest.scan import scan, write_manifest
from mert_foundry.pipeline.manifest.scan_parts import ScanParts
from mert_foundry.pipeline.manifest.settings import ManifestConfig

CSV = 'path,artist,split,group,year\nb/2.wav,"Ann, Bob",valid,live,1999\na/1.wav,Cy,train,,\ngone.wav,,,,\n'
ROWS = [
    {"path": "b/2.wav", "split": "valid", "group": "live", "artist": "Ann, Bob", "year": "1999"},
    {"path": "a/1.wav", "split": "train", "artist": "Cy", "year": ""},
    {"path": "gone.wav", "artist": "", "year": ""},
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, name in enumerate(["a/1.wav", "b/2.wav", "b/3.wav"]):
        write_audio(tmp_path / "root" / name, noise(0.1, seed=number))
    return tmp_path / "root"


def config(root: Path, text: str, name: str = "list.csv", **options: object) -> ManifestConfig:
    (root.parent / name).write_text(text)
    location = str(root.parent / name)
    return ManifestConfig(root=str(root), out=str(root.parent / "out"), files=location, min_seconds=0, **options)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_groups_splits_and_other_columns_are_carried_through(root: Path, kind: str):
    text = CSV if kind == "csv" else "".join(json.dumps(row) + "\n" for row in ROWS)
    settings = config(root, text, f"list.{kind}")
    write_manifest(settings, scan(settings))
    tracks = {track.path: track for track in load_manifest(settings.out).tracks}
    found = {path: (track.group, track.split, track.extra) for path, track in tracks.items()}
    assert found == {
        "a/1.wav": ("a", "train", {"artist": "Cy", "year": ""}),
        "b/2.wav": ("live", "valid", {"artist": "Ann, Bob", "year": "1999"}),
    }
    (reject,) = (json.loads(line) for line in (Path(settings.out) / "rejected.jsonl").read_text().splitlines())
    assert (reject["path"], reject["reason"]) == ("gone.wav", "unreadable")


def test_another_list_decodes_only_what_is_new(root: Path):
    settings, decoded = config(root, "path\na/1.wav\n"), []

    def counting(examine, paths, workers):
        for path in paths:
            decoded.append(path)
            yield examine(path)

    for path in root.rglob("*.wav"):
        os.utime(path, (1e9, 1e9))
    scan(settings, examine_all=counting, parts=ScanParts(settings.out, result_version(settings)))
    again = config(root, "path,mood\na/1.wav,calm\nb/3.wav,\n")
    results = scan(again, examine_all=counting, parts=ScanParts(again.out, result_version(again)))
    assert decoded == ["a/1.wav", "b/3.wav"] and results == scan(again)
    assert [result.extra for result in results if isinstance(result, Track)] == [{"mood": "calm"}, {"mood": ""}]
    without = config(root, "path\na/1.wav\n")
    (track,) = scan(without)
    assert isinstance(track, Track) and track.extra is None
    write_manifest(without, [track])
    assert b"extra" not in (Path(without.out) / "manifest.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("list.csv", "name\na/1.wav\n", "no column path"),
        ("list.csv", "path\na/1.wav\na/1.wav\n", "line 3: a/1.wav stands twice"),
        ("list.csv", "path\n../out.wav\n", "line 2: path '../out.wav' is no path below the root"),
        ("list.csv", "path\n/etc/passwd\n", "no path below"),
        ("list.csv", "path\na/../b/2.wav\n", "no path below"),
        ("list.csv", "path,split\na/1.wav,test\n", r"split 'test' is not among train, valid; splits=\{test: 0\}"),
        (
            "list.csv",
            "path,split\nb/2.wav,train\nb/3.wav,valid\n",
            "group 'b' is in split valid here, and in train before",
        ),
        ("list.jsonl", '{"path": 3}\n', "line 1: path is 3, a text is needed"),
        ("list.jsonl", "[]\n", "line 1: no JSON object"),
        ("list.txt", "a/1.wav\n", "ends in .csv or .jsonl"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(root: Path, name: str, text: str, words: str):
    with pytest.raises(ValueError, match=words):
        scan(config(root, text, name))
