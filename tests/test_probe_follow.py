"""Which checkpoints of a run are probed, and when there are no more to wait for."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from mert_foundry.jobs.probing import follow
from mert_foundry.model.runs.checkpoint import CheckpointState, find_fault, save_checkpoint
from mert_foundry.model.runs.kept import hold_checkpoint


def save(run: Path, *steps: int) -> None:
    for step in steps:
        state = CheckpointState(step=step, position=None, seed=0, world_size=1)
        save_checkpoint(run / "checkpoints", state, {"weight": torch.ones(2)}, {}, {})


def damage(run: Path, step: int) -> None:
    (run / "checkpoints" / f"step_{step}" / "state.json").write_text('{"st')


@pytest.fixture(autouse=True)
def never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """In these tests nothing more will appear, so to wait is to hang."""

    def sleep(seconds: float) -> None:
        raise AssertionError("it waits for a checkpoint that will never be there")

    monkeypatch.setattr(follow.time, "sleep", sleep)


def probed(run: Path, known: set[int], last: int, every: int) -> list[str]:
    return [path.name for path in follow.new_checkpoints(run, known, last, every)]


def test_it_ends_where_the_run_is_past_its_last_step(tmp_path: Path, capsys: pytest.CaptureFixture):
    save(tmp_path, 1000, 1800, 2000)
    assert probed(tmp_path, {1000}, 1500, 1000) == ["step_2000"]
    assert "is past step 1500" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named_once_and_those_after_it_are_probed(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    save(tmp_path, 1000, 2000, 3000)
    damage(tmp_path, 1000)
    assert probed(tmp_path, set(), 3000, 1000) == ["step_2000", "step_3000"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "damaged" in line and "step_1000" in line


def test_a_damaged_checkpoint_that_is_written_again_is_probed(tmp_path: Path):
    save(tmp_path, 1000, 2000)
    damage(tmp_path, 1000)
    found = follow.new_checkpoints(tmp_path, set(), 3000, 1000)
    assert next(found).name == "step_2000"
    save(tmp_path, 1000)
    assert next(found).name == "step_1000"


def test_it_waits_while_the_last_step_is_not_there(tmp_path: Path):
    save(tmp_path, 1000)
    damage(tmp_path, 1000)
    with pytest.raises(AssertionError, match="it waits"):
        probed(tmp_path, set(), 2000, 1000)


def test_a_checkpoint_is_copied_on_a_disk_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def link(source: str, target: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    save(tmp_path, 1000)
    checkpoint = tmp_path / "checkpoints" / "step_1000"
    assert os.stat(hold_checkpoint(checkpoint, tmp_path / "linked") / "state.json").st_nlink == 2
    monkeypatch.setattr(os, "link", link)
    held = hold_checkpoint(checkpoint, tmp_path / "held")
    assert held is not None and find_fault(held) is None and os.stat(held / "state.json").st_nlink == 1
    shutil.rmtree(checkpoint)
    assert hold_checkpoint(checkpoint, tmp_path / "held") is None
