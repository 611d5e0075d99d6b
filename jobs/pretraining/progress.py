"""What a training run shows while it runs: a bar on a terminal, plain lines elsewhere."""

import sys
from math import isnan
from statistics import mean
from typing import Any

from tqdm import tqdm

from mert_foundry.jobs.command.console import console


class TrainingReport:
    """Called with each record of the trainer (see `model.trainer.train`); a context manager.

    Args:
        total_steps: of the run.
        shown: False on ranks that have nothing to say; theirs is never called.
    """

    def __init__(self, total_steps: int, shown: bool):
        self.total_steps = total_steps
        self.bar = tqdm(total=total_steps, unit="step") if shown and sys.stderr.isatty() and not console.quiet else None

    def __enter__(self) -> "TrainingReport":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, record: dict[str, Any]) -> None:
        if record["kind"] == "train" and self.bar is not None:
            self.bar.update(record["step"] - self.bar.n)
            self.bar.set_postfix_str(describe_step(record))
            return
        if record["kind"] == "resume" and self.bar is not None:
            # The bar's rate counts from here.
            self.bar.initial = self.bar.n = record["step"]
        self.note(self._line(record))

    def note(self, text: str) -> None:
        """Print a line above the bar; nothing when it is empty, or with --quiet."""
        if text and not console.quiet:
            tqdm.write(text, file=sys.stderr)
            sys.stderr.flush()

    def _line(self, record: dict[str, Any]) -> str:
        match record["kind"]:
            case "train":
                return f"step {record['step']}/{self.total_steps}: {describe_step(record)}"
            case "validation":
                return f"step {record['step']} validation: {describe_losses(record)}"
            case "checkpoint":
                return f"checkpoint: {record['path']}"
            case "resume":
                return f"resumed from step {record['step']}: {record['path']}"
            case "skipped":
                return f"step {record['step']} skipped: loss {record['loss']}, gradient norm {record['gradient_norm']}"
            case "torn_checkpoint":
                return f"passed over: {record['fault']}"
            case "diagnostics":
                return ""  # for TensorBoard
            case kind:
                raise ValueError(f"unknown record kind {kind!r}")


def describe_step(record: dict[str, Any]) -> str:
    """Losses, throughput and the share of time spent waiting for data."""
    skipped = f", {record['skipped_steps']} skipped" if record["skipped_steps"] else ""
    return (
        f"{describe_losses(record)}, {record['audio_seconds_per_second']:.1f} audio s/s,"
        f" {record['data_wait_share']:.0%} waiting for data{skipped}"
    )


def describe_losses(record: dict[str, Any]) -> str:
    """The loss, its parts, and the mean accuracy over codebooks, but those left out, of each discrete target."""
    parts = ", ".join(f"{name} {value:.3f}" for name, value in record["losses"].items())
    accuracy = "".join(
        f", {name} accuracy {mean(level for level in levels if not isnan(level)):.2%}"
        for name, levels in record["accuracy"].items()
    )
    return f"loss {record['loss']:.3f} ({parts}){accuracy}"
