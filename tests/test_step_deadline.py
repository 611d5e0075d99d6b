"""A step that hangs ends its run, and says where each rank was; the next start goes on."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pretrain_run import read_metrics
from tiny_model import run_ranks, synthetic_stream, tiny_model
from torch.multiprocessing import ProcessExitedException

from mert_foundry.jobs.command.config import UsageError, load_config
from mert_foundry.jobs.pretraining.run_description import PretrainConfig
from mert_foundry.model.training import step_deadline
from mert_foundry.model.training.optimizer import ScheduleConfig
from mert_foundry.model.training.ranks import rank, world_size
from mert_foundry.model.training.step_deadline import StepDeadline
from mert_foundry.model.training.trainer import TrainingData, train
from mert_foundry.model.training.trainer_config import TrainerConfig

HANGS_IN, DEADLINE = 3, 4.0  # a step, seconds


def hang_in_the_stream() -> None:
    while True:
        time.sleep(0.05)


def train_and_hang_once(process_rank: int, folder: Path) -> None:
    """Rank 1 of the first start hangs in its stream in step 3, which makes the batch of step 4 ready."""
    hung = folder / "hung"
    log = os.open(folder / f"stderr-{process_rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    step_deadline.GRACE = 3.0

    def stream(position: dict | None, step: int) -> Iterator[tuple[dict, dict]]:
        for batch, after in synthetic_stream(position, rank(), world_size()):
            if after["offset"] == HANGS_IN + 1 and rank() == 1 and not hung.exists():
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
    data, records = TrainingData(stream, None, 24_000), []
    train(tiny_model(), data, trainer, folder / "run", {}, 1, torch.device("cpu"), lambda: False, records.append)
    if rank() == 0:
        assert (records[0]["kind"], records[0]["step"]) == ("resume", 2)


@pytest.mark.process
@pytest.mark.slow
def test_a_rank_that_hangs_ends_all_with_their_stacks_and_the_next_start_goes_on_from_the_checkpoint(tmp_path: Path):
    with pytest.raises(ProcessExitedException, match="exit code 1"):
        run_ranks(train_and_hang_once, 2, tmp_path)
    for number, where in enumerate(("in all_reduce", "in hang_in_the_stream")):
        lines = (tmp_path / f"stderr-{number}").read_text().splitlines()
        heads = [line for line in lines if "has taken more than trainer.step_deadline" in line]
        assert len(heads) == 1 and heads[0].startswith(f"[rank {number}] step {HANGS_IN} has taken"), lines
        assert any(where in line for line in lines), lines
        assert f"[rank {number}] thread MainThread:" in lines
    assert read_metrics(tmp_path / "run")[-1]["step"] == HANGS_IN - 1

    run_ranks(train_and_hang_once, 2, tmp_path)
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
