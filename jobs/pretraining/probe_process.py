"""`mert probe --follow` beside a run, in a process of its own that rank 0 starts, watches and ends.

OUT/probe.yaml    its settings
OUT/probe.log     what it prints
OUT/probe/        its features and results
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from mert_foundry.jobs.cluster.parent_process import ENDS_WITH
from mert_foundry.jobs.command.config import UsageError
from mert_foundry.jobs.pretraining.run_description import PretrainConfig
from mert_foundry.model.runs.checkpoint import CHECKPOINTS, checkpoint_step, find_fault, latest_checkpoint
from mert_foundry.model.runs.history import FOLLOW_READY, forget_probes_after
from mert_foundry.pipeline.storage import files

SETTINGS, LOG, FOLDER = "probe.yaml", "probe.log", "probe"
LOOK_EVERY = 0.1  # seconds
GRACE = 10.0  # seconds that it has to end
# Environment variables that torchrun sets for a rank.
OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")


class ProbeProcess:
    """The process, once it has read its settings and its tasks.

    Args:
        config: of the run, with `probe`. out: the run folder, with its config.yaml.

    Raises UsageError with what the process says when it does not take its settings, or cannot read its data.
    """

    def __init__(self, config: PretrainConfig, out: Path):
        assert config.probe is not None
        self.log = out / LOG
        fixed = {"follow": str(out), "out": str(out / FOLDER), "score": "valid", "baselines": []}
        files.publish_bytes(str(out / SETTINGS), yaml.safe_dump({**config.probe, **fixed}, sort_keys=False).encode())
        environment = {name: value for name, value in os.environ.items() if not name.startswith(OF_RANKS)}
        with open(self.log, "wb") as log:
            # In a session of its own, so that a Ctrl-C is for the run, which ends this process too.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mert_foundry.jobs.probe", str(out / SETTINGS)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**environment, ENDS_WITH: str(os.getpid())},
                start_new_session=True,
            )
        self._is_reported = False
        try:
            self._wait_until_ready()
        except BaseException:
            self.end()
            raise

    def find_end(self) -> str:
        """One line when the process has ended with an error, the first time; else nothing."""
        code = self._process.poll()
        if not code or self._is_reported:
            return ""
        self._is_reported = True
        how = f"signal {-code}" if code < 0 else f"exit code {code}: {self._last_line()}"
        return f"the probe of this run has ended with {how}; training does not depend on it ({self.log})"

    def wait(self) -> None:
        """Until it has probed the checkpoint of the last step, or has ended otherwise."""
        self._process.wait()

    def end(self) -> None:
        """End it, if it still runs; a checkpoint that it is at counts as not probed."""
        self._process.terminate()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait_until_ready(self) -> None:
        while not any(line.startswith(FOLLOW_READY) for line in self._lines()):
            if self._process.poll() is not None:
                raise UsageError(f"probe: {self._last_line().removeprefix('error: ')}")
            time.sleep(LOOK_EVERY)

    def _lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()

    def _last_line(self) -> str:
        return (self._lines() or ["it printed nothing"])[-1]


@contextlib.contextmanager
def probing(
    config: PretrainConfig, out: Path, say: Callable[[str], None], warn: Callable[[str], None]
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Probe a run's checkpoints beside it, if its config asks for it; gives what is to be called with each record of
    the run.

    When the run's last record and its last checkpoint are there, the end waits for the probe of that; else the probe is
    ended. Raises as `ProbeProcess`.
    """
    if config.trainer.probe_every is None:
        yield lambda record: None
        return
    newest, _ = latest_checkpoint(out / CHECKPOINTS)
    forget_probes_after(out, checkpoint_step(newest) if newest else 0)  # the run goes on from there
    probe, reached = ProbeProcess(config, out), 0

    def watch(record: dict[str, Any]) -> None:
        nonlocal reached
        reached = max(reached, record.get("step", 0))
        if line := probe.find_end():
            warn(line)

    try:
        yield watch
        total = config.trainer.schedule.total_steps
        # A run that was past its last step when it went on has no checkpoint of that step.
        if reached >= total and find_fault(out / CHECKPOINTS / f"step_{total}") is None:
            say(f"waiting for the last probe ({probe.log})")
            probe.wait()
    finally:
        if line := probe.find_end():
            warn(line)
        probe.end()
