"""`mert probe` from labelled audio to its report: what it finds, what it keeps, what it leaves alone."""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import yaml
from audio_files import noise, tone, write_audio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pretrain_run import CONFIG as RUN_CONFIG
from pretrain_run import pretrain_here
from shard_fixtures import write_set

from mert_foundry.jobs import inspect, probe
from mert_foundry.jobs.command.config import UsageError
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.probing.models import list_models
from mert_foundry.jobs.probing.settings import ProbeConfig
from mert_foundry.jobs.probing.stored_result import load_result, save_result
from mert_foundry.jobs.probing.validation_basis import on_validation
from mert_foundry.model.probing.protocol import ProbeProtocol
from mert_foundry.model.probing.result import CHOSEN, Choice, Predictions, ProbeResult, Score
from mert_foundry.pipeline.probe_sets.task import LabelledSet, ProbeClip, ProbeTask

QUICK = ["protocol.rates=[0.01]", "protocol.seeds=2", "protocol.epochs=15", "protocol.draws=50", "protocol.hidden=null"]
PITCHES = {"low": 220.0, "middle": 523.0, "high": 1319.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks: pitch, which a spectrum hears, and a coin that was tossed for every clip."""
    root = tmp_path_factory.mktemp("data")
    numbers = np.random.default_rng(0)
    lines: dict[str, list[dict]] = {"pitch": [], "coin": []}
    for number in range(36):
        label = list(PITCHES)[number % 3]
        path = f"audio/{number:02d}.wav"
        write_audio(root / "pitch" / path, 0.3 * tone(PITCHES[label], 0.5) + noise(0.5, seed=number) / 30)
        write_audio(root / "coin" / path, 0.3 * tone(PITCHES[label], 0.5) + noise(0.5, seed=number) / 30)
        split = ("train", "train", "valid", "test")[number // 3 % 4]
        common = {"path": path, "split": split, "track": path, "group": path}
        lines["pitch"].append({**common, "label": label})
        lines["coin"].append({**common, "label": str(numbers.integers(2))})
    for name, classes in {"pitch": list(PITCHES), "coin": ["0", "1"]}.items():
        task = {"name": name, "kind": "multiclass", "classes": classes, "metrics": ["accuracy", "macro_accuracy"]}
        (root / name / "task.yaml").write_text(yaml.safe_dump({**task, "clips": "clips.jsonl"}))
        (root / name / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[name]))
    return root


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of mert pretrain, whose encoder takes no time."""
    path = tmp_path_factory.mktemp("shape") / "shape.yaml"
    path.write_text(yaml.safe_dump({"encoder": RUN_CONFIG["encoder"]}))
    return path


def probe_here(data: Path, out: Path, *more: str) -> int:
    arguments = [
        f"data={data}",
        f"out={out}",
        *QUICK,
        *([] if any("baselines" in key for key in more) else ["baselines=[log_mel]"]),
    ]
    return run(probe.main, [*arguments, *more], probe.__doc__, probe.CONFIG)


def read_report(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


def row_of(report: dict, task: str, model: str, metric: str = "accuracy") -> dict:
    return next(row for row in report["rows"] if (row["task"], row["model"], row["metric"]) == (task, model, metric))


@pytest.fixture(scope="module")
def probed(data: Path, shape: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("probe") / "out"
    assert probe_here(data, out, f"model={{untrained: 'random:{shape}@0'}}") == 0
    return out


def test_a_spectrum_hears_pitch_and_nothing_hears_a_coin(probed: Path):
    report = read_report(probed)
    pitch = row_of(report, "pitch", "log_mel")
    assert pitch["value"] > 0.95 and pitch["low"] > pitch["chance"] == pytest.approx(1 / 3)
    coin = row_of(report, "coin", "log_mel")
    assert coin["chance"] == 0.5 and coin["low"] < 0.5 < coin["high"]


def test_the_report_has_what_is_needed_to_read_and_to_repeat_it(probed: Path):
    report = read_report(probed)
    assert [model["name"] for model in report["models"]] == ["untrained", "log_mel"]
    assert all(len(model["fingerprint"]) == 64 for model in report["models"])
    assert {(row["task"], row["model"], row["metric"]) for row in report["rows"]} == {
        (task, model, metric)
        for task in ("pitch", "coin")
        for model in ("untrained", "log_mel")
        for metric in ("accuracy", "macro_accuracy")
    }
    assert {row["layer"] for row in report["layers"] if row["model"] == "untrained"} == {"0", "1", "2", "weighted_sum"}
    assert row_of(report, "pitch", "untrained")["layer"] in {"0", "1", "2", "weighted_sum"}
    assert [task["clips"] for task in report["tasks"]] == 2 * [{"train": 18, "valid": 9, "test": 9}]
    assert report["protocol"]["rates"] == [0.01] and report["compared_with"] == "log_mel"
    for row in report["differences"]:
        scores = [row_of(report, row["task"], model)["value"] for model in ("untrained", "log_mel")]
        assert row["value"] == pytest.approx(scores[0] - scores[1]) and row["low"] <= row["value"] <= row["high"]


def test_a_rerun_computes_nothing_and_another_model_joins(
    data: Path, shape: Path, probed: Path, tmp_path: Path, capsys
):
    out = tmp_path / "out"
    shutil.copytree(probed, out)
    for file in (data / "pitch" / "audio").iterdir():
        assert file.stat().st_mtime < (probed / "report.json").stat().st_mtime
    before = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    assert probe_here(data, out, f"model={{untrained: 'random:{shape}@0'}}", "baselines=[log_mel, mfcc]") == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    report, first = read_report(out), read_report(probed)
    assert [model["name"] for model in report["models"]] == ["untrained", "log_mel", "mfcc"]
    assert [row for row in report["rows"] if row["model"] != "mfcc"] == first["rows"]
    assert probe_here(data, out, f"model={{untrained: 'random:{shape}@0'}}", "protocol.epochs=16") == 0
    assert all(path.stat().st_mtime_ns > before[path] for path in before)


def test_audio_that_was_replaced_is_computed_again(data: Path, tmp_path: Path):
    shutil.copytree(data / "pitch", tmp_path / "pitch")
    assert probe_here(tmp_path, tmp_path / "out") == 0
    for number, file in enumerate(sorted((tmp_path / "pitch" / "audio").iterdir())):
        size = file.stat().st_size
        write_audio(file, noise(0.5, seed=number) / 3)
        assert file.stat().st_size == size
    assert probe_here(tmp_path, tmp_path / "out") == 0
    row = row_of(read_report(tmp_path / "out"), "pitch", "log_mel")
    assert row["low"] < 1 / 3 < row["high"] and row["value"] < 0.8


def rewritten(data: Path, folder: Path, task: dict, clips: Callable[[dict], dict]) -> Path:
    """A copy of the pitch task with another task.yaml and other lines."""
    shutil.copytree(data / "pitch", folder / "pitch")
    written = yaml.safe_load((data / "pitch" / "task.yaml").read_text()) | task
    (folder / "pitch" / "task.yaml").write_text(yaml.safe_dump(written))
    lines = [clips(json.loads(line)) for line in (data / "pitch" / "clips.jsonl").read_text().splitlines()]
    (folder / "pitch" / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_condition_has_a_row_of_its_own_and_cannot_replace_the_plain_one(data: Path, tmp_path: Path):
    def halved(line: dict) -> dict:
        plain = line["split"] != "test" or line["path"] < "audio/2"
        return line | {"condition": "" if plain else "plain"}

    changed = rewritten(data, tmp_path / "data", {}, halved)
    for _ in range(2):  # computed, then read back
        assert probe_here(changed, tmp_path / "out") == 0
        rows = [row for row in read_report(tmp_path / "out")["rows"] if row["metric"] == "accuracy"]
        assert [(row["condition"], row["tracks"]) for row in rows] == [("", 3), ("plain", 6)]


@pytest.mark.parametrize(
    ("task", "clips", "said"),
    [
        (
            {},
            lambda line: line | {"condition": "far" if line["split"] == "test" else ""},
            "task pitch: every test clip has a condition; plain ones are needed too",
        ),
        (
            {"kind": "regression", "classes": ["hertz"], "metrics": ["r2"]},
            lambda line: line | {"label": [1.0 if line["split"] == "valid" else float(line["path"][-5])]},
            "task pitch: r2 is undefined on the validation clips",
        ),
        ({}, lambda line: line | {"condition": "../../evil"}, "condition"),
        ({"classes": ["low", "middle", "high", "low"]}, lambda line: line, "one of classes stands twice"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(data: Path, tmp_path: Path, capsys, task, clips, said: str):
    assert probe_here(rewritten(data, tmp_path / "data", task, clips), tmp_path / "out") in (1, 2)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize("score", ["test", "valid"])
def test_a_clip_that_starts_behind_the_end_of_its_file_is_named_before_any_work(
    data: Path, tmp_path: Path, capsys, score: str
):
    late = rewritten(data, tmp_path / "data", {}, lambda line: line | {"start": 9.5 * (line["path"] == "audio/06.wav")})
    assert probe_here(late, tmp_path / "out", f"score={score}") == 1
    said = capsys.readouterr().err
    assert said == ("error: task pitch, row 7: the clip starts at 9.5 s, pitch/audio/06.wav ends at 0.500 s\n")
    assert not (tmp_path / "out" / "features").exists()


def test_an_end_that_no_file_has_makes_no_clips(data: Path, tmp_path: Path):
    far = rewritten(data, tmp_path / "data", {"clip_seconds": 0.25}, lambda line: line | {"end": 1e9})
    assert probe_here(far, tmp_path / "out") == 0
    assert read_report(tmp_path / "out")["tasks"][0]["clips"] == {"train": 36, "valid": 18, "test": 18}


def test_a_model_whose_frames_do_not_fit_a_task_is_named_and_the_others_are_scored(data: Path, tmp_path: Path, capsys):
    """Source separation needs 75 frames a second; patches of log-mel have 25."""
    encoder = RUN_CONFIG["encoder"] | {"frontend": {"kind": "log_mel", "window": 960}}
    (tmp_path / "slow.yaml").write_text(yaml.safe_dump({"encoder": encoder}))
    both = tmp_path / "data"
    shutil.copytree(data / "pitch", both / "pitch")
    lines = []
    for number, split in enumerate(["train", "train", "valid", "test"]):
        stems = {"high": 0.2 * tone(1000, 0.8), "low": 0.2 * tone(100 + number, 0.8)}
        for name, audio in {**stems, "mix": sum(stems.values())}.items():
            write_audio(both / "stems" / f"{number}-{name}.wav", audio)
        label = {name: f"{number}-{name}.wav" for name in stems}
        lines.append({"path": f"{number}-mix.wav", "label": label, "split": split, "end": 0.8})
    task = {"name": "stems", "kind": "separation", "classes": ["high", "low"], "metrics": ["sdr"], "clips": "c.jsonl"}
    (both / "stems" / "task.yaml").write_text(yaml.safe_dump(task))
    (both / "stems" / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    quick = [
        f"separation.{key}" for key in ("hidden=4", "layers=1", "batch_size=2", "crop_frames=8", "crops_per_row=2")
    ]
    slow = f"model={{slow: 'random:{tmp_path / 'slow.yaml'}@0'}}"
    assert probe_here(both, tmp_path / "out", slow, *quick, "protocol.epochs=1", "protocol.seeds=1") == 1
    said = capsys.readouterr()
    reason = "features at 25.0 Hz, not the 75 Hz of the spectrogram"
    assert f"stems: slow was not scored: {reason}" in said.out
    assert "not scored: slow on stems; the report says why" in said.err
    report = read_report(tmp_path / "out")
    assert report["unscored"] == [{"task": "stems", "model": "slow", "reason": reason}]
    assert {(row["task"], row["model"]) for row in report["rows"]} == {
        ("pitch", "slow"), ("pitch", "log_mel"), ("stems", "log_mel"),
    }  # fmt: skip
    assert all(model["fingerprint"] for model in report["models"])


def test_inspect_shows_a_probe_as_its_report_does(probed: Path, tmp_path: Path, capsys):
    def inspected(*arguments: object) -> str:
        capsys.readouterr()
        assert run(inspect.main, [str(argument) for argument in arguments], inspect.__doc__) == 0
        return capsys.readouterr().out

    shown = inspected(probed)
    assert shown.startswith(f"probe {probed}\n")
    assert re.search(r"task +metric +chance +constant +untrained +log_mel", shown)
    assert json.loads(inspected("probe", probed, "--json")) == read_report(probed)
    inspected(probed, "--html", tmp_path / "page.html")
    page, own = ((folder).read_text() for folder in (tmp_path / "page.html", probed / "report.html"))
    assert "pitch" in page and len(page) == pytest.approx(len(own), rel=0.01)
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "report.json").write_text('{"kind": "probe"}')
    assert run(inspect.main, [str(tmp_path / "probe")], inspect.__doc__) == 1
    assert "report.json: version: Field required" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_left_out_for_every_model_and_named(
    data: Path, shape: Path, tmp_path: Path, capsys
):
    shutil.copytree(data / "pitch", tmp_path / "pitch")
    broken = tmp_path / "pitch" / "audio" / "09.wav"  # a test clip
    broken.write_bytes(b"no audio")
    assert probe_here(tmp_path, tmp_path / "out", f"model=random:{shape}@0") == 0
    report = read_report(tmp_path / "out")
    assert set(report["tasks"][0]["unusable"]) == {"pitch/audio/09.wav"}
    assert report["tasks"][0]["clips"]["test"] == 8
    assert {row["tracks"] for row in report["rows"]} == {8}
    assert "1 file was skipped: no features could be extracted" in capsys.readouterr().out


def test_scored_on_validation_the_test_clips_are_not_opened(data: Path, tmp_path: Path):
    shutil.copytree(data / "pitch", tmp_path / "pitch")
    for line in map(json.loads, (data / "pitch" / "clips.jsonl").read_text().splitlines()):
        if line["split"] == "test":
            (tmp_path / "pitch" / line["path"]).write_bytes(b"no audio")
    assert probe_here(tmp_path, tmp_path / "out", "score=valid") == 0
    report = read_report(tmp_path / "out")
    assert report["tasks"][0]["clips"] == {"train": 15, "valid": 3, "test": 9} and report["tasks"][0]["unusable"] == {}


@given(
    splits=st.lists(
        st.tuples(st.sampled_from("abcdefghijkl"), st.sampled_from(["train", "valid", "test"])), min_size=1, max_size=40
    ),
    order=st.randoms(use_true_random=False),
)
def test_the_validation_basis_has_no_test_clip_and_keeps_groups_whole(splits: list[tuple[str, str]], order):
    split_of = dict(splits)
    clips = [clip(str(number), split_of[group], group) for number, (group, _) in enumerate(splits)]
    moved = on_validation(labelled(clips)).clips
    assert {each.path for each in moved} == {each.path for each in clips if each.split != "test"}
    assert {each.path for each in moved if each.split == "test"} == {
        each.path for each in clips if each.split == "valid"
    }
    assert all(
        len({each.split for each in moved if each.group == group}) == 1 for group in {each.group for each in moved}
    )
    order.shuffle(clips)
    assert set(on_validation(labelled(clips)).clips) == set(moved)


def test_folds_have_no_validation_basis(tmp_path: Path):
    task = ProbeTask(name="kits", kind="multiclass", classes=("a",), metrics=("accuracy",), folds=3)
    with pytest.raises(ValueError, match="kits has 3 folds"):
        on_validation(LabelledSet(task=task, root=str(tmp_path), clips=(clip("a", None, "a", fold=0),)))


def test_a_result_is_read_back_as_it_was_saved(tmp_path: Path):
    task = labelled([]).task
    score = Score(CHOSEN, "", "accuracy", "", 0.5, float("nan"), float("nan"), 0.5, 0.5, (0.25, 0.75), 2, 2, 0)
    predictions = Predictions(
        np.arange(8.0).reshape(2, 2, 2), np.array([0, 1]), np.array([0, 1]), ("x", "y"), ("g", "h")
    )
    result = ProbeResult(task, ProbeProtocol(), ("0",), (), (score,), {(CHOSEN, ""): predictions})
    save_result(tmp_path / "result", result, "one")
    assert load_result(tmp_path / "result", "another") is None and load_result(tmp_path / "nothing", "one") is None
    found = load_result(tmp_path / "result", "one")
    assert (found.task, found.protocol, found.chosen) == (task, ProbeProtocol(), ("0",))
    assert np.isnan(found.scores[0].low) and found.scores[0].seeds == (0.25, 0.75)
    np.testing.assert_array_equal(found.predictions[CHOSEN, ""].outputs, predictions.outputs)
    assert found.predictions[CHOSEN, ""].groups == ("g", "h")


@settings(max_examples=30)
@given(numbers=st.lists(st.floats(), min_size=4, max_size=4))
@example(numbers=[-math.inf, math.inf, math.nan, -0.0])
def test_scores_and_choices_keep_every_number(tmp_path_factory: pytest.TempPathFactory, numbers: list[float]):
    first, second, third, fourth = numbers
    score = Score(CHOSEN, "", "accuracy", "", first, second, third, fourth, first, tuple(numbers), 2, 2, 0)
    choice = Choice("0", 0, first, second, tuple(numbers), (tuple(numbers), (third,)))
    folder = tmp_path_factory.mktemp("numbers") / "result"
    save_result(folder, ProbeResult(labelled([]).task, ProbeProtocol(), ("0",), (choice,), (score,), {}), "one")
    found = load_result(folder, "one")
    assert repr((found.choices, found.scores)) == repr(((choice,), (score,)))  # NaN equals only its text


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["compare_with=nobody"], "compare_with nobody: the models are log_mel"),
        (["baselines=[]"], "nothing to probe"),
        (["tasks=[tempo]"], "no task tempo; there is coin, pitch"),
        (["model={log_mel: elsewhere}"], "two models have the name log_mel"),
        (["precision=tf32"], "precision tf32 needs a GPU"),
        (["protocol.rates=[-1.0]"], "protocol.rates: a learning rate is above 0"),
        (["protocol.rates=[.inf]"], "protocol.rates: a learning rate is above 0"),
        (["--follow=nowhere", "score=valid", "baselines=[]"], "--follow nowhere: no run folder"),
        (["--follow"], "--follow needs a value"),
    ],
)
def test_what_is_asked_wrongly_is_one_line_and_exit_code_2(
    data: Path, tmp_path: Path, capsys, more: list[str], said: str
):
    assert probe_here(data, tmp_path / "out", *more) == 2
    errors = capsys.readouterr().err
    assert said in errors and errors.count("\n") == 1


def test_a_model_that_is_not_there_is_said_before_any_work(data: Path, tmp_path: Path, capsys):
    assert probe_here(data, tmp_path / "out", "model=[mfcc, nowhere]") == 1
    assert "model nowhere: no folder of that name" in capsys.readouterr().err
    assert not (tmp_path / "out" / "features").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps with checkpoints at 5 and 10."""
    folder = tmp_path_factory.mktemp("trained")
    write_set(folder / "shards", [4], valid_sizes=[2])
    assert pretrain_here(folder / "shards", folder / "run", "trainer.schedule.total_steps=10") == 0
    return folder / "run"


def test_every_checkpoint_of_a_run_is_probed(data: Path, trained: Path, tmp_path: Path):
    more = [f"model={{mine: {trained}}}", "every_checkpoint=true", "tasks=[pitch]"]
    assert probe_here(data, tmp_path / "out", *more) == 0
    report = read_report(tmp_path / "out")
    assert [(model["name"], model["step"]) for model in report["models"]] == [
        ("mine step 5", 5),
        ("mine step 10", 10),
        ("log_mel", None),
    ]
    assert "Over checkpoints" in (tmp_path / "out" / "report.html").read_text()


def test_an_incomplete_checkpoint_is_skipped_and_named(trained: Path, tmp_path: Path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    config = ProbeConfig(model={"mine": str(copy)}, every_checkpoint=True, baselines=[], data="d", out="o")
    assert [model.step for model in list_models(config)] == [5, 10]
    (copy / "checkpoints" / "step_10" / "config.yaml").unlink()
    assert [model.step for model in list_models(config)] == [5]
    assert "step_10: config.yaml is missing" in capsys.readouterr().err
    shutil.rmtree(copy / "checkpoints" / "step_5")
    with pytest.raises(UsageError, match="no whole checkpoint to probe"):
        list_models(config)


def test_a_run_is_followed_to_its_last_step(data: Path, trained: Path, tmp_path: Path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    settings = ["--follow", str(copy), "score=valid", "baselines=[]", "tasks=[pitch]"]
    assert probe_here(data, tmp_path / "out", *settings) == 0
    lines = [json.loads(line) for line in (copy / "probe.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10]
    best = max(lines, key=lambda line: (line["mean"], line["step"]))
    assert json.loads((copy / "best_by_probe" / "state.json").read_text())["step"] == best["step"]
    assert not (copy / ".followed").exists()
    capsys.readouterr()
    assert run(inspect.main, [str(copy), "--json"], inspect.__doc__) == 0
    assert probe_here(data, tmp_path / "out", *settings) == 0
    assert len((copy / "probe.jsonl").read_text().splitlines()) == 2  # nothing new


def test_who_follows_a_run_never_sees_test_clips(data: Path, trained: Path, tmp_path: Path, capsys):
    assert probe_here(data, tmp_path / "out", "--follow", str(trained), "baselines=[]") == 2
    assert "score=valid is needed" in capsys.readouterr().err


def clip(path: str, split: str | None, group: str, fold: int | None = None) -> ProbeClip:
    return ProbeClip(path=path, label="a", split=split, track=path, group=group, fold=fold)


def labelled(clips: Iterable[ProbeClip]) -> LabelledSet:
    task = ProbeTask(name="letters", kind="multiclass", classes=("a", "b"), metrics=("accuracy",))
    return LabelledSet(task=task, root=".", clips=tuple(clips))
