"""A task of one's own: the guide's own example, tables and JSONL of any content, and every complaint with its line."""

import csv
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from probe_set_layouts import sounds

from mert_foundry.pipeline.probe_sets.own_task import COLUMNS, draw_split, read_own_task
from mert_foundry.pipeline.probe_sets.registry import load_tasks
from mert_foundry.pipeline.probe_sets.tables import read_json_lines, read_rows
from mert_foundry.pipeline.probe_sets.task import Beats, LabelledSet, ProbeClip, Segment
from mert_foundry.pipeline.storage.folder_kinds import FolderError

GUIDE = (Path(__file__).parent.parent / "pipeline/probe_sets/README.md").read_text()
TASK = {"name": "mine", "kind": "multiclass", "classes": ["a", "b"], "metrics": ["accuracy"], "clips": "clips.csv"}
LINES = ["path,label,split", "x.wav,a,train", "y.wav,b,valid", "z.wav,a,test"]


def write(folder: Path, lines: list[str] | list[dict], **changes: object) -> Path:
    """A task whose clips are lines of a CSV, or objects of a JSONL; returns `task.yaml`."""
    folder.mkdir(parents=True, exist_ok=True)
    task = TASK | changes
    if isinstance(lines[0], dict):
        task["clips"] = "clips.jsonl"
        lines = [json.dumps(line) for line in lines]
    (folder / str(task["clips"])).write_text("\n".join(lines) + "\n")
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    return folder / "task.yaml"


def read(path: Path, root: Path | None = None) -> LabelledSet:
    return read_own_task(path, root or path.parent)


def error(path: Path, kind: type[ValueError] = ValueError) -> str:
    """The one line that reading fails with."""
    with pytest.raises(kind) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """A folder with five sounds."""
    sounds(tmp_path, (f"{name}.wav" for name in "vwxyz"))
    return tmp_path


def blocks(language: str) -> list[str]:
    """Fenced blocks of the guide."""
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def test_the_example_of_the_guide(tmp_path: Path):
    folder = tmp_path / "my_moods"
    sounds(folder, (f"takes/{name}.wav" for name in ("one", "two", "three", "four")))
    [table], [task], [lines] = blocks("csv"), blocks("yaml"), blocks("jsonl")
    (folder / "clips.csv").write_text(table)
    (folder / "task.yaml").write_text(task)
    [alone], [named], [found] = (
        load_tasks(str(folder / "task.yaml"), []),
        load_tasks(str(tmp_path), ["my_moods"]),
        load_tasks(str(tmp_path), []),
    )
    assert alone.root == str(folder) and named == found and named.root == str(tmp_path)
    assert [clip.path for clip in named.clips] == [f"my_moods/{clip.path}" for clip in alone.clips]
    assert [(clip.label, clip.split, clip.group) for clip in alone.clips] == [
        ("calm", "train", "monday"), ("busy", "train", "monday"), ("calm", "valid", "tuesday"),
        ("busy", "test", "wednesday"),
    ]  # fmt: skip
    (folder / "clips.jsonl").write_text(lines)
    beats = {"name": "my_beats", "kind": "beats", "metrics": ["beat_f_70ms"], "clips": "clips.jsonl"}
    (folder / "task.yaml").write_text(yaml.safe_dump(beats))
    labels = [clip.label for clip in load_tasks(str(folder), ["my_beats"])[0].clips]
    assert labels == [Beats(times=(0.5, 1.0, 1.5), tempo=120), Beats(times=(0.25, 1.0)), Beats(times=())]


def test_the_python_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from probe_set_layouts import make_emomusic, make_gtzan

    for name, make in {"gtzan": make_gtzan, "emomusic": make_emomusic}.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        make(tmp_path / "data" / name)
    monkeypatch.chdir(tmp_path)
    [snippet] = blocks("python")
    exec(compile(snippet, "README.md", "exec"), {})
    assert all(column in GUIDE for column in COLUMNS)


def test_what_a_line_leaves_out(audio: Path):
    lines = ["path,label,start,end", *(f"{name}.wav,{'ab'[i % 2]},{i},{i + 1}" for i in range(4) for name in "vwxyz")]
    groups = [f"{line},group 0 {index}" for index, line in enumerate(lines[1:])]
    labelled = read(write(audio, [lines[0] + ",group", *groups]))
    first = labelled.clips[0]
    assert (first.track, first.start, first.end, first.condition) == ("v.wav 0.0 1.0", 0.0, 1.0, "")
    assert len({clip.track for clip in labelled.clips}) == 20
    assert all(clip.split == draw_split(clip.group) for clip in labelled.clips)


