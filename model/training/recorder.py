"""The records of a run and who gets them: metrics.jsonl and TensorBoard on rank 0, and the caller's `report`."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mert_foundry.model.objective.trivial import TrivialScores, explained_shares
from mert_foundry.model.runs.checkpoint import CheckpointState
from mert_foundry.model.runs.kept import BEST_BY_VALIDATION, forget_best_after, keep_best_by_validation
from mert_foundry.model.runs.metrics_log import MetricsLog
from mert_foundry.model.training.pace import Pace
from mert_foundry.model.training.ranks import rank
from mert_foundry.model.training.stages import Stage
from mert_foundry.model.training.train_step import StepResult


class Recorder:
    """Records of a run: to metrics.jsonl and TensorBoard on rank 0, and to `report`. A context manager.

    With `trivial`, records of losses also say which share of the trivial loss each term explains.
    """

    def __init__(
        self,
        run_folder: Path,
        step: int,
        pace: Pace,
        report: Callable[[dict[str, Any]], None],
        trivial: TrivialScores | None = None,
    ):
        self._log = MetricsLog(run_folder, step) if rank() == 0 else None
        if rank() == 0:
            forget_best_after(run_folder / BEST_BY_VALIDATION, step)
        self._run_folder = run_folder
        self._report = report
        self._trivial = trivial
        self._pace = pace

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Raises OSError when records could not be written; it is a note of the error that there is already."""
        if self._log is None:
            return
        try:
            self._log.close()
        except OSError as fault:
            if error is None:
                raise
            error.add_note(str(fault))

    def step(self, state: CheckpointState, result: StepResult, rate: float, logged: bool) -> None:
        """Count a step, and record it when `logged` or when it was skipped, and its diagnostics if it has some."""
        self._pace.add(result.totals)
        if not result.finite:
            loss = result.summary["loss"]
            self._write({"kind": "skipped", "step": state.step, "loss": loss, "gradient_norm": result.gradient_norm})
        if logged:
            self._write(
                {
                    "kind": "train",
                    "step": state.step,
                    **result.summary,
                    **self._explained("train", result.summary),
                    "learning_rate": rate,
                    "gradient_norm": result.gradient_norm,
                    **self._pace.read(state.samples, result.totals["memory"]),
                    "skipped_steps": state.skipped_steps,
                    "position": state.position,
                }
            )
        if result.diagnostics is not None:
            self._write({"kind": "diagnostics", "step": state.step, **result.diagnostics})

    def has_validation(self, step: int) -> bool:
        """Whether an earlier start of this run recorded the validation at `step`; rank 0 knows, others say no."""
        return self._log is not None and self._log.holds("validation", step)

    def validation(self, step: int, summary: dict[str, Any]) -> None:
        """Record a validation."""
        self._write({"kind": "validation", "step": step, **summary, **self._explained("validation", summary)})

    def keep_best(self, step: int, summary: dict[str, Any]) -> None:
        """Keep the checkpoint of a validation that is to be recorded, if it is the best.

        One that cannot be kept is reported.
        """
        if self._log is None:
            return
        try:
            keep_best_by_validation(self._run_folder, step, summary)
        except OSError as error:
            self.fault("best_not_kept", step, str(error))

    def stage(self, stage: Stage) -> None:
        """Record that a stage begins, at the number of its first step."""
        self._write(
            {"kind": "stage", "step": stage.first_step, "batch_size": stage.rows, "crop_samples": stage.samples}
        )

    def spike(self, step: int, found: dict[str, Any]) -> None:
        """Record a step that was a spike (spikes.py)."""
        self._write({"kind": "spike", "step": step, **found})

    def rewind(self, step: int, spike_step: int, found: dict[str, Any]) -> None:
        """Record that the run goes back to a step, from that of a spike.

        It stands at the earlier step: later records are forgotten.
        """
        self._write({"kind": "rewind", "step": step, "spike_step": spike_step, **found})

    def fault(self, kind: str, step: int, error: str) -> None:
        """Record something that went wrong and did not end the run."""
        self._write({"kind": kind, "step": step, "error": error})

    def checkpoint(self, step: int, path: Path) -> None:
        """Report a checkpoint that has been published; it says itself that it is there, so metrics.jsonl does not."""
        self._report({"kind": "checkpoint", "step": step, "path": str(path)})

    def paused(self) -> AbstractContextManager[None]:
        """Time spent inside belongs to no training step."""
        return self._pace.paused()

    def _explained(self, kind: str, summary: dict[str, Any]) -> dict[str, dict[str, float]]:
        """`explained`: by loss term; nothing where no trivial loss is known."""
        shares = explained_shares(summary["losses"], self._trivial.on(kind)) if self._trivial else {}
        return {"explained": shares} if shares else {}

    def _write(self, record: dict[str, Any]) -> None:
        if self._log is not None:
            before = self._log.fault
            self._log.write(record)
            if self._log.fault is not None and before is None:
                self._report({"kind": "metrics_not_written", "step": record["step"], "error": self._log.fault})
        self._report(record)
