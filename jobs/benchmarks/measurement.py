"""How the benchmarks measure: variants take turns in rounds, each run in a process of its own, medians are reported.

Taking turns spreads other load of the machine over all variants alike; quote ratios of one run, not its times.
A process of its own makes peak memory that of one variant.
"""

import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")

Figures = dict[str, Any]


def take_turns(names: Sequence[str], rounds: int, measure: Callable[[str], Figures]) -> dict[str, list[Figures]]:
    """Every variant once a round, in the same order; gives the figures of all rounds by name.

    A variant that fails (`measure` raises RuntimeError) has the reason under `failed` and is not tried again.
    """
    results: dict[str, list[Figures]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            if results[name] and "failed" in results[name][0]:
                continue
            try:
                results[name].append(measure(name))
            except RuntimeError as error:
                results[name] = [{"failed": str(error)}]
    return results


def median(results: Sequence[Figures], key: str) -> float:
    """The median of one figure over all rounds."""
    return statistics.median(figures[key] for figures in results)


def in_own_process(module: str, settings: Mapping[str, Any]) -> Figures:
    """Run `python -m module SETTINGS_AS_JSON` and read the JSON on its last line of output.

    Raises RuntimeError with the last line of stderr when it fails.
    """
    command = [sys.executable, "-m", module, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reported = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(reported[-1] if reported else f"ended with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory() -> int:
    """Largest resident memory of this process so far, bytes (Linux).

    Not getrusage: its figure starts from that of the process that started this one.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


class StageClock:
    """`seconds` holds the time spent in each stage, without that of the stages inside it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._stage: str | None = None
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a `with` block for a stage."""
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def follow(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """Pass items through; the time it takes to make each counts for a stage."""
        source = iter(items)
        while True:
            with self.stage(name):
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item

    def _switch(self, name: str | None) -> str | None:
        now = time.perf_counter()
        if self._stage is not None:
            self.seconds[self._stage] += now - self._since
        outer, self._stage, self._since = self._stage, name, now
        return outer
