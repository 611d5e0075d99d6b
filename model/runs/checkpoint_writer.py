"""A thread writes checkpoints while training goes on, one at a time."""

import errno
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from mert_foundry.model.runs.checkpoint import CheckpointState, retire_checkpoints, save_checkpoint
from mert_foundry.model.runs.publish import system_error


class OlderCheckpointStays(OSError):
    """`checkpoint` was written and is whole, but an older one could not be removed."""

    def __init__(self, checkpoint: Path, error: OSError):
        super().__init__(f"{checkpoint} is whole, but an older checkpoint could not be removed: {error}")
        self.checkpoint = checkpoint


class CheckpointWriter:
    """Writes checkpoints into a run's `checkpoints` folder.

    Use it as a context manager: leaving it waits for the current write.

    Args:
        folder: where all checkpoints of the run are. run_config: the resolved config, saved with each checkpoint. keep:
            how many of the newest checkpoints stay. every: those of multiples of this step stay for good; None: none
            do.
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
        """Start to write a checkpoint.

        Call `wait` for the one before first; nothing may change these tensors from now on.
        """
        assert self._writing is None, "the write before was waited for"
        self._writing = self._threads.submit(self._write, state, weights, optimizer_state, average)

    def poll(self) -> Path | None:
        """The checkpoint whose write has ended since the last call; None if there is none. Raises as `wait`."""
        return self.wait() if self._writing is not None and self._writing.done() else None

    def wait(self) -> Path | None:
        """Wait for the current write and return its checkpoint; None if nothing is being written.

        Raises OSError when the checkpoint could not be written, OlderCheckpointStays when it is complete.
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
            check_room(self.folder, [weights, optimizer_state, average])
            for_good = self._every is not None and state.step % self._every == 0
            save_checkpoint(self.folder, state, weights, optimizer_state, self._run_config, average, for_good)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise OSError(f"{place} could not be written: {_explain(error)}") from error
        try:
            retire_checkpoints(self.folder, state.step, self._keep, self._every)
        except OSError as error:
            raise OlderCheckpointStays(place, error) from error
        return place


def check_room(folder: Path, values: Any) -> None:
    """Raise OSError when nested tensors take more bytes than are free: a write that must fail does not fill the disk of
    others first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = _bytes_of(values), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"{os.strerror(errno.ENOSPC)}: it takes {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free in {folder}",
        )


def _bytes_of(values: Any) -> int:
    if isinstance(values, Tensor):
        return values.nbytes
    if isinstance(values, Mapping):
        values = list(values.values())
    return sum(map(_bytes_of, values)) if isinstance(values, list | tuple) else 0


def _explain(error: Exception) -> str:
    """The message of an error, with the notes it has, or else the operating system's words for it."""
    number = system_error(error)
    notes = getattr(error, "__notes__", [])
    if not notes and number is not None and os.strerror(number) not in str(error):
        notes = [os.strerror(number)]
    return "; ".join([str(error), *notes])
