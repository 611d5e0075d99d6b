"""All that a GPU must show, in one go: tests, labelling, training steps, and a run of the recipe, as one table.

    mert bench gpu runs/gpu
    mert bench gpu runs/gpu --music MUSIC_FOLDER --minutes 60

These run one after the other, each in a process of its own, together in under 25 minutes on an H100:

    tests    pytest -m gpu, where there is a folder tests/
    label    mert bench label in fp32, tf32 and bf16
    step     mert bench step of 95m and 330m in bf16, eager and with compiled layers, 64 and 128 crops
    run      mert label, then mert pretrain configs/mert_95m.yaml on those shards: 200 steps of 64 crops

OUT gets report.md (the table), report.json, and of each measurement what it printed (.out) and its messages (.log). One
that fails stands in the table with its last line. The others go on, and the exit code is 1.

    --music FOLDER    audio to label; tests/data/music
    --minutes 30      of it, at most, for each precision of mert bench label
    --json            report.json on stdout instead of the table
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mert_foundry.jobs.benchmarks.measurement import Figures
from mert_foundry.jobs.command.config import UsageError
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.command.preflight import check_cuda, check_writable

MUSIC, RECIPE = Path("tests/data/music"), Path("configs/mert_95m.yaml")
RUN_STEPS, RUN_LOG_EVERY, RUN_CROPS = 200, 20, 64
WARM_UP_RECORDS = 2  # of the run, whose steps allocate memory and choose kernels

Row = dict[str, str]


@dataclass(frozen=True)
class Measurement:
    """A module with its arguments, and the rows of the table that what it prints comes to."""

    name: str
    command: Sequence[str]
    read_rows: Callable[[str], Iterable[Row]] = lambda printed: ()


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    shutil.rmtree(options.out / "run", ignore_errors=True)  # of an earlier call, from which the run would go on
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "measurements": [measure(each, options.out) for each in list_measurements(options)],
    }
    (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (options.out / "report.md").write_text(as_markdown(report))
    console.answer(report, [as_markdown(report), f"report: {options.out / 'report.md'}"])
    return 1 if any(each["failed"] for each in report["measurements"]) else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options. Raises UsageError where there is no GPU, no music or no recipe."""
    parser = argparse.ArgumentParser(prog="mert bench gpu", add_help=False)
    parser.add_argument("out", type=Path)
    parser.add_argument("--music", type=Path, default=MUSIC)
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args(arguments)
    check_cuda("cuda")
    for path in (options.music, RECIPE):
        if not path.exists():
            raise UsageError(f"mert bench gpu: {path} is not there; call it in a checkout of mert-foundry")
    options.out.mkdir(parents=True, exist_ok=True)
    check_writable(options.out / "report.json")
    return options


def list_measurements(options: argparse.Namespace) -> Iterator[Measurement]:
    """All that is to be run, in order; shards and checkpoints of the run go into OUT/run."""
    if Path("tests").is_dir():
        yield Measurement("tests", ["pytest", "-m", "gpu", "-q"], read_tests)
    for precision in ("fp32", "tf32", "bf16"):
        arguments = ["label", str(options.music), "--precision", precision, "--minutes", f"{options.minutes:g}"]
        yield Measurement(f"label-{precision}", bench(*arguments), read_label)
    for layout in ("95m", "330m"):
        arguments = ["step", "--layout", layout, "--batch", "64,128", "--only", "ours,ours compiled"]
        yield Measurement(f"step-{layout}", bench(*arguments), read_step)
    folder = options.out / "run"
    manifest, shards, trained = folder / "manifest", folder / "shards", folder / "trained"
    yield Measurement(
        "run-manifest", job("manifest", "configs/manifest.yaml", f"root={options.music}", f"out={manifest}")
    )
    labels = (f"manifest={manifest}", f"out={shards}", "teachers.0.weights=foundry-small", "device=cuda")
    yield Measurement("run-label", job("label", "configs/label.yaml", *labels))
    settings = (
        f"stream.batch_size={RUN_CROPS}",
        f"trainer.schedule.total_steps={RUN_STEPS}",
        f"trainer.schedule.warmup_steps={RUN_LOG_EVERY}",
        f"trainer.log_every={RUN_LOG_EVERY}",
        f"trainer.checkpoint_every={RUN_STEPS}",
    )
    train = job("pretrain", str(RECIPE), f"shards={shards}", f"out={trained}", *settings)
    yield Measurement("run", train, lambda printed: read_run(trained / "metrics.jsonl"))


