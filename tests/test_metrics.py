import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mert_foundry.model.runs.metrics_log import MetricsLog


def read_steps(folder) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_steps(folder, begin: int, steps: list[int]) -> None:
    log = MetricsLog(folder, begin)
    for step in steps:
        log.write({"kind": "train", "step": step, "loss": float(step), "accuracy": {"codes": [0.5, 0.25]}})
    log.close()


def test_a_resume_forgets_what_the_kill_undid(tmp_path):
    write_steps(tmp_path, 0, [1, 2, 3, 4])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "ste')  # torn by the kill
    write_steps(tmp_path, 2, [3])
    write_steps(tmp_path, 3, [4, 5])
    assert read_steps(tmp_path) == [1, 2, 3, 4, 5]
    write_steps(tmp_path, -1, [])
    assert read_steps(tmp_path) == []


def test_the_log_knows_what_it_kept(tmp_path):
    write_steps(tmp_path, 0, [1, 2, 3])
    log = MetricsLog(tmp_path, 2)
    log.close()
    assert log.holds("train", 2) and not log.holds("train", 3) and not log.holds("validation", 2)


def test_tensorboard_holds_the_same_numbers(tmp_path):
    write_steps(tmp_path, 0, [1, 2])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 2.0)]
    assert events.Scalars("train/accuracy/codes/1")[0].value == 0.25


def test_what_is_not_finite_is_null_in_valid_json(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.write({"kind": "train", "step": 1, "loss": float("nan"), "accuracy": {"codes": [float("inf"), 1.0]}})
    log.close()
    record = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert record["loss"] is None and record["accuracy"] == {"codes": [None, 1.0]}
