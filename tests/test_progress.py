"""Progress: no time left before there is a pace, and from then on one that comes true."""

import io
import re
import statistics
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from mert_foundry.jobs.command import progress
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.progress import Progress

Report = tuple[float, float]  # when, seconds; audio done so far, seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that the test sets, in seconds."""
    monkeypatch.setattr(console, "quiet", False)  # whatever command ran before in this process
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def lines_of(reports: Iterator[Report], total: float, clock: SimpleNamespace, capsys: pytest.CaptureFixture) -> list:
    """(seconds since the beginning, line) of everything that is printed."""
    begun, lines = clock.now, []
    with Progress("label", total) as shown:
        for moment, done in reports:
            clock.now = begun + moment
            shown.update(done)
            lines += [(moment, line) for line in capsys.readouterr().err.splitlines()]
    return [*lines, *((clock.now - begun, line) for line in capsys.readouterr().err.splitlines())]


def labelling(start: float, rate: float, total: float) -> Iterator[Report]:
    """Nothing for `start` seconds, then segments of 30 s at `rate` times real time; polled twice a second."""
    moment = 0.0
    while (done := max(0.0, moment - start) * rate) < total:
        yield moment, done // 30 * 30
        moment += 0.5
    yield moment, total


def parts(processes: int, seconds: float, rounds: int) -> Iterator[Report]:
    """Parts of 1000 s of audio that each of several processes does in about the same time, after no start."""
    ends = sorted(
        (number + 1) * seconds * (1 + 0.01 * process) for number in range(rounds) for process in range(processes)
    )
    yield from ((end, 1000.0 * (count + 1)) for count, end in enumerate(ends))


def errors(lines: list, end: float) -> list[float]:
    """The time left that was told, over the time it took, of each line that tells one (not in the last minute)."""
    found = [(moment, re.search(r"ETA (\d+) s", line)) for moment, line in lines]
    return [int(match[1]) / (end - moment) for moment, match in found if match and end - moment > 60]


@pytest.mark.parametrize("start", [0.0, 20.0, 195.0])
def test_the_time_of_the_start_is_not_in_the_time_left(start: float, clock, capsys):
    lines = lines_of(labelling(start, 7.5, 7200), 7200, clock, capsys)
    end = start + 7200 / 7.5
    for moment, line in lines[:-1]:
        assert (moment > start) or line.endswith("starting"), line
    told = errors(lines, end)
    assert len(told) > 80 and all(0.7 < error < 1.4 for error in told)
    assert "7.5x real time" in lines[-2][1]
    first = re.fullmatch(r"label: 2.000 of 2.000 h, (\d+) s, ([\d.]+)x real time, (\d+) s to the first", lines[-1][1])
    assert first and int(first[1]) == pytest.approx(end, abs=2) and int(first[3]) == pytest.approx(start + 4, abs=1)


def test_parts_that_end_together_do_not_promise_an_early_end(clock, capsys):
    lines = lines_of(parts(4, 600, 8), 32_000, clock, capsys)
    told = errors(lines, 8 * 600 * 1.03)
    assert len(told) > 20 and min(told) > 0.7 and 0.8 < statistics.median(told) < 1.25


def test_a_pace_that_changes_is_followed(clock, capsys):
    slow = [(moment, moment * 2.0) for moment in range(0, 1000, 5)]
    fast = [(1000 + moment, 2000 + moment * 10.0) for moment in range(0, 2000, 5)]
    lines = lines_of(iter(slow + fast), 22_000, clock, capsys)
    assert "2.0x real time" in lines[50][1] and "10.0x real time" in lines[-2][1]


def test_what_was_done_before_is_in_no_rate(clock, capsys):
    with Progress("codec", 10_000, 9_000) as shown:
        for moment in range(0, 1_001, 50):
            clock.now = 1000 + moment
            shown.update(9_000 + moment)
    *lines, last = capsys.readouterr().err.splitlines()
    assert "1.0x real time, ETA 500 s" in next(line for line in lines if ", 500 s, " in line)
    assert last.startswith("codec: 2.778 of 2.778 h, 1000 s, 1.0x real time")


def test_a_bar_says_the_same(clock, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(console, "quiet", False)
    with Progress("label", 7200) as shown:
        shown.bar.mininterval = 0.0
        for moment, done in ((10.0, 0.0), (30.0, 30.0), (50.0, 180.0)):
            clock.now = 1000 + moment
            shown.update(done, "1 failed")
    states = sys.stderr.getvalue().split("\r")
    assert any("0.00/2.00 h, starting, 1 failed" in state for state in states)
    assert any("0.05/2.00 h, 7.5x real time, ETA 936 s, 1 failed" in state for state in states)
