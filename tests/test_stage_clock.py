"""Stages that are streams inside each other: every second is counted once, where it was spent."""

import pytest

from mert_foundry.jobs.benchmarks import measurement
from mert_foundry.jobs.benchmarks.measurement import StageClock


def test_inner_stages_do_not_count_for_outer_ones(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(measurement.time, "perf_counter", lambda: now[0])
    clock = StageClock()

    def decode():
        for _ in range(3):
            now[0] += 1.0
            yield 1

    def resample(blocks):
        for block in blocks:
            now[0] += 10.0
            yield block

    with clock.stage("write"):
        for _ in clock.follow("resample", resample(clock.follow("decode", decode()))):
            now[0] += 100.0
    now[0] += 1000.0  # outside of every stage
    assert clock.seconds == {"decode": 3.0, "resample": 30.0, "write": 300.0}


def test_an_error_leaves_the_outer_stage_running():
    clock = StageClock()

    def broken():
        yield 1
        raise ValueError("damage")

    with clock.stage("outer"):
        with pytest.raises(ValueError, match="damage"):
            list(clock.follow("inner", broken()))
        with clock.stage("after"):
            pass
    assert set(clock.seconds) == {"outer", "inner", "after"}
