"""The records of a run and who gets them: metrics.jsonl and TensorBoard on rank 0, and the caller's `report`."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from model.checkpoint import CheckpointState
from model.metrics import MetricsLog, Throughput
from model.ranks import rank, world_size
from model.train_step import StepResult


class Recorder:
    """Records of a run: to metrics.jsonl and TensorBoard on rank 0, and to `report`. A context manager."""

    def __init__(self, run_folder: Path, step: int, sample_rate: int, report: Callable[[dict[str, Any]], None]):
        self._log = MetricsLog(run_folder, step) if rank() == 0 else None
        self._sample_rate = sample_rate
        self._report = report
        self._throughput = Throughput()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._log is not None:
            self._log.close()

    def step(self, state: CheckpointState, result: StepResult, rate: float, logged: bool) -> None:
        """Count a step, and record it when `logged` or when it was skipped, and its diagnostics if it has some."""
        wait_seconds = float(result.totals["wait"]) / world_size()
        self._throughput.add(float(result.totals["samples"]) / self._sample_rate, wait_seconds)
        if not result.finite:
            loss = result.summary["loss"]
            self._write(
                {"kind": "skipped", "step": state.step, "loss": loss, "gradient_norm": result.gradient_norm}
            )
        if logged:
            self._write(
                {
                    "kind": "train",
                    "step": state.step,
                    **result.summary,
                    "learning_rate": rate,
                    "gradient_norm": result.gradient_norm,
                    **self._throughput.read(),
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
        self._write({"kind": "validation", "step": step, **summary})

    def checkpoint(self, step: int, path: Path) -> None:
        """Report a checkpoint; it says itself that it is there, so metrics.jsonl does not."""
        self._report({"kind": "checkpoint", "step": step, "path": str(path)})

    def aside(self) -> AbstractContextManager[None]:
        """Time spent inside belongs to no training step."""
        return self._throughput.aside()

    def _write(self, record: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(record)
        self._report(record)
