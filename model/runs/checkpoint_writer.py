"""A thread writes checkpoints while training goes on, one at a time."""

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from mert_foundry.model.runs.checkpoint import CheckpointState, retire_checkpoints, save_checkpoint
from mert_foundry.model.runs.publish import system_error


class CheckpointWriter:
    """Writes checkpoints into a run's `checkpoints` folder. Use it as a context manager: leaving it waits for the current write.

    Args:
        folder: where all checkpoints of the run are. run_config: the resolved config, saved with each checkpoint. keep: how many of
            the newest checkpoints stay. every: those of multiples of this step stay for good; None: none do.
    """

    def __init__(self, folder: Path, run_config: dict[str, Any], keep: int, every: int | None = None):
        self.folder = folder
        self._run_config = run_config
        self._keep = keep
        self._every = every
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Raises as `wait`. If there is another error already, the failed write becomes a note of it."""
        self._threads.shutdown()
        failure = self._writing.exception() if self._writing is not None else None
        if failure is not None and error is not None:
            error.add_note(str(failure))
        elif failure is not None:
            raise failure

    def start(
        self,
        state: CheckpointState,
        weights: Mapping[str, Tensor],
        optimizer_state: dict[str, Any],
        average: Mapping[str, Tensor] | None,
    ) -> None:
        """Start to write a checkpoint. Call `wait` for the one before first; nothing may change these tensors from now on."""
        assert self._writing is None, "the write before was waited for"
        self._writing = self._threads.submit(self._write, state, weights, optimizer_state, average)

    def poll(self) -> Path | None:
        """The checkpoint whose write has ended since the last call; None if there is none. Raises as `wait`."""
        return self.wait() if self._writing is not None and self._writing.done() else None

    def wait(self) -> Path | None:
        """Wait for the current write and return its checkpoint; None if nothing is being written.

        Raises OSError when the checkpoint could not be written, or when it is complete but older ones could not be removed.
        """
        writing, self._writing = self._writing, None
        return None if writing is None else writing.result()

    def _write(
        self,
        state: CheckpointState,
        weights: Mapping[str, Tensor],
        optimizer_state: dict[str, Any],
        average: Mapping[str, Tensor] | None,
    ) -> Path:
        place = self.folder / f"step_{state.step}"
        try:
            save_checkpoint(self.folder, state, weights, optimizer_state, self._run_config, average)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise OSError(f"{place} could not be written: {_explain(error)}") from error
        try:
            retire_checkpoints(self.folder, state.step, self._keep, self._every)
        except OSError as error:
            raise OSError(f"{place} is whole, but an older checkpoint could not be removed: {error}") from error
        return place


def _explain(error: Exception) -> str:
    """The message of an error, with the notes it has, or else the operating system's words for it."""
    number = system_error(error)
    notes = getattr(error, "__notes__", [])
    if not notes and number is not None and os.strerror(number) not in str(error):
        notes = [os.strerror(number)]
    return "; ".join([str(error), *notes])