def bench(*arguments: str) -> list[str]:
    """The module of a benchmark on the GPU, and its arguments."""
    return job("bench", *arguments, "--device", "cuda", "--json")


def job(name: str, *arguments: str) -> list[str]:
    """The module of a command of ours, and its arguments."""
    return [f"mert_foundry.jobs.{name}", *arguments]


def measure(measurement: Measurement, out: Path) -> Figures:
    """Run one; `failed` holds the last line of what it said, where its exit code is not 0."""
    console.say(f"{measurement.name}: {' '.join(measurement.command)}")
    printed, messages = out / f"{measurement.name}.out", out / f"{measurement.name}.log"
    begin = time.monotonic()
    with open(printed, "w") as stdout, open(messages, "w") as stderr:
        code = subprocess.run(
            [sys.executable, "-m", *measurement.command], stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
        ).returncode
    failed = f"exit code {code}: {last_line(messages) or last_line(printed)}" if code else None
    rows = [] if failed else list(measurement.read_rows(printed.read_text()))
    return {
        "name": measurement.name,
        "command": list(measurement.command),
        "seconds": time.monotonic() - begin,
        "failed": failed,
        "rows": rows,
    }


def last_line(path: Path) -> str:
    """The last line of a file that is not empty; empty where there is none."""
    return next((line for line in reversed(path.read_text(errors="replace").splitlines()) if line.strip()), "")


def read_tests(printed: str) -> Iterator[Row]:
    """pytest's closing line."""
    yield {"what": "pytest -m gpu", "result": printed.strip().splitlines()[-1].strip("= ")}


def read_label(printed: str) -> Iterator[Row]:
    """Rates of the teachers alone and of the whole, and the share of frames whose codes are those of the published
    path.
    """
    report = json.loads(printed)
    rates = report["times_real_time"]
    found = report["agreement"]
    yield {
        "what": f"label, {report['codec']['precision']}, {report['audio_hours']:.2f} h",
        "result": f"teachers {rates['teachers']['ours']:,.0f}x real time, with decoding {rates['whole']['ours']:,.0f}x",
        "memory": f"{report['peak_bytes']['ours'] / 1e9:.1f} GB",
        "note": f"codes of {found['code_frames_equal']:.2%} of frames equal the published path's",
    }


def read_step(printed: str) -> Iterator[Row]:
    """A row for each batch size and variant."""
    for report in json.loads(printed):
        settings = report["settings"]
        for variant, row in report["variants"].items():
            what = f"step, {settings['layout']}, {settings['precision']}, {settings['batch']} crops, {variant}"
            if "failed" in row:
                yield {"what": what, "result": f"not measured: {row['failed']}"}
            else:
                yield {
                    "what": what,
                    "result": f"{row['audio_seconds_per_second']:,.0f} audio seconds a second",
                    "memory": f"{row['peak_bytes'] / 1e9:.1f} GB",
                    "note": f"{row['share_of_peak']:.1%} of the peak of one matrix product",
                }


def read_run(metrics: Path) -> Iterator[Row]:
    """Medians over the records of a run's steps, without the first ones."""
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "train"][WARM_UP_RECORDS:]
    rate, waiting = (
        statistics.median(record[name] for record in steps) for name in ("audio_seconds_per_second", "data_wait_share")
    )
    yield {
        "what": f"run, {RECIPE.stem}, {RUN_CROPS} crops",
        "result": f"{rate:,.0f} audio seconds a second",
        "note": f"{waiting:.1%} of the time waiting for data",
    }


def as_markdown(report: dict[str, Any]) -> str:
    """The table, with what failed in it."""
    columns = ("what", "result", "memory", "note")
    rows = []
    for measured in report["measurements"]:
        failed = [{"what": measured["name"], "result": f"failed: {measured['failed']}"}] if measured["failed"] else []
        rows += [*failed, *measured["rows"]]
    lines = [" | ".join(row.get(column, "").replace("|", "/") for column in columns) for row in rows]
    table = "\n".join(f"| {line} |" for line in (" | ".join(columns), " | ".join("---" for _ in columns), *lines))
    minutes = sum(measured["seconds"] for measured in report["measurements"]) / 60
    return f"{report['device']}, torch {report['torch']}, {minutes:.0f} minutes in all\n\n{table}\n"


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__))
