"""A step that hangs ends its run, and says where each rank was; torchrun restarts it."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from audio_files import mert_environment
from pretrain_run import read_metrics
from tiny_model import synthetic_stream, tiny_model

from mert_foundry.jobs.cluster.torchrun import process_group
from mert_foundry.jobs.command.config import UsageError, load_config
from mert_foundry.jobs.pretraining.run_description import PretrainConfig
from mert_foundry.model.training.optimizer import ScheduleConfig
from mert_foundry.model.training.ranks import rank, world_size
from mert_foundry.model.training.step_deadline import StepDeadline
from mert_foundry.model.training.trainer import TrainerConfig, TrainingData, train

HANGS_AT, DEADLINE = 4, 3.0  # a step, seconds


def hang_in_the_stream() -> None:
    while True:
        time.sleep(0.05)


def train_and_hang_once(folder: Path) -> None:
    """Under torchrun: rank 1 hangs in its stream at step 4 of the first start."""
    torch.set_num_threads(1)
    hung = folder / "hung"

    def stream(position: dict | None) -> Iterator[tuple[dict, dict]]:
        for batch, after in synthetic_stream(position, rank(), world_size()):
            if after["offset"] == HANGS_AT and rank() == 1 and not hung.exists():
                hung.touch()
                hang_in_the_stream()
            yield batch, after

    trainer = TrainerConfig(
        schedule=ScheduleConfig(learning_rate=1e-3, warmup_steps=1, total_steps=6),
        mixture=None,
        log_every=1,
        checkpoint_every=2,
        step_deadline=DEADLINE,
    )
    with process_group("cpu", 2) as device:
        data = TrainingData(stream, None, 24_000)
        train(tiny_model(), data, trainer, folder / "run", {}, 1, device, lambda: False, lambda record: print(record))


@pytest.mark.process
@pytest.mark.slow
def test_a_rank_that_hangs_ends_all_with_their_stacks_and_torchrun_goes_on_from_the_checkpoint(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\nfrom test_step_deadline import train_and_hang_once\n"
        f"train_and_hang_once(Path({str(tmp_path)!r}))\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    done = subprocess.run(
        [*torchrun, str(script)], capture_output=True, text=True, env=mert_environment(), timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    for number in (0, 1):
        mine = [line for line in lines if line.startswith(f"[rank {number}]")]
        assert (
            sum(f"step {HANGS_AT} has taken more than trainer.step_deadline, 3 seconds" in line for line in mine) == 1
        )
        where = "in all_reduce" if number == 0 else "in hang_in_the_stream"
        assert any(where in line for line in mine), done.stderr
        assert any("thread MainThread" in line for line in mine)
    assert "'kind': 'resume', 'step': 2" in done.stdout
    assert [record["step"] for record in read_metrics(tmp_path / "run", "train")] == [1, 2, 3, 4, 5, 6]


HOLDS_THE_LOCK = """
import ctypes, time
from mert_foundry.model.training import step_deadline
step_deadline.GRACE = 0.2
with step_deadline.StepDeadline(0.5) as deadline:
    deadline.begin(7)
    ctypes.PyDLL(None).sleep(60)  # in C, with Python's lock
"""


@pytest.mark.process
@pytest.mark.slow
def test_a_hang_that_keeps_pythons_lock_ends_too():
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HOLDS_THE_LOCK], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1 and time.monotonic() - begin < 40
    assert "Timeout" in done.stderr and 'File "<string>", line 7 in <module>' in done.stderr


def test_between_steps_there_is_no_deadline():
    with StepDeadline(0.2) as deadline:
        deadline.begin(1)
        deadline.end()
        time.sleep(0.5)
    with StepDeadline(None) as deadline:
        deadline.begin(1)
        time.sleep(0.1)


def test_a_deadline_within_the_patience_for_the_store_is_refused():
    words = ["configs/tiny.yaml", "shards=shards", "out=run", "trainer.step_deadline=300", "stream.patience=600"]
    with pytest.raises(UsageError, match="trainer.step_deadline is 300 s, stream.patience 600 s"):
        load_config(PretrainConfig, words)
