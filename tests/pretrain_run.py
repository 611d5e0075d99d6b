"""A run of `mert pretrain` that takes seconds: config file, in this process or in others, and what it left."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import yaml
from audio_files import mert_command, mert_environment

from mert_foundry.jobs import pretrain
from mert_foundry.jobs.command.line import run
from mert_foundry.model.runs.checkpoint import latest_checkpoint, load_weights

TIMINGS = ("audio_seconds_per_second", "data_wait_share")
CROP_SAMPLES = 20 * 320
CONFIG = {
    "stream": {"batch_size": 4, "crop_samples": CROP_SAMPLES, "shuffle_window": 2, "threads": 2},
    "encoder": {
        "frontend": {"channels": 16},
        "input_dropout": 0.1,
        "transformer": {
            "layers": 2,
            "width": 32,
            "heads": 2,
            "feed_forward": 64,
            "position_kernel": 8,
            "position_groups": 4,
            "layer_drop": 0.1,
        },
    },
    "objective": {"final_dim": 8},
    "trainer": {
        "mixture": {"min_samples": 500, "max_samples": 900},
        "schedule": {"learning_rate": 0.002, "warmup_steps": 4, "total_steps": 12},
        "log_every": 1,
        "validate_every": 10,
        "checkpoint_every": 5,
        "keep_checkpoints": 2,
    },
}
NO_DROPOUT = [
    "encoder.input_dropout=0",
    "encoder.transformer.dropout=0",
    "encoder.transformer.attention_dropout=0",
    "encoder.transformer.layer_drop=0",
]


def arguments(shards: Path, out: Path, *changes: str) -> list[str]:
    """The command line after `mert pretrain`; the config file lies beside the run folder."""
    config = out.with_name(out.name + ".yaml")
    config.write_text(yaml.safe_dump(CONFIG))
    return [str(config), f"shards={shards}", f"out={out}", *changes]


def pretrain_here(shards: Path, out: Path, *changes: str) -> int:
    """The command in this process, one rank, one arithmetic thread; returns its exit code."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run(pretrain.main, arguments(shards, out, *changes), pretrain.__doc__)
    finally:
        torch.set_num_threads(threads)


def start(ranks: int, shards: Path, out: Path, *changes: str) -> subprocess.Popen:
    """The command as a process, under torchrun when there are several ranks; its output lies beside `out`."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*torchrun, "-m", "mert_foundry.jobs.pretrain"] if ranks > 1 else mert_command("pretrain")
    return subprocess.Popen(
        [*command, *arguments(shards, out, *changes)],
        stdout=open(out.with_name(out.name + ".stdout"), "w"),
        stderr=open(out.with_name(out.name + ".stderr"), "w"),
        env=mert_environment(),
    )


def finish(process: subprocess.Popen) -> int:
    """Wait for the end; a process that hangs is killed with all its ranks, and the test fails."""
    try:
        return process.wait(timeout=200)
    except subprocess.TimeoutExpired:
        kill_all(process)
        raise


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL for the launcher and every rank of it; nothing when it has ended."""
    if process.poll() is not None:
        return
    processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in processes:
        one.kill()
    psutil.wait_procs(processes[1:], timeout=30)
    process.wait()


def wait_for_step(process: subprocess.Popen, out: Path, step: int) -> None:
    """Return as soon as a running process has recorded a step."""
    wait_until(process, lambda: any(record["step"] >= step for record in read_metrics(out, "train")))


def wait_until(process: subprocess.Popen, come: Callable[[], bool]) -> None:
    """Poll a condition while the process runs. Raises AssertionError when the process ends first."""
    while not come():
        try:
            process.wait(timeout=0.02)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"ended with exit code {process.returncode} before what the test waited for")


def read_metrics(out: Path, kind: str | None = None) -> list[dict]:
    """The whole records of metrics.jsonl, without timings; nothing when there is no such file yet."""
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [
        {name: value for name, value in record.items() if name not in TIMINGS}
        for record in records
        if kind in (None, record["kind"])
    ]


def final_weights(out: Path) -> dict[str, torch.Tensor]:
    """Weights of the newest whole checkpoint."""
    return load_weights(latest_checkpoint(out / "checkpoints")[0])


def checkpoint_names(out: Path) -> list[str]:
    """Names of the checkpoint folders, sorted."""
    return sorted(path.name for path in (out / "checkpoints").iterdir())
