"""Progress of long work in audio seconds: a bar on a terminal, plain lines elsewhere, nothing with --quiet."""

import sys
import time

from tqdm import tqdm

from mert_foundry.jobs.command.console import console

LINE_EVERY_SECONDS = 10.0


class Progress:
    """Shows hours done, times real time, time left and notes; use as a context manager.

    Args:
        title: what is being done.
        total_seconds: audio seconds in all; None when they are not known beforehand.
    """

    def __init__(self, title: str, total_seconds: float | None = None):
        self.title = title
        self.total = total_seconds
        self.done = 0.0
        self.started = self.last_line = time.monotonic()
        self.bar = None
        if sys.stderr.isatty() and not console.quiet:
            left = "{desc} {percentage:3.0f}%|{bar}| {n:.2f}/{total:.2f} h, ETA {remaining}{postfix}"
            unknown = "{desc} {n:.2f} h, {elapsed}{postfix}"
            hours = None if total_seconds is None else total_seconds / 3600
            self.bar = tqdm(total=hours, desc=title, bar_format=unknown if hours is None else left)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif exception == (None, None, None):
            self._print("")

    def update(self, done_seconds: float, notes: str = "") -> None:
        """Report how many audio seconds are done so far in all; `notes` follow the rate."""
        now = time.monotonic()
        if self.bar is not None:
            self.bar.set_postfix_str(f"{self._rate(done_seconds)}{notes and ', ' + notes}", refresh=False)
            self.bar.update((done_seconds - self.done) / 3600)
        self.done = done_seconds
        if self.bar is None and now - self.last_line >= LINE_EVERY_SECONDS:
            self.last_line = now
            self._print(notes)

    def _rate(self, done: float) -> str:
        return f"{done / max(time.monotonic() - self.started, 1e-9):.1f}x real time"

    def _print(self, notes: str) -> None:
        if console.quiet:
            return
        elapsed = time.monotonic() - self.started
        hours = f"{self.done / 3600:.3f} h"
        left = ""
        if self.total is not None:
            hours = f"{self.done / 3600:.3f} of {self.total / 3600:.3f} h"
            if self.done:
                left = f", ETA {max(0.0, elapsed * (self.total - self.done) / self.done):.0f} s"
        line = f"{self.title}: {hours}, {elapsed:.0f} s, {self._rate(self.done)}{left}{notes and ', ' + notes}"
        print(line, file=sys.stderr, flush=True)
