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


def test_nothing_to_do():
    assert list(map_in_processes(double_or_crash, [], 4, crashed=lambda item: 0)) == []
