"""Time a pre-training step of ours against transformers' HubertModel with heads as MERT's code writes them.

    mert bench step
    mert bench step --layout 95m --batch 4 --seconds 5 --rounds 3 --json
    mert bench step --layout 330m --device cuda --batch 8,16,32 --only 'ours,ours compiled'

    mert bench step CONFIG --dry [--gpus 8]    what a step of a config takes, without running it

A step is forward, backward, gradient clipping and AdamW, in the same precision, with the same weights, masks, dropout
and batch for all. Variants take turns, each in a process of its own, so peak memory is a variant's own: on a CPU the
process's largest resident set, on CUDA the largest allocated. Parameters, gradients and moments alone are 16 bytes a
weight (1.5 GB at 95M), so ratios of memory depend on the batch. Layer drop is off. `peak` is the rate of a large
matrix product in that precision on that device; the share of it counts a plain step's operations, without what
checkpointing repeats. Needs transformers.

    --layout 95m | 330m | small    sizes of the model; 95m
    --batch 4      crops a step; several with commas are measured one after another
    --seconds 5    length of a crop
    --rounds 3     turns of each variant; medians are reported
    --steps 1      steps timed in a turn, after one that warms up
    --dropout 0.1  every dropout; the recipe's where not given
    --device auto | cpu | cuda     auto: cuda where there is one; cpu where not given
    --precision auto | fp32 | tf32 | bf16
                   auto, also where not given: fp32 on cpu, bf16 on cuda; tf32 needs a GPU
    --only A,B     these variants; `hubert eager`, `hubert sdpa` and `ours` where not given
    --all          all of them: also `hubert sdpa compiled`, `ours checkpointed`, `ours checkpointed front-end`,
                   `ours compiled`, and `ours sdpa B` for B of math, flash, efficient, cudnn
    --json         the report as JSON
"""

import argparse
import sys
import time

import torch
from pydantic import ValidationError

from mert_foundry.jobs.benchmarks.measurement import Figures, in_own_process, median, take_turns
from mert_foundry.jobs.benchmarks.step_variant import (
    LAYOUTS,
    SAMPLE_RATE,
    VARIANTS,
    StepSettings,
    build,
    count_operations,
)
from mert_foundry.jobs.command.config import UsageError, explain
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.command.preflight import check_cuda, check_precision, resolve_device
from mert_foundry.model.training.precision import set_precision

BASELINES = ("hubert eager", "hubert sdpa")
OURS = "ours"


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    reports = [measure_batch(options, settings) for settings in all_settings(options)]
    console.answer(reports, ["\n\n".join(map(as_table, reports))])
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mert bench step", add_help=False)
    parser.add_argument("--layout", choices=LAYOUTS, default="95m")
    parser.add_argument("--batch", type=whole_numbers, default=[4])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("auto", "fp32", "tf32", "bf16"), default="auto")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[*BASELINES, OURS])
    parser.add_argument("--all", dest="only", action="store_const", const=list(VARIANTS))
    options = parser.parse_args(arguments)
    unknown = [name for name in options.only if name not in VARIANTS]
    if unknown:
        raise UsageError(f"mert bench step: no variant {unknown[0]!r}, only {', '.join(VARIANTS)}")
    if options.rounds < 1:
        raise UsageError(f"mert bench step: --rounds is {options.rounds}, at least 1 is needed")
    check_cuda(options.device)
    options.device = resolve_device(options.device)
    check_precision("mert bench step: --precision", options.precision, options.device)
    if options.precision == "auto":
        options.precision = "bf16" if options.device == "cuda" else "fp32"
    return options


def whole_numbers(text: str) -> list[int]:
    """`8,16` -> [8, 16]"""
    return [int(part) for part in text.split(",")]


def all_settings(options: argparse.Namespace) -> list[StepSettings]:
    """One for each batch size. Raises UsageError naming the option that is out of its range."""
    shared = {name: getattr(options, name) for name in ("layout", "seconds", "dropout", "device", "precision", "steps")}
    try:
        return [StepSettings(batch=batch, **shared) for batch in options.batch]
    except ValidationError as error:
        raise UsageError(f"mert bench step: --{explain(error, StepSettings)[0]}") from error


