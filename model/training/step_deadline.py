"""A step that hangs ends its process, with what every thread of it was doing in the log.

When one rank hangs (in the stream, in a collective), the others wait for it in that step, so the deadline passes on all
of them at almost the same time. A thread writes the stacks of all threads to standard error, and waits some seconds
before it ends the process: the end of one rank breaks the connections of others, who would end without theirs. Where a
hang keeps Python's lock, so that this thread cannot run, faulthandler's own does the same a little later.
"""

import faulthandler
import os
import sys
import threading
import time
import traceback

from mert_foundry.model.training.ranks import rank, world_size

GRACE = 5.0  # seconds from the stacks to the end of the process
LOOK_EVERY = 1.0  # seconds
STDERR = 2


class StepDeadline:
    """Watches the steps of this process between `begin` and `end`. A context manager, around all steps.

    Args:
        seconds: that a step may take, the wait for its batch included; None: any time.
    """

    def __init__(self, seconds: float | None):
        self._seconds = seconds
        self._step = 0
        self._passes_at: float | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="step deadline", daemon=True)

    def __enter__(self) -> "StepDeadline":
        if self._seconds is not None:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()
        self._done.set()

    def begin(self, step: int) -> None:
        """The step begins now."""
        if self._seconds is not None:
            self._step, self._passes_at = step, time.monotonic() + self._seconds
            faulthandler.dump_traceback_later(self._seconds + 2 * GRACE, exit=True, file=STDERR)

    def end(self) -> None:
        """The step is done; what follows has no deadline."""
        if self._seconds is not None:
            self._passes_at = None
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        assert self._seconds is not None
        while not self._done.wait(min(LOOK_EVERY, self._seconds / 4)):
            passes_at = self._passes_at
            if passes_at is not None and time.monotonic() > passes_at:
                write_to_stderr(self._describe())
                time.sleep(GRACE)
                os._exit(1)

    def _describe(self) -> str:
        """Each line begins with the rank, since those of several ranks may be mixed."""
        head = (
            f"step {self._step} has taken more than trainer.step_deadline, {self._seconds:g} seconds; this rank of"
            f" {world_size()} ends with exit code 1 in {GRACE:g} seconds, and a restart goes on from the newest"
            " checkpoint. It was here:\n"
        )
        lines = (head + stacks()).splitlines()
        return "".join(f"[rank {rank()}] {line}\n" for line in lines)


def stacks() -> str:
    """What every Python thread of this process but the one that asks is doing, the main thread last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    frames = {ident: frame for ident, frame in sys._current_frames().items() if ident != threading.get_ident()}
    parts = [
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frames[ident]))}"
        for ident in sorted(frames, key=lambda ident: ident == main)
    ]
    return "".join(parts)


def write_to_stderr(text: str) -> None:
    """Past Python's own file, which a hanging thread may have locked."""
    rest = text.encode(errors="replace")
    while rest:
        rest = rest[os.write(STDERR, rest) :]
