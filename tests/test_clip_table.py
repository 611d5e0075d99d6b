"""Tables of clips: what is read of CSV and JSON lines, and what is refused with its line."""

import csv
import io
import json
import math
from pathlib import Path

import pytest
from audio_files import noise, write_audio
from hypothesis import given
from hypothesis import strategies as st

from mert_foundry.pipeline.features.table import clip_columns, list_clips, read_table
from mert_foundry.pipeline.storage import files


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name in ("a.wav", "sub/b.wav"):
        write_audio(folder / name, noise(0.1, seed=1))
    return folder


def write(root: Path, content: str, name: str = "clips.csv") -> str:
    (root / name).write_text(content)
    return str(root / name)


def test_paths_are_relative_to_the_table_or_to_a_root(root, tmp_path):
    table = read_table(write(root, "path,label\na.wav,x\nsub/b.wav,y\n"))
    assert table.root == str(root) and [clip.path for clip in table.clips] == ["a.wav", "sub/b.wav"]
    assert table.clips[0].bytes == (root / "a.wav").stat().st_size
    elsewhere = read_table(write(tmp_path, "path\nb.wav\n"), str(root / "sub"))
    assert elsewhere.clips[0].bytes == (root / "sub" / "b.wav").stat().st_size


def test_rows_keep_their_order_and_have_keys_of_their_own(root):
    content = "start,path,end,split\n0.5,a.wav,1.5,train\n,a.wav,,test\n0.5,a.wav,1.5,\n0,sub/b.wav,,\n"
    tracks = list_clips(read_table(write(root, content)))
    assert [track.place.path for track in tracks] == ["a.wav", "a.wav", "a.wav", "sub/b.wav"]
    assert len({track.key for track in tracks}) == 4
    assert tracks[2].key == tracks[0].key + "-2" and "-0000500-0001500" in tracks[0].key
    assert [track.num_samples for track in tracks] == [24_000, None, 24_000, None]
    assert [track.split for track in tracks] == ["train", "test", "", ""]
    # A key is a matter of its own row: another row before it changes nothing.
    alone = list_clips(read_table(write(root, "path,start,end\na.wav,0.5,1.5\n")))
    assert alone[0].key == tracks[0].key


def test_columns_of_json_keep_their_kind_and_those_of_csv_stay_text(root):
    lines = [
        {
            "path": "a.wav",
            "large": 2**70,
            "class": 3,
            "tempo": 120,
            "loud": True,
            "tags": ["x"],
            "id": "007",
            "note": None,
        },
        {"path": "sub/b.wav", "large": 1, "class": 5, "tempo": 99.5, "loud": False, "tags": [], "id": "08"},
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines)
    columns = clip_columns(read_table(write(root, content, "clips.jsonl")))
    assert columns["class"] == [3, 5] and columns["tempo"] == [120.0, 99.5] and columns["loud"] == [True, False]
    assert columns["large"] == [2.0**70, 1.0]
    assert columns["tags"] == ['["x"]', "[]"] and columns["id"] == ["007", "08"] and columns["note"] == ["", ""]
    assert columns["path"] == ["a.wav", "sub/b.wav"] and columns["start"] == [0.0, 0.0]
    assert all(map(math.isnan, columns["end"]))
    assert clip_columns(read_table(write(root, "path,id\na.wav,007\n")))["id"] == ["007"]


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\ufeff"), max_size=12)
NAME = st.text("abcdefghijklmnopqrstuvwxyz ", min_size=1, max_size=8).map(lambda name: f"my {name}")


@given(st.lists(NAME, unique=True, max_size=4), st.data())
def test_any_csv_comes_back_as_it_was_written(names, data):
    rows = data.draw(st.lists(st.lists(TEXT, min_size=len(names), max_size=len(names)), min_size=1, max_size=5))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["path", *names])
    writer.writerows(["a.wav", *row] for row in rows)
    files.publish_bytes("memory://any/a.wav", b"audio")
    files.publish_bytes("memory://any/clips.csv", text.getvalue().encode())
    table = read_table("memory://any/clips.csv")
    assert table.columns == {name: [row[place] for row in rows] for place, name in enumerate(names)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["no row"]),
        ("path\n", ["no row"]),
        ("file,label\na.wav,x\n", ["no column path", "file, label"]),
        ("path,label,label\na.wav,x,y\n", ["two columns of the same name 'label'"]),
        ("path,label\na.wav\n", ["line 2", "1 fields, the header has 2"]),
        ("path,mean\na.wav,x\n", ["column 'mean'"]),
        ("path,key\na.wav,x\n", ["column 'key'"]),
        ("path,parts\na.wav,x\n", ["column 'parts'"]),
        ("path,../../label\na.wav,x\n", ["cannot be called '../../label'"]),
        ("path,a/b\na.wav,x\n", ["cannot be called 'a/b'"]),
        ("path,..\na.wav,x\n", ["cannot be called '..'"]),
        ("path,\na.wav,x\n", ["cannot be called ''"]),
        ("path\n../a.wav\n", ["line 2", "'../a.wav' leads out"]),
        ("path\n/etc/passwd\n", ["line 2", "'/etc/passwd' leads out"]),
        ("path\ns3://bucket/a.wav\n", ["leads out"]),
        ("path,start\na.wav,early\n", ["line 2: start is 'early'"]),
        ("path,start\na.wav,-1\n", ["start is '-1'"]),
        ("path,end\na.wav,nan\n", ["end is 'nan'"]),
        ("path,end\na.wav,inf\n", ["end is 'inf'"]),
        ("path,start,end\na.wav,2,1\n", ["line 2: end 1.0 is not after start 2.0"]),
        ("path,end\na.wav,0\n", ["end 0.0 is not after start 0.0"]),
        ('path,label\n"a.wav,x\n', ["line"]),
    ],
)
def test_what_is_wrong_is_told_with_its_line(root, content, words):
    location = write(root, content, "wrong.csv")
    with pytest.raises(ValueError) as caught:
        read_table(location)
    assert location in str(caught.value) and all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("line", ["[1]", "{", '{"path": 3}', '{"path": ""}', '{"path": "a.wav", "start": true}'])
def test_wrong_lines_of_json_are_told_too(root, line):
    location = write(root, '{"path": "a.wav"}\n' + line + "\n", "wrong.jsonl")
    with pytest.raises(ValueError, match="line 2"):
        read_table(location)


def test_a_table_whose_files_are_all_elsewhere_is_refused(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"none of the 1 files of the table is below {tmp_path}, as a.wav"):
        read_table(write(root, "path\na.wav\n"), str(tmp_path))
