"""Checkpoints written by a thread while training goes on, one at a time."""

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
    """Publishes checkpoints in a run's `checkpoints` folder; a context manager that ends when the write under way has.

    Args:
        folder: of all checkpoints. run_config: the resolved config, saved with each. keep: newest ones that stay.
    """

    def __init__(self, folder: Path, run_config: dict[str, Any], keep: int):
        self.folder = folder
        self._run_config = run_config
        self._keep = keep
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Raises as `wait`; beside another error, a write that failed is a note of that."""
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
        """Begin to write; the one before must have been waited for. Nothing else may change these tensors from now on."""
        assert self._writing is None, "one at a time"
        self._writing = self._threads.submit(self._write, state, weights, optimizer_state, average)

    def poll(self) -> Path | None:
        """The checkpoint that has come to be there since the last call. Raises as `wait`."""
        return self.wait() if self._writing is not None and self._writing.done() else None

    def wait(self) -> Path | None:
        """The checkpoint under way, when it is there; None if there is none.

        Raises OSError when it could not be written, or is whole and older ones could not be removed.
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
            retire_checkpoints(self.folder, state.step, self._keep)
        except OSError as error:
            raise OSError(f"{place} is whole, but an older checkpoint could not be removed: {error}") from error
        return place


def _explain(error: Exception) -> str:
    """An error with what the operating system said, and its notes."""
    number = system_error(error)
    notes = getattr(error, "__notes__", [])
    if not notes and number is not None and os.strerror(number) not in str(error):
        notes = [os.strerror(number)]
    return "; ".join([str(error), *notes])
