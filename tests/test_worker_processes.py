"""Work in processes of their own: in order, and one that crashes its process costs nothing but itself."""

import os
import signal
from pathlib import Path

import pytest

from mert_foundry.jobs.cluster.worker_processes import map_in_processes

pytestmark = pytest.mark.process


def double_or_crash(item: tuple[int, str]) -> int:
    """Twice the number; `always` ends the process as a decoder's fault would, a path only when nothing is there yet."""
    number, fault = item
    if fault == "always":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault and not Path(fault).exists():
        Path(fault).touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    return 2 * number


def test_a_crash_costs_the_item_that_made_it_alone(tmp_path: Path):
    faults = {3: "always", 7: str(tmp_path / "once")}
    items = [(number, faults.get(number, "")) for number in range(14)]
    results = list(map_in_processes(double_or_crash, items, 2, crashed=lambda item: -item[0]))
    assert results == [-3 if number == 3 else 2 * number for number in range(14)]


class Counter:
    """Work that learns from item to item: how many it has seen."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, item: int) -> int:
        self.seen += 1
        return self.seen


def test_a_process_keeps_what_its_work_has_learnt():
    assert list(map_in_processes(Counter(), range(5), 1, crashed=lambda item: 0)) == [1, 2, 3, 4, 5]


def test_an_error_comes_with_the_traceback_of_its_process():
    with pytest.raises(TypeError) as raised:
        list(map_in_processes(double_or_crash, [None], 1, crashed=lambda item: 0))
    assert "in double_or_crash" in str(raised.value.__cause__)


def test_nothing_to_do():
    assert list(map_in_processes(double_or_crash, [], 4, crashed=lambda item: 0)) == []
