"""The checkpoints of a run as it goes on: copied by all ranks, written by a thread of rank 0, and what happens when one
cannot be written.
"""

from collections.abc import Callable
from pathlib import Path

from mert_foundry.model.runs.checkpoint import CheckpointState, checkpoint_step
from mert_foundry.model.runs.checkpoint_writer import CheckpointWriter, OlderCheckpointStays
from mert_foundry.model.training.ranks import rank
from mert_foundry.model.training.recorder import Recorder
from mert_foundry.model.training.sharding import copy_to_rank_zero
from mert_foundry.model.training.train_step import TrainStep
from mert_foundry.model.training.weight_average import WeightAverage


class Saving:
    """Saves a run.

    A checkpoint that cannot be written is reported, and the run goes on with the one before as its newest.

    Args:
        newest: the checkpoint that the run goes on from; None for one that begins.
        limit: failed checkpoints in a row that end the run; the failure of its last one always does.

    newest: the last checkpoint that is there or under way, on every rank.
    """

    def __init__(self, writer: CheckpointWriter, recorder: Recorder, newest: Path | None, limit: int):
        self.newest = newest
        self._writer = writer
        self._recorder = recorder
        self._limit = limit
        self._whole = newest
        self._failures = 0

    def start(self, state: CheckpointState, trainee: TrainStep, average: WeightAverage | None) -> None:
        """Rank 0 takes a copy of everything and begins to write it; the write before must be done.

        All ranks call it together.
        """
        with self._recorder.paused():
            held = (trainee.model.state_dict(), trainee.optimizer.state_dict(), average.weights if average else None)
            weights, moments, averaged = (copy_to_rank_zero(values) for values in held)
            if rank() == 0:
                self._writer.start(state, weights, moments, averaged)
        self.newest = self._writer.folder / f"step_{state.step}"

    def poll(self) -> None:
        """Report the write under way, if it has ended. Raises OSError when too many have failed."""
        self._take(self._writer.poll)

    def finish(self, last: bool = False) -> None:
        """On rank 0, wait for the write under way, if there is one.

        Raises as `poll`; with `last`, when this one has failed.
        """
        with self._recorder.paused():
            self._take(self._writer.wait, last)

    def _take(self, ask: Callable[[], Path | None], last: bool = False) -> None:
        try:
            whole = ask()
        except OlderCheckpointStays as error:
            self._recorder.fault("older_checkpoint_stays", checkpoint_step(error.checkpoint), str(error))
            whole = error.checkpoint
        except OSError as error:
            self._failures += 1
            self._give_up_or_report(error, last)
            return
        if whole is not None:
            self._failures, self._whole = 0, whole
            self._recorder.checkpoint(checkpoint_step(whole), whole)

    def _give_up_or_report(self, error: OSError, last: bool) -> None:
        before = f"the newest whole checkpoint is {self._whole}" if self._whole else "there is no whole checkpoint"
        if last:
            raise OSError(f"{error}; it was the last of this run, {before}") from error
        if self._failures >= self._limit:
            raise OSError(
                f"{error}; {self._failures} in a row have failed (trainer.max_failed_checkpoints), {before}"
            ) from error
        assert self.newest is not None, "something was being written"
        count = f"failed in a row: {self._failures}, the run ends at {self._limit}"
        self._recorder.fault("failed_checkpoint", checkpoint_step(self.newest), f"{error}; {before}; {count}")