def measure_batch(options: argparse.Namespace, settings: StepSettings) -> Figures:
    """All variants at one batch size: medians over the rounds, and ours against the better baseline."""
    results = take_turns(
        options.only,
        options.rounds,
        lambda name: in_own_process(
            "mert_foundry.jobs.benchmarks.step_variant", {**settings.model_dump(), "variant": name}
        ),
    )
    operations = count_operations(build(settings), settings)
    peak = matrix_rate(options.device, options.precision)
    rows = {name: summarise(figures, settings, operations, peak) for name, figures in results.items()}
    return {
        "settings": settings.model_dump(exclude={"variant"})
        | {"rounds": options.rounds, "threads": torch.get_num_threads()},
        "operations_a_step": operations,
        "peak_operations_per_second": peak,
        "variants": rows,
        "ours_to_better_baseline": compare(rows),
    }


def summarise(figures: list[Figures], settings: StepSettings, operations: float, peak: float) -> Figures:
    """One variant's row."""
    if "failed" in figures[0]:
        return figures[0]
    seconds = median(figures, "seconds")
    return {
        "seconds_a_step": seconds,
        "audio_seconds_per_second": settings.batch * settings.seconds / seconds,
        "peak_bytes": median(figures, "peak_bytes"),
        "share_of_peak": operations / seconds / peak,
        "first_loss": figures[0]["first_loss"],
    }


def compare(rows: dict[str, Figures]) -> Figures | None:
    """Ours against the faster and against the smaller of the baselines that ran; None when there is
    nothing to compare.
    """
    baselines = [rows[name] for name in BASELINES if name in rows and "failed" not in rows[name]]
    ours = rows.get(OURS, {"failed": ""})
    if not baselines or "failed" in ours:
        return None
    return {
        "speed": min(row["seconds_a_step"] for row in baselines) / ours["seconds_a_step"],
        "memory": ours["peak_bytes"] / min(row["peak_bytes"] for row in baselines),
    }


def matrix_rate(device: str, precision: str) -> float:
    """Operations per second of a square matrix product, the best of those made in about a second."""
    set_precision(precision)
    size = 8192 if device == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    first, second = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    best, stop = float("inf"), time.perf_counter() + 1.0
    while best == float("inf") or time.perf_counter() < stop:
        begin = time.perf_counter()
        torch.mm(first, second)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def as_table(report: Figures) -> str:
    """The report for a terminal."""
    settings = report["settings"]
    dropout = "the recipe's" if settings["dropout"] is None else settings["dropout"]
    lines = [
        f"{settings['layout']}, {settings['batch']} crops of {settings['seconds']:g} s at {SAMPLE_RATE} Hz, dropout"
        f" {dropout}, {settings['precision']} on {settings['device']}, {settings['threads']} threads, medians of"
        f" {settings['rounds']} rounds",
        f"{report['operations_a_step'] / 1e12:.2f} T operations a step, peak"
        f" {report['peak_operations_per_second'] / 1e12:.2f} T/s",
        f"{'variant':29} {'s a step':>9} {'audio s/s':>10} {'GB peak':>8} {'of peak':>8} {'first loss':>11}",
    ]
    for name, row in report["variants"].items():
        if "failed" in row:
            lines.append(f"{name:29} not measured: {row['failed']}")
        else:
            lines.append(
                f"{name:29} {row['seconds_a_step']:9.3f} {row['audio_seconds_per_second']:10.2f} "
                f"{row['peak_bytes'] / 1e9:8.2f} {row['share_of_peak']:8.1%} {row['first_loss']:11.4f}"
            )
    ratios = report["ours_to_better_baseline"]
    if ratios is not None:
        lines.append(
            f"ours is {ratios['speed']:.2f} times as fast as the better baseline, with {ratios['memory']:.2f} of its"
            " memory"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__))
