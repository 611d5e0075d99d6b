"""Checkpoints written by a thread while training goes on, one at a time."""

import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from mert_foundry.model.runs.checkpoint import CheckpointState, save_checkpoint


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

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown()

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
        """The checkpoint under way, when it is there; None if there is none. Raises OSError when it could not be written."""
        writing, self._writing = self._writing, None
        return None if writing is None else writing.result()

    def _write(
        self,
        state: CheckpointState,
        weights: Mapping[str, Tensor],
        optimizer_state: dict[str, Any],
        average: Mapping[str, Tensor] | None,
    ) -> Path:
        try:
            return save_checkpoint(self.folder, state, weights, optimizer_state, self._run_config, self._keep, average)
        except (OSError, RuntimeError, SafetensorError) as error:
            place = self.folder / f"step_{state.step}"
            # The last two do not say that a disk is full.
            free = shutil.disk_usage(self.folder.parent).free // 1_000_000
            raise OSError(f"{place} could not be written: {error}; {free} MB are free there") from error
