"""A run of `mert pretrain` that takes seconds: config file, in this process or in others, and what it left."""

import fcntl
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO

import psutil
import torch
import yaml
from audio_files import mert_command, mert_environment, wait_until
from forked import Forked, forked_mert, forked_torchrun

from mert_foundry.jobs import pretrain
from mert_foundry.jobs.command.line import run
from mert_foundry.model.runs.checkpoint import latest_checkpoint, load_weights

TIMINGS = (
    "audio_seconds_per_second",
    "data_wait_share",
    "seconds",
    "operations_per_second",
    "mfu",
    "slowest",
    "memory_peak_bytes",
    "eta_seconds",
)
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


def start(
    ranks: int, shards: Path, out: Path, *changes: str, variables: Mapping[str, str] = MappingProxyType({})
) -> subprocess.Popen:
    """The command as a process, under torchrun when there are several ranks; its output lies beside `out`.

    variables: of the environment, beside its own.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", *torchrun_options(ranks)]
    command = [*torchrun, "-m", "mert_foundry.jobs.pretrain"] if ranks > 1 else mert_command("pretrain")
    return subprocess.Popen(
        [*command, *arguments(shards, out, *changes)],
        stdout=open(output_of(out, "stdout"), "w"),
        stderr=open(output_of(out, "stderr"), "w"),
        env={**mert_environment(), **variables},
    )


def start_forked(
    ranks: int,
    shards: Path,
    out: Path,
    *changes: str,
    restarts: int = 0,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Forked:
    """As `start`, under a torchrun that has its imports already, and so have the ranks."""
    options = [*torchrun_options(ranks), f"--max-restarts={restarts}"]
    words = ["pretrain", *arguments(shards, out, *changes)]
    environment = {**mert_environment(), **variables}
    return forked_torchrun(options, words, output_of(out, "stdout"), output_of(out, "stderr"), environment)


def torchrun_options(ranks: int) -> list[str]:
    return [f"--nproc-per-node={ranks}", "--monitor-interval=0.1"]


def output_of(out: Path, stream: str) -> Path:
    """Where a started run leaves what it says on stdout or stderr."""
    return out.with_name(f"{out.name}.{stream}")


class Ranks:
    """Ranks of one run without torchrun, each forked, and started with arguments of its own."""

    def __init__(self, out: Path, words_of_ranks: Sequence[Sequence[str]]):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        group |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(len(words_of_ranks)))
        self.processes = [
            forked_mert(
                ["pretrain", *words],
                output_of(out, "stdout"),
                output_of(out, "stderr"),
                {**mert_environment(), **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank, words in enumerate(words_of_ranks)
        ]

    def finish(self) -> list[int]:
        """Wait for the end; the exit code of each. Ranks that hang are killed, and the test fails."""
        try:
            return [process.wait(timeout=200) for process in self.processes]
        finally:
            self.kill()

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait(30)


@contextmanager
def held_back(ranks: int, shards: Path, out: Path, *changes: str) -> Iterator[IO[bytes]]:
    """Ranks at work whose stderr is `one_page`, which is given. SIGKILL ends all of them."""
    with one_page(out) as open_page:
        run = Ranks(out, [arguments(shards, out, *changes)] * ranks)
        try:
            with open_page() as page:
                yield page
                assert [process.poll() for process in run.processes] == [None] * ranks, "ended before it was killed"
        finally:
            run.kill()


@contextmanager
def launcher_held_back(ranks: int, shards: Path, out: Path, *changes: str) -> Iterator[IO[bytes]]:
    """As `held_back`, by torchrun: SIGKILL ends the launcher and its ranks."""
    with one_page(out) as open_page:
        process = start_forked(ranks, shards, out, *changes)
        try:
            with open_page() as page:
                yield page
                assert process.poll() is None, "ended before it was killed"
                kill_all(process)
        finally:
            kill_all(process)


@contextmanager
def one_page(out: Path) -> Iterator[Callable[[], IO[bytes]]]:
    """The stderr of a run that starts now is a pipe of one page: some 20 lines fill it, then the ranks stand still.

    So they are never far beyond the step that the test has read of, however slowly the test comes to run. It is opened
    when they have started.
    """
    stderr = output_of(out, "stderr")
    stderr.unlink(missing_ok=True)
    os.mkfifo(stderr)

    def open_page() -> IO[bytes]:
        page = open(stderr, "rb", buffering=0)
        fcntl.fcntl(page, fcntl.F_SETPIPE_SZ, 4096)
        return page

    try:
        yield open_page
    finally:
        stderr.unlink()


def read_steps(stderr: IO[bytes], count: int) -> str:
    """Read what ranks say that are held back until they tell of so many steps; returns what was read.

    Raises AssertionError when they end before.
    """
    lines: list[str] = []
    for line in stderr:
        lines.append(line.decode())
        count -= re.match(r"step \d+/", lines[-1]) is not None
        if not count:
            return "".join(lines)
    raise AssertionError(f"ended before {count} more steps:\n{''.join(lines)}")


def finish(process: subprocess.Popen | Forked) -> int:
    """Wait for the end; a process that hangs is killed with all its ranks, and the test fails."""
    try:
        return process.wait(timeout=200)
    except subprocess.TimeoutExpired:
        kill_all(process)
        raise


def kill_all(process: subprocess.Popen | Forked) -> None:
    """SIGKILL for the launcher and every rank of it; nothing when it has ended."""
    if process.poll() is not None:
        return
    launcher = psutil.Process(process.pid)
    launcher.suspend()  # so that it starts no rank that would outlive it
    ranks = launcher.children(recursive=True)
    for one in [*ranks, launcher]:
        one.kill()
    process.wait()
    _, alive = psutil.wait_procs(ranks, timeout=30)
    assert not alive, alive


def ranks_of(launcher: Forked) -> list[psutil.Process]:
    """The ranks that a forked launcher has now."""
    return psutil.Process(launcher.pid).children()


def wait_for_step(process: subprocess.Popen | Forked, out: Path, step: int) -> None:
    """Return as soon as a running process has recorded a step."""
    wait_until(process, lambda: any(record["step"] >= step for record in read_metrics(out, "train")))


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
