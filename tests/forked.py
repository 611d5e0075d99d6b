"""Processes forked from one that has imported what takes seconds: ranks, and commands whose start is not what is
tested.
"""

import os
import runpy
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

# Torch's compiler comes with the first optimizer; the scan is what the processes of `mert manifest` have.
IMPORTED = [
    "torch._dynamo",
    *(f"mert_foundry.jobs.{name}" for name in ("codec", "extract", "manifest", "pretrain")),
    "mert_foundry.pipeline.manifest.scan",
]


def forking() -> ForkServerContext:
    """The context of `multiprocessing` whose processes have `IMPORTED`.

    Its server has no threads and nothing of the tests, so each process begins as one that has just imported that.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


class Forked:
    """A process at work on a function, with those methods of `subprocess.Popen` that the tests use."""

    def __init__(self, function: Callable, *arguments: object):
        self._process = forking().Process(target=function, args=arguments)
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self._process.exitcode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def forked_mert(words: Sequence[str], stdout: Path, stderr: Path, environment: dict[str, str]) -> Forked:
    """The `mert` command as leader of a process group; what it says is added to the files."""
    return Forked(_run_mert, list(words), stdout, stderr, environment)


def forked_torchrun(
    options: Sequence[str], words: Sequence[str], stdout: Path, stderr: Path, environment: dict[str, str]
) -> Forked:
    """`torchrun --standalone OPTIONS` of the `mert` command, as `forked_mert`; its ranks are forked too, and its
    children.
    """
    return Forked(_run_torchrun, list(options), list(words), stdout, stderr, environment)


def forked_module(command: Sequence[str], capture_output: bool, text: bool) -> subprocess.CompletedProcess:
    """In place of `subprocess.run` for `python -m MODULE ARGUMENTS`: a process of its own that has its
    imports already.
    """
    assert capture_output and text and command[1] == "-m"
    with TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        process = Forked(_run_module, *command[2:4], *outputs, {"OMP_NUM_THREADS": "1"} | os.environ)
        code = process.wait(300)
        return subprocess.CompletedProcess(command, code, *(output.read_text() for output in outputs))


def _run_module(module: str, argument: str, stdout: Path, stderr: Path, environment: dict[str, str]) -> None:
    _begin(stdout, stderr, environment)
    sys.argv = [module, argument]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _run_mert(words: list[str], stdout: Path, stderr: Path, environment: dict[str, str]) -> None:
    _begin(stdout, stderr, environment)
    _mert(*words)


def _run_torchrun(
    options: list[str], words: list[str], stdout: Path, stderr: Path, environment: dict[str, str]
) -> None:
    """As `torch.distributed.run.run`, but that a rank is a function, which torch can start by a fork."""
    from torch.distributed import run

    _begin(stdout, stderr, environment)
    group = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", f"--rdzv-id={uuid.uuid4()}"]
    config, _, _ = run.config_from_args(run.parse_args([*group, *options, "mert"]))
    run.elastic_launch(replace(config, start_method="fork"), _mert)(*words)


def _begin(stdout: Path, stderr: Path, environment: dict[str, str]) -> None:
    os.setsid()
    for number, path in ((1, stdout), (2, stderr)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # torch has read the server's


def _mert(*words: str) -> None:
    from mert_foundry.jobs.command.line import main

    sys.argv = ["mert", *words]
    sys.exit(main())
