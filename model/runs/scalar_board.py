"""TensorBoard events that a full disk does not end: they are for looking at, metrics.jsonl has the same numbers."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class ScalarBoard:
    """Events in a folder, from `step` on: later ones that an earlier start wrote are hidden.

    TensorBoard's writer fails for good when one write fails. A new one, with a file of its own, then takes its place at
    the next call.
    """

    def __init__(self, folder: Path, step: int):
        self._folder = folder
        self._writer: SummaryWriter | None = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, scalars: Mapping[str, float], step: int) -> str | None:
        """Add numbers by name; why they could not be added, and are missing there."""
        try:
            self._writer = self._writer or SummaryWriter(str(self._folder))
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)
        except OSError as error:
            self.close()
            return f"{self._folder}: {error.strerror}; TensorBoard lacks records about step {step}"
        return None

    def close(self) -> None:
        """Write what there is room for."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
        self._writer = None
