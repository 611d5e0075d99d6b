"""`mert bench gpu`: commands run one after the other, and what they printed becomes one table."""

from pathlib import Path

import pytest
import torch

from mert_foundry.jobs.bench import main as bench
from mert_foundry.jobs.benchmarks.gpu_benchmark import Measurement, as_markdown, measure, read_run, read_tests
from mert_foundry.jobs.command.line import run
from mert_foundry.model.runs.metrics_log import MetricsLog

HELP = ["json.tool", "--help"]  # a module that starts fast


@pytest.mark.process
def test_a_command_that_fails_stands_in_the_table_and_the_others_go_on(tmp_path: Path):
    measurements = [
        Measurement("broken", ["json.tool", str(tmp_path / "no such file")]),
        Measurement("help", HELP, lambda printed: [{"what": "help", "result": printed.splitlines()[0]}]),
    ]
    measured = [measure(each, tmp_path) for each in measurements]
    assert measured[0]["failed"].startswith("exit code ") and "no such file" in measured[0]["failed"]
    assert measured[1]["failed"] is None and measured[1]["command"] == HELP
    assert "no such file" in (tmp_path / "broken.log").read_text()
    said = (tmp_path / "help.out").read_text().splitlines()[0]
    table = as_markdown({"device": "a card", "torch": "2", "measurements": measured}).splitlines()
    assert table[0].startswith("a card, torch 2, ")
    assert table[2:4] == ["| what | result | memory | note |", "| --- | --- | --- | --- |"]
    assert table[4].startswith("| broken | failed: exit code ")
    assert table[5] == f"| help | {said} |  |  |"


def test_the_rows_of_a_run_are_medians_without_its_first_records(tmp_path: Path):
    log = MetricsLog(tmp_path, 0)
    for step, (rate, share) in enumerate([(1.0, 0.9), (2.0, 0.9), (300.0, 0.01), (100.0, 0.03), (200.0, 0.02)]):
        log.write({"kind": "train", "step": step, "audio_seconds_per_second": rate, "data_wait_share": share})
        log.write({"kind": "validation", "step": step, "loss": 1.0})
    log.close()
    (row,) = read_run(log.path)
    assert row["result"] == "200 audio seconds a second" and row["note"] == "2.0% of the time waiting for data"


def test_the_row_of_the_tests_is_the_closing_line():
    (row,) = read_tests("....\n=== 22 passed, 3618 deselected in 41.2s ===\n")
    assert row["result"] == "22 passed, 3618 deselected in 41.2s"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert run(bench, ["gpu", str(tmp_path / "out")], "") == 1
    assert "no CUDA device" in capsys.readouterr().err and not (tmp_path / "out").exists()
