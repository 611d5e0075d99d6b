"""Which checkpoints of a run stay, and what mert inspect says of them."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from pretrain_run import checkpoint_names, pretrain_here
from shard_fixtures import write_set

from mert_foundry.jobs import inspect
from mert_foundry.jobs.command.config import UsageError, load_config
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.pretraining.run_description import PretrainConfig
from mert_foundry.model.runs.checkpoint import (
    CheckpointState,
    find_fault,
    load_state,
    retire_checkpoints,
    save_checkpoint,
)
from mert_foundry.model.runs.kept import BEST_BY_VALIDATION, forget_best_after, keep_best_by_validation, step_of_best

STEPS = ["trainer.schedule.total_steps=12", "trainer.checkpoint_every=2", "trainer.validate_every=4"]


def save(run_folder: Path, step: int) -> Path:
    state = CheckpointState(step, None, seed=0, world_size=1)
    return save_checkpoint(run_folder / "checkpoints", state, {}, {}, {})


def validate(run_folder: Path, step: int, loss: float, *sets: str) -> int | None:
    """A checkpoint with its validation, as the trainer does it; the step of the best after it."""
    save(run_folder, step)
    found = {"loss": loss, "losses": {"codes": loss}, "sets": dict.fromkeys(sets, {})}
    keep_best_by_validation(run_folder, step, found)
    return step_of_best(run_folder / BEST_BY_VALIDATION)


def test_every_nth_checkpoint_stays_for_good(tmp_path: Path):
    for step in range(2, 15, 2):
        save(tmp_path, step)
        retire_checkpoints(tmp_path / "checkpoints", step, 2, 6)
    assert checkpoint_names(tmp_path) == ["step_12", "step_14", "step_6"]


def test_what_was_to_stay_for_good_stays_when_keep_every_changes(tmp_path: Path):
    write_set(tmp_path / "shards", [4], valid_sizes=[2])
    out = tmp_path / "run"
    settings = ["trainer.checkpoint_every=2", "trainer.keep_checkpoints=1"]
    for total, every in ((8, 4), (10, 6), (12, "null")):
        changes = [f"trainer.schedule.total_steps={total}", f"trainer.keep_every={every}"]
        assert pretrain_here(tmp_path / "shards", out, *settings, *changes) == 0
    assert checkpoint_names(out) == ["step_12", "step_4", "step_8"]


def test_the_best_by_validation_is_the_newest_of_the_smallest_loss_over_the_same_terms_and_sets(tmp_path: Path):
    assert validate(tmp_path, 2, float("nan")) is None
    assert validate(tmp_path, 4, 3.0) == 4
    assert validate(tmp_path, 6, 2.0) == 6
    assert validate(tmp_path, 8, 2.5) == 6
    assert validate(tmp_path, 10, 2.0) == 10
    retire_checkpoints(tmp_path / "checkpoints", 10, 1)
    assert validate(tmp_path, 12, 2.25) == 10 and find_fault(tmp_path / BEST_BY_VALIDATION) is None
    assert validate(tmp_path, 14, 5.0, "studio", "live") == 14  # of other sets: not to be compared
    forget_best_after(tmp_path / BEST_BY_VALIDATION, 14)
    assert step_of_best(tmp_path / BEST_BY_VALIDATION) == 14
    forget_best_after(tmp_path / BEST_BY_VALIDATION, 12)
    assert step_of_best(tmp_path / BEST_BY_VALIDATION) is None


def test_a_run_without_a_whole_checkpoint_does_not_lose_its_best(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_set(tmp_path / "shards", [4], valid_sizes=[2])
    out = tmp_path / "run"
    assert pretrain_here(tmp_path / "shards", out, *STEPS) == 0
    best, step = out / "best_by_validation", step_of_best(out / "best_by_validation")
    for path in (out / "checkpoints").iterdir():
        shutil.rmtree(path)
    longer = [*STEPS[1:], "trainer.schedule.total_steps=16"]
    assert pretrain_here(tmp_path / "shards", out, *longer) == 1
    place = out / "checkpoints" / f"step_{step}"
    assert f"{best} has that of step {step}: move it to {place} to go on" in capsys.readouterr().err
    best.rename(place)
    assert pretrain_here(tmp_path / "shards", out, *longer) == 0
    assert "step_16" in checkpoint_names(out)


def test_a_validation_without_a_checkpoint_keeps_none(tmp_path: Path):
    found = {"loss": 1.0, "losses": {"codes": 1.0}}
    assert keep_best_by_validation(tmp_path, 3, found) is None
    assert not list(tmp_path.iterdir())


def test_keep_every_is_a_multiple_of_checkpoint_every(tmp_path: Path):
    words = ["configs/tiny.yaml", "shards=shards", "out=run", "trainer.checkpoint_every=5", "trainer.keep_every=12"]
    with pytest.raises(UsageError, match="keep_every is 12, no multiple of checkpoint_every 5"):
        load_config(PretrainConfig, words)


def test_inspect_says_why_each_checkpoint_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_set(tmp_path / "shards", [4], valid_sizes=[2])
    out = tmp_path / "run"
    assert pretrain_here(tmp_path / "shards", out, *STEPS, "trainer.keep_every=4", "trainer.keep_checkpoints=2") == 0
    assert checkpoint_names(out) == ["step_10", "step_12", "step_4", "step_8"]
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = {record["step"]: record["loss"] for record in records if record["kind"] == "validation"}
    best = min(losses, key=lambda step: losses[step])
    assert load_state(out / "best_by_validation").step == best
    weights = [out / name / "model.safetensors" for name in ("best_by_validation", f"checkpoints/step_{best}")]
    assert os.path.samefile(*weights)  # no room on disk is taken twice

    capsys.readouterr()
    assert run(inspect.main, [str(out), "--json"], inspect.__doc__) == 0
    found = json.loads(capsys.readouterr().out)
    size = sum(path.stat().st_size for path in (out / "checkpoints" / "step_12").iterdir())
    assert [(each["folder"], each["kept"]) for each in found["kept"]] == [
        ("checkpoints/step_12", ["newest", "every 4 steps"]),
        ("checkpoints/step_10", ["newest"]),
        ("checkpoints/step_8", ["every 4 steps"]),
        ("checkpoints/step_4", ["every 4 steps"]),
        ("best_by_validation", ["best by validation"]),
    ]
    assert found["kept"][0]["bytes"] == size
    reason = (out / "best_by_validation" / "validation.json").stat().st_size
    assert found["kept_bytes"] == sum(each["bytes"] for each in found["kept"][:-1]) + reason

    (out / "checkpoints" / "step_12" / "optimizer.pt").unlink()
    assert run(inspect.main, [str(out), "--html", str(tmp_path / "page.html")], inspect.__doc__) == 0
    assert run(inspect.main, [str(out)], inspect.__doc__) == 0
    text, page = capsys.readouterr().out, (tmp_path / "page.html").read_text()
    assert re.search(r"\n  checkpoints/step_12 +[\d.]+ kB +incomplete: passed over\n", text)
    assert re.search(r"\n  best_by_validation +[\d.]+ kB +best by validation\n", text)
    assert "checkpoints/step_8" in page and "best by validation" in page