def test_a_split_by_hash_depends_on_the_group_alone():
    drawn = Counter(draw_split(f"piece {number}") for number in range(10_000))
    shares = [drawn[split] / 10_000 for split in ("train", "valid", "test")]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.015)  # three standard deviations
    assert [draw_split(name) for name in ("a", "b", "c", "piece 7")] == ["valid", "train", "train", "train"]  # for good


def test_order_of_lines_changes_no_clip(tmp_path: Path):
    names = [f"{number}.wav" for number in range(60)]
    sounds(tmp_path, names)
    lines = [f"{name},{'ab'[int(name[:-4]) % 2]}" for name in names]
    straight = read(write(tmp_path, ["path,label", *lines]))
    random.Random(1).shuffle(lines)
    shuffled = read(write(tmp_path, ["path,label", *lines]))
    assert set(straight.clips) == set(shuffled.clips) and straight.clips != shuffled.clips
    assert {clip.path: clip.split for clip in straight.clips} == {clip.path: clip.split for clip in shuffled.clips}


def test_other_kinds(audio: Path):
    multilabel = read(
        write(
            audio,
            ["path,label,split", "x.wav,a|b,train", "y.wav,,valid", "z.wav, b ,test"],
            kind="multilabel",
            metrics=["roc_auc"],
        )
    )
    assert [clip.label for clip in multilabel.clips] == [("a", "b"), (), ("b",)]
    regression = read(
        write(
            audio,
            ["path,label,split", "x.wav,0.5|-1,train", "y.wav,1|2e3,valid", "z.wav,0|0,test"],
            kind="regression",
            metrics=["r2"],
        )
    )
    assert [clip.label for clip in regression.clips] == [(0.5, -1.0), (1.0, 2000.0), (0.0, 0.0)]
    segments = [{"start": 0, "end": 1.5, "label": "a"}, {"start": 1.5, "end": 2, "label": "b"}]
    rows = [
        {"path": f"{name}.wav", "label": segments, "split": split}
        for name, split in zip("xyz", ("train", "valid", "test"))
    ]
    frames = read(write(audio, rows, kind="frame_classes", metrics=["frame_accuracy"]))
    assert frames.clips[0].label == (Segment(start=0, end=1.5, label="a"), Segment(start=1.5, end=2, label="b"))
    stems = [row | {"label": {"a": "v.wav", "b": "./w.wav"}} for row in rows]
    separation = read(write(audio, stems, kind="separation", metrics=["sdr"]))
    assert separation.clips[0].label == {"a": "v.wav", "b": "w.wav"}


def test_folds(audio: Path):
    lines = ["path,label,fold,group", *(f"{name}.wav,a,{index % 3},g{index % 3}" for index, name in enumerate("vwxyz"))]
    labelled = read(write(audio, lines, folds=3))
    assert [clip.fold for clip in labelled.clips] == [0, 1, 2, 0, 1] and {clip.split for clip in labelled.clips} == {
        None
    }
    assert "task mine has no clip in fold 3" in error(write(audio, lines, folds=4))
    lines[-1] = "z.wav,a,3,g3"
    assert "fold 3 of task mine, which has 3 folds" in error(write(audio, lines, folds=3))
    assert "task mine: 2 folds; at least 3 are needed" in error(write(audio, lines, folds=2))
    drawn = read(write(audio, ["path,label", *(f"{name}.wav,a" for name in "vwxyz")], folds=3))
    assert {clip.fold for clip in drawn.clips} == {0, 1, 2}


def test_conditions_are_of_test_clips(audio: Path):
    lines = [f"{line},{condition}" for line, condition in zip(LINES, ("condition", "", "", "other_font"))]
    assert read(write(audio, lines)).clips[2].condition == "other_font"
    lines[1] += "telephone"
    assert "line 2: condition telephone in train: only test clips have one" in error(write(audio, lines))


def test_paths_may_lead_to_a_neighbour_in_a_data_folder_only(tmp_path: Path):
    sounds(tmp_path, (f"audio/{name}.wav" for name in "xyz"))
    path = write(tmp_path / "task", [LINES[0], *(f"../audio/{line}" for line in LINES[1:])])
    assert [clip.path for clip in load_tasks(str(tmp_path), ["mine"])[0].clips] == [
        "audio/x.wav",
        "audio/y.wav",
        "audio/z.wav",
    ]
    assert "clips.csv line 2: " in error(path) and "leads out of its folder" in error(path)
    write(tmp_path / "task", [LINES[0], *(f"../../{line}" for line in LINES[1:])])
    with pytest.raises(ValueError, match="leads out of its folder"):
        load_tasks(str(tmp_path), ["mine"])


