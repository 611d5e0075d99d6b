"""What a training run shows while it runs: a bar on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Callable, Mapping
from math import isnan
from statistics import mean
from typing import Any

from tqdm import tqdm

from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.text import human_duration
from mert_foundry.model.objective.pretrain_model import UNMASKED
from mert_foundry.model.objective.trivial import TrivialScore, TrivialScores, explained_shares

# What is said with --quiet too.
FAULTS = ("failed_checkpoint", "older_checkpoint_stays", "metrics_not_written", "best_not_kept")


class TrainingReport:
    """Called with each record of the trainer (see `model.training.trainer.train`); a context manager.

    Args:
        total_steps: of the run.
        shown: False on ranks that have nothing to say; theirs is never called.
        trivial: what constants reach, to be shown beside the losses.

    watch: is called with each record too.
    """

    def __init__(self, total_steps: int, shown: bool, trivial: TrivialScores | None = None):
        self.total_steps = total_steps
        self.trivial = trivial
        self.watch: Callable[[dict[str, Any]], None] = lambda record: None
        self.bar = tqdm(total=total_steps, unit="step") if shown and sys.stderr.isatty() and not console.quiet else None

    def __enter__(self) -> "TrainingReport":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, record: dict[str, Any]) -> None:
        self.watch(record)
        if record["kind"] == "train" and self.bar is not None:
            self.bar.update(record["step"] - self.bar.n)
            self.bar.set_postfix_str(describe_step(record, self.trivial))
            return
        if record["kind"] == "resume" and self.bar is not None:
            # The bar's rate counts from here.
            self.bar.initial = self.bar.n = record["step"]
        show = self.warn if record["kind"] in FAULTS else self.note
        show(self._line(record))

    def note(self, text: str) -> None:
        """Print a line above the bar; nothing when it is empty, or with --quiet."""
        if text and not console.quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """Print a line above the bar, with --quiet too."""
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()

    def _line(self, record: dict[str, Any]) -> str:
        match record["kind"]:
            case "train":
                return f"step {record['step']}/{self.total_steps}: {describe_step(record, self.trivial)}"
            case "validation":
                return f"step {record['step']} validation: {describe_losses(record, self.trivial)}"
            case "checkpoint":
                return f"checkpoint: {record['path']}"
            case "resume":
                return f"resumed from step {record['step']}: {record['path']}"
            case "skipped":
                return f"step {record['step']} skipped: loss {record['loss']}, gradient norm {record['gradient_norm']}"
            case "incomplete_checkpoint":
                return f"passed over: {record['fault']}"
            case "best_not_kept":
                return (
                    f"step {record['step']} is the best by validation, but could not be kept as it: {record['error']}"
                )
            case "failed_checkpoint":
                return f"WARNING: {record['error']}; training goes on"
            case "older_checkpoint_stays" | "metrics_not_written":
                return f"WARNING: {record['error']}"
            case "stage":
                return (
                    f"from step {record['step']} on: batches of {record['batch_size']} crops of"
                    f" {record['crop_samples']} samples"
                )
            case "spike":
                return describe_spike(record)
            case "rewind":
                return (
                    f"back from step {record['spike_step']}, a spike, to the checkpoint of step {record['step']};"
                    " the batches between are passed over"
                )
            case "diagnostics":
                return ""  # for TensorBoard
            case kind:
                raise ValueError(f"unknown record kind {kind!r}")


def describe_spike(record: dict[str, Any]) -> str:
    """What was beyond which limit, and the examples of the rank with the largest share; metrics.jsonl
    has those of all.
    """
    beyond = [
        f"{name.replace('_', ' ')} {record[name]:.4g} (median {limits['median']:.4g}, limit {limits['limit']:.4g})"
        for name, limits in record["beyond"].items()
    ]
    keys = record["keys"][record["rank"]]
    more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
    skipped = " and is skipped" if record.get("skipped") else ""
    rows = f"rank {record['rank']}: {', '.join(keys[:4])}{more}"
    return f"step {record['step']} is a spike{skipped}: {', '.join(beyond)}; {rows}"


def describe_step(record: dict[str, Any], trivial: TrivialScores | None) -> str:
    """Losses, and how the run goes."""
    return f"{describe_losses(record, trivial)}; {describe_pace(record)}"


def describe_pace(record: dict[str, Any]) -> str:
    """Throughput, the share of time spent waiting for data, the used share of the devices, and the time left."""
    is_text = "tokens_per_second" in record
    parts = [
        f"{record['tokens_per_second']:,.0f} tokens/s"
        if is_text
        else f"{record['audio_seconds_per_second']:.1f} audio s/s",
        f"{record['data_wait_share']:.0%} waiting for data",
    ]
    if "mfu" in record:
        parts.append(f"MFU {record['mfu']:.1%}")
    if "eta_seconds" in record:
        parts.append(f"{human_duration(record['eta_seconds'])} left")
    if "slowest" in record:
        parts.append(f"rank {record['slowest']['rank']} is {record['slowest']['behind']:.0%} of a step behind")
    if record["skipped_steps"]:
        parts.append(f"{record['skipped_steps']} skipped")
    return ", ".join(parts)


def describe_losses(record: dict[str, Any], trivial: TrivialScores | None) -> str:
    """The loss, its parts and the accuracies, each beside what a constant reaches where that is known.

    Such as `loss 41.6; codes 5.10 nats a codebook (unigram 6.60, 22.7% explained), cqt 0.218 (mean 0.295, 26.1%
    explained); codes accuracy 3.12% (most frequent code 2.20%)`.
    """
    scores = trivial.on(record["kind"]) if trivial else {}
    shares = explained_shares(record["losses"], scores)
    parts = []
    for name, loss in record["losses"].items():
        target = name.removeprefix(UNMASKED)
        parts.append(_describe_loss(name, loss, len(record["accuracy"].get(target, [])), scores.get(target), shares))
    accuracies = [_describe_accuracy(name, levels, scores.get(name)) for name, levels in record["accuracy"].items()]
    return "; ".join([f"loss {record['loss']:.3f}", ", ".join(parts), *accuracies])


def describe_trivial(scores: TrivialScores) -> str:
    """What the losses are compared with, and which are not compared with anything, and why."""
    lines = [f"beside each loss: {scores.basis}"]
    return "\n".join([*lines, *(f"{name}: not compared: {why}" for name, why in scores.unknown.items())])


def _describe_loss(
    name: str, loss: float, codebooks: int, score: TrivialScore | None, shares: Mapping[str, float]
) -> str:
    """One term: codes, which have `codebooks`, in nats for each of them."""
    explained = f", {shares[name]:.1%} explained" if name in shares else ""
    if codebooks:
        beside = f" (unigram {score.loss / codebooks:.2f}{explained})" if score else ""
        return f"{name} {loss / codebooks:.2f} nats a codebook{beside}"
    return f"{name} {loss:.3f}" + (f" (mean {score.loss:.3f}{explained})" if score else "")


def _describe_accuracy(name: str, levels: list[float], score: TrivialScore | None) -> str:
    """The mean over codebooks but those left out, and how often the most frequent code is right in these."""
    used = [number for number, level in enumerate(levels) if not isnan(level)]
    beside = f" (most frequent code {mean(score.most_frequent[number] for number in used):.2%})" if score else ""
    return f"{name} accuracy {mean(levels[number] for number in used):.2%}{beside}"
