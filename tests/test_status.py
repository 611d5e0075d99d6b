"""`mert status`: how far a job is, from what lies in its folder."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from shard_fixtures import as_dropped, index_shards, make_example, make_track, write_examples

from mert_foundry.jobs import status as status_job
from mert_foundry.pipeline.labelling.status import JobPlan, read_status, write_plan

DONE = {"train-000000": 1000.0, "train-000001": 1010.0, "valid-000000": 1030.0}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of four: 1.6 s, 3 s and 3 s of audio, finished at `DONE`; the second has a silent segment of two."""
    write_examples(tmp_path, "train-000000", make_track("a", 120))
    silent = as_dropped(make_example("b", 75, start_frame=225, segment=1, segments=2))
    write_examples(tmp_path, "train-000001", [make_example("b", 225, segments=2), silent])
    write_examples(tmp_path, "valid-000000", make_track("c", 225))
    for name, time in DONE.items():
        os.utime(tmp_path / f"{name}.json", (time, time))
    write_plan(str(tmp_path), JobPlan(shards=4, seconds=13.6, failed={"valid-000001": "OSError: no such file"}))
    return tmp_path


def test_what_is_done_and_how_long_the_rest_takes(shards: Path):
    status = read_status(str(shards), now=1042.0)
    assert (status.shards, status.planned_shards, status.is_complete) == (3, 4, False)
    assert status.hours * 3600 == pytest.approx(7.6) and status.planned_hours * 3600 == pytest.approx(13.6)
    assert status.times_real_time == pytest.approx(6 / 30), "two shards in the 30 s after the first"
    assert status.remaining_hours is not None and status.remaining_hours * 3600 == pytest.approx(6 / (6 / 30))
    assert status.idle_seconds == 12 and status.dropped == {"silent": 1}
    os.utime(shards / "train-000000.json", (-5000, -5000))  # of an earlier day: no part of the rate
    assert read_status(str(shards), now=1042.0).times_real_time == pytest.approx(3 / 20)


def test_lines_and_json(shards: Path, run_here: Callable[..., tuple[int, str, str]]):
    before = {path: path.read_bytes() for path in shards.rglob("*") if path.is_file()}
    code, said, _ = run_here(status_job, shards)
    assert code == 0 and "3 of 4 shards (75.0%)" in said and "1 silent" in said
    assert "failed: 1 shards such as valid-000001: OSError: no such file" in said
    assert {path: path.read_bytes() for path in shards.rglob("*") if path.is_file()} == before
    index_shards(shards, list(DONE))
    code, said, _ = run_here(status_job, shards, "--json")
    assert code == 0 and json.loads(said)["is_complete"] and json.loads(said)["shards"] == 3


def test_a_folder_without_a_job_is_named(tmp_path: Path, run_here: Callable[..., tuple[int, str, str]]):
    code, _, errors = run_here(status_job, tmp_path / "gone")
    assert code == 1 and f"{tmp_path}/gone: there is no such folder" in errors
    (tmp_path / "notes.txt").touch()
    code, _, errors = run_here(status_job, tmp_path)
    assert code == 1 and f"{tmp_path}/.records/plan.json is not there" in errors and "has no labelling job" in errors
    (tmp_path / "metrics.jsonl").touch()
    code, _, errors = run_here(status_job, tmp_path)
    assert code == 2 and "run folder" in errors


def test_on_a_remote_filesystem():
    folder = "memory://test-status"
    write_examples(folder, "train-000000", make_track("a", 75))
    write_plan(folder, JobPlan(shards=1, seconds=1.0))
    status = read_status(folder, now=4e9)
    assert status.shards == 1 and status.hours * 3600 == pytest.approx(1) and status.idle_seconds > 1e6


def test_a_shard_that_is_to_be_made_again_is_not_finished(shards: Path):
    expected = {"train-000000": "plan", "train-000001": "another"}  # the first has been made meanwhile
    write_plan(str(shards), JobPlan(shards=3, seconds=7.6, expected=expected))
    assert read_status(str(shards), now=1042.0).hours * 3600 == pytest.approx(4.6)
    (shards / "valid-000000.tar").write_bytes(b"")
    assert read_status(str(shards), now=1042.0).hours * 3600 == pytest.approx(1.6)


@pytest.mark.process
def test_it_starts_without_torch_which_takes_seconds():
    program = "import sys, mert_foundry.jobs.status; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