@pytest.mark.parametrize(
    "lines, complaint",
    [
        ([*LINES, "w.wav,c,train"], "line 5: label 'c' is none of the classes a, b"),
        ([*LINES, "w.wav,,train"], "line 5: label '' is none of the classes a, b"),
        ([*LINES, "x.wav,b,train"], "line 5: the same stretch of x.wav as {} line 2"),
        ([*LINES, "x.wav,a"], "line 5: 2 fields, the header has 3"),
        ([*LINES, '"x.wav,a,train'], "line 5: unexpected end of data"),
        ([*LINES, "w.wav,a,training"], "line 5: split: Input should be 'train', 'valid' or 'test'"),
        ([*LINES, "/etc/w.wav,a,train"], "line 5: the path '/etc/w.wav' is not relative with slashes"),
        ([*LINES, "a\\w.wav,a,train"], "line 5: the path 'a\\\\w.wav' is not relative with slashes"),
        ([*LINES, "../w.wav,a,train"], "line 5: the path '../w.wav' leads out of its folder"),
        ([*LINES, ",a,train"], "line 5: a clip needs path and label"),
        (LINES[:3], "line 2: task mine has no clip in test"),
        (LINES[:1], "clips.csv: lists no clips"),
        (["file,label", "x.wav,a"], "clips.csv: no column path among file, label"),
        (["path,label,label", "x.wav,a,a"], "clips.csv: two columns of the same name"),
        (["path,label,weight", "x.wav,a,1"], "line 2: field weight is none of path, label, split"),
        (["path,label,start", "x.wav,a,soon"], "line 2: could not convert string to float: 'soon'"),
        (["path,label,start", "x.wav,a,-1"], "line 2: start: Input should be greater than or equal to 0"),
        (["path,label,start,end", "x.wav,a,2,1"], "line 2: Value error, it starts at 2.0 s and ends at 1.0 s"),
        (["path,label,start", "x.wav,a,nan"], "line 2: start: Input should be"),
        (
            ["path,label,split,group", "x.wav,a,train,one", "y.wav,b,valid,two", "z.wav,a,test,one"],
            "line 4: group one is in test, but in train by {} line 2",
        ),
        (
            ["path,label,split,track", "x.wav,a,train,one", "y.wav,b,train,one", "z.wav,a,test,two"],
            "line 3: track one has the label 'b', but 'a' by {} line 2",
        ),
    ],
)
def test_a_wrong_line_is_named(audio: Path, lines: list[str], complaint: str):
    path = write(audio, lines)
    line = error(path)
    assert line.startswith(str(audio / "clips.csv")) and complaint.format(audio / "clips.csv") in line


@pytest.mark.parametrize(
    "row, complaint",
    [
        ({"path": "w.wav"}, "line 4: a clip needs path and label"),
        ({"path": 5, "label": "a"}, "line 4: a clip needs path and label"),
        ({"path": "w.wav", "label": 5}, "line 4: a label of multiclass is a class"),
        ({"path": "w.wav", "label": ["a"], "split": "train"}, "line 4: a label of multiclass is a class, not ('a',)"),
        ({"path": "w.wav", "label": "a", "split": 3}, "line 4: split: Input should be"),
        ({"path": "w.wav", "label": "a", "mood": 3}, "line 4: field mood is none of path, label"),
    ],
)
def test_a_wrong_object_is_named(audio: Path, row: dict, complaint: str):
    rows = [
        {"path": f"{name}.wav", "label": "a", "split": split} for name, split in zip("xyz", ("train", "valid", "test"))
    ]
    assert f"{audio / 'clips.jsonl'} {complaint}" in error(write(audio, [*rows, row]))


def test_a_line_that_is_no_json_is_named(audio: Path):
    path = write(audio, [{"path": "x.wav", "label": "a"}])
    (audio / "clips.jsonl").write_text('{"path": "x.wav", "label": "a", "split": "train"}\n\n{"path": \n')
    assert "line 3: no JSON (" in error(path)
    (audio / "clips.jsonl").write_text("[" * 100_000)
    assert "line 1: no JSON (" in error(path)


