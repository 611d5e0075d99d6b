"""Progress of long work, in audio seconds if nothing else is said: a bar on a terminal, plain lines elsewhere, nothing
with --quiet.
"""

import sys
import time
from collections import deque
from typing import NamedTuple

from tqdm import tqdm

from mert_foundry.jobs.command.console import console

LINE_EVERY_SECONDS = 10.0


class Unit(NamedTuple):
    """What progress is counted in: `word` for `size` of it, `rate` for `rate_size` of it a second."""

    word: str
    size: float
    rate: str
    rate_size: float


AUDIO = Unit("h", 3600.0, "x real time", 1.0)  # of seconds
TOKENS = Unit("million tokens", 1e6, " thousand tokens/s", 1e3)
TEXT = Unit("MB", 1e6, " MB/s", 1e6)  # of bytes


class Pace:
    """How fast audio is done, in times real time, from reports of the audio seconds done so far.

    Before the first audio is done, models are loaded and queues filled: that time says nothing of the pace. So the
    clock begins with the first report that has some, which itself is not counted, and the pace is that of the later
    half of the time since then. Parts that several processes finish at about the same moment say little either: there
    is no pace until that half is a tenth of the whole time.
    """

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.first: float | None = None  # when the first audio was done
        self.reports: deque[tuple[float, float]] = deque()  # (when, done), from the last one in the earlier half on

    def report(self, done: float) -> None:
        """Take the audio seconds done so far in all."""
        if not done:
            return
        now = time.monotonic()
        self.first = now if self.first is None else self.first
        self.reports.append((now, done))
        while len(self.reports) > 1 and self.reports[1][0] <= (self.first + now) / 2:
            self.reports.popleft()

    def rate(self) -> float | None:
        """Audio seconds a second, or None as long as it is not known."""
        if not self.reports:
            return None
        (start, before), (end, done) = self.reports[0], self.reports[-1]
        if done <= before or end - start < 0.1 * (end - self.begun):
            return None
        return (done - before) / (end - start)


class Progress:
    """Shows hours done, times real time, time left and notes; use as a context manager.

    As long as the rate is not known, it shows `starting`, and no time left.

    Args:
        title: what is being done.
        total_seconds: audio seconds in all; None when they are not known beforehand.
        done_seconds: audio seconds that were done before, which no rate counts.
        unit: what is counted, where that is not audio seconds.
    """

    def __init__(self, title: str, total_seconds: float | None = None, done_seconds: float = 0.0, unit: Unit = AUDIO):
        self.title = title
        self.unit = unit
        self.total = total_seconds
        self.done = self.done_before = done_seconds
        self.pace = Pace()
        self.last_line = self.pace.begun
        self.bar = None
        if sys.stderr.isatty() and not console.quiet:
            left = f"{{desc}} {{percentage:3.0f}}%|{{bar}}| {{n:.2f}}/{{total:.2f}} {unit.word}{{postfix}}"
            unknown = f"{{desc}} {{n:.2f}} {unit.word}, {{elapsed}}{{postfix}}"
            hours = None if total_seconds is None else total_seconds / unit.size
            # By time and not by steps: a job that is starting has none.
            self.bar = tqdm(
                total=hours,
                initial=done_seconds / unit.size,
                desc=title,
                bar_format=unknown if hours is None else left,
                miniters=0,
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif exception == (None, None, None):
            self._print("", is_last=True)

    def update(self, done_seconds: float, notes: str = "") -> None:
        """Report how many audio seconds are done so far in all; `notes` follow the rate."""
        self.pace.report(done_seconds - self.done_before)
        before, self.done = self.done, done_seconds
        if self.bar is not None:
            self.bar.set_postfix_str(f"{self._pace()}{notes and ', ' + notes}", refresh=False)
            self.bar.update((done_seconds - before) / self.unit.size)
        now = time.monotonic()
        if self.bar is None and now - self.last_line >= LINE_EVERY_SECONDS:
            self.last_line = now
            self._print(notes)

    def _pace(self) -> str:
        """Rate and time left, as far as they are known."""
        rate = self.pace.rate()
        if rate is None:
            return "starting"
        left = "" if self.total is None else f", ETA {max(0.0, self.total - self.done) / rate:.0f} s"
        return f"{self._rate(rate)}{left}"

    def _rate(self, rate: float) -> str:
        return f"{rate / self.unit.rate_size:.1f}{self.unit.rate}"

    def _print(self, notes: str, is_last: bool = False) -> None:
        if console.quiet:
            return
        elapsed = time.monotonic() - self.pace.begun
        size = self.unit.size
        hours = f"{self.done / size:.3f} {self.unit.word}"
        if self.total is not None:
            hours = f"{self.done / size:.3f} of {self.total / size:.3f} {self.unit.word}"
        pace = self._last_word(elapsed) if is_last else self._pace()
        print(f"{self.title}: {hours}, {elapsed:.0f} s, {pace}{notes and ', ' + notes}", file=sys.stderr, flush=True)

    def _last_word(self, elapsed: float) -> str:
        """The rate of the whole, and how long it took until the first audio was done, if that was long."""
        start = 0.0 if self.pace.first is None else self.pace.first - self.pace.begun
        rate = self._rate((self.done - self.done_before) / max(elapsed, 1e-9))
        return f"{rate}, {start:.0f} s to the first" if start >= 1 else rate