def test_audio_that_is_not_there_is_named(audio: Path):
    line = error(write(audio, [*LINES, "none/w.wav,a,train"]), FolderError)
    assert f"clips.csv line 5: 1 of 4 audio files are not there, the first is {audio / 'none/w.wav'}" in line


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"kind": "music"}, "task.yaml: kind: Input should be 'multiclass'"),
        ({"colour": "red"}, "task.yaml: colour: Extra inputs are not permitted"),
        ({"classes": []}, "multiclass needs classes"),
        ({"classes": [1, 2]}, "task.yaml: classes.0: Input should be a valid string"),
        ({"metrics": ["r2"]}, "multiclass has the metrics"),
        ({"name": "My task"}, "task.yaml: name: String should match pattern"),
        ({"clips": "../clips.csv"}, "clips: a .csv or .jsonl file beside it, not ../clips.csv"),
        ({"clips": "clips.xlsx"}, "clips: a .csv or .jsonl file beside it, not clips.xlsx"),
        ({"kind": "beats", "metrics": ["beat_f_70ms"]}, "labels of beats do not fit into a CSV"),
    ],
)
def test_a_wrong_task_file_is_named(audio: Path, change: dict, complaint: str):
    path = write(audio, LINES)
    path.write_text(yaml.safe_dump(TASK | change))
    line = error(path)
    assert line.startswith(str(path)) and complaint in line


@pytest.mark.parametrize("text", ["name: [", "- a\n- b", "", "name: !!python/object/apply:os.getcwd []"])
def test_a_task_file_that_is_no_mapping_is_named(audio: Path, text: str):
    path = write(audio, LINES)
    path.write_text(text)
    assert error(path).startswith(f"{path}: ")


def test_a_list_of_clips_that_is_not_there_is_named(audio: Path):
    path = write(audio, LINES)
    (audio / "clips.csv").unlink()
    assert f"{audio / 'clips.csv'} is not there" in error(path, FolderError)


# Any content

NAMES = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=12)


@settings(max_examples=30)
@given(rows=st.lists(st.tuples(NAMES, NAMES, st.floats(0, 1e6), st.floats(1e-3, 1e6)), min_size=1, max_size=8))
def test_a_csv_and_a_jsonl_of_the_same_clips_give_the_same(tmp_path_factory: pytest.TempPathFactory, rows: list):
    folder = tmp_path_factory.mktemp("clips")
    sounds(folder, ["a.wav"])
    names = sorted({label for label, *_ in rows})
    values = [
        {"path": "a.wav", "label": label, "fold": index % 3, "group": f"{index % 3}{group}", "start": start, "end": start + length}  # noqa: E501
        for index, (label, group, start, length) in enumerate([*rows, rows[0]])
    ]  # fmt: skip
    values = list({(row["start"], row["end"]): row for row in values}.values())
    if {row["fold"] for row in values} != {0, 1, 2}:
        return
    with open(folder / "clips.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(values[0]))
        writer.writeheader()
        writer.writerows(values)
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values))
    task = TASK | {"classes": names, "folds": 3}
    found = []
    for table in ("clips.csv", "clips.jsonl"):
        (folder / "task.yaml").write_text(yaml.safe_dump(task | {"clips": table}))
        found.append(read(folder / "task.yaml").clips)
    assert found[0] == found[1] and [clip.label for clip in found[0]] == [row["label"] for row in values]


@settings(max_examples=40)
@given(content=st.text(max_size=300))
def test_any_text_is_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, content: str):
    folder = tmp_path_factory.mktemp("any")
    for name in ("clips.csv", "clips.jsonl"):
        (folder / name).write_text(content, "utf-8", "surrogatepass", newline="")
        (folder / "task.yaml").write_text(yaml.safe_dump(TASK | {"clips": name}))
        with pytest.raises(ValueError) as caught:
            read(folder / "task.yaml")
        assert name in str(caught.value)


@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_table_or_an_error_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
):
    path = tmp_path_factory.mktemp("bytes") / "clips"
    path.write_bytes(content)
    for rows in (read_rows(path, ()), read_json_lines(path)):
        try:
            assert all(isinstance(row, dict) for _, row in rows)
        except ValueError as refusal:
            assert str(path) in str(refusal)


@given(
    rows=st.lists(
        st.lists(
            st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\r\0")), min_size=3, max_size=3
        )
    )
)
def test_a_table_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]):
    path = tmp_path_factory.mktemp("table") / "a.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["p", "q", "r"], *rows])
    assert [list(row.values()) for _, row in read_rows(path, ("p",))] == [[x.strip() for x in row] for row in rows]


def test_clips_of_the_suites_form_are_read_back(audio: Path):
    clips = [
        ProbeClip(
            path=f"{name}.wav", label=Beats(times=(0.1, 0.2), tempo=90.0), split=split, track=name, group=name, end=0.2
        )
        for name, split in zip("xyz", ("train", "valid", "test"))
    ]
    path = write(
        audio, [json.loads(clip.model_dump_json()) for clip in clips], kind="beats", classes=[], metrics=["beat_f_70ms"]
    )
    assert read(path).clips == tuple(clips)
