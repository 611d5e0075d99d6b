"""Checkpoints written beside training: training goes on meanwhile, a killed or failed write costs no whole one."""

import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from forked import Forked
from pretrain_run import final_weights, read_metrics
from tiny_model import HEADS, OBJECTIVE, run_ranks, synthetic_batch, synthetic_stream, tiny_encoder

from mert_foundry.model.objective.pretrain_model import build_pretrain_model
from mert_foundry.model.runs.checkpoint import CheckpointState, find_fault, latest_checkpoint
from mert_foundry.model.runs.checkpoint_writer import CheckpointWriter
from mert_foundry.model.runs.metrics_log import MetricsLog
from mert_foundry.model.runs.publish import publish_folder
from mert_foundry.model.training.optimizer import ScheduleConfig
from mert_foundry.model.training.ranks import rank
from mert_foundry.model.training.trainer import Stream, TrainingData, TrainResult, Validation, train
from mert_foundry.model.training.trainer_config import TrainerConfig

PARTIAL = ".partial-step_"
LONG_TO_WRITE = {"numbers": list(range(30_000))}  # PyYAML takes the time of many steps for it


def run(
    folder: Path,
    steps: int,
    feed_forward: int,
    stream: Stream = lambda position, step: synthetic_stream(position),
    records: list | None = None,
    validation: Validation | None = None,
    stop: Callable[[], bool] = lambda: False,
    limit: int = 3,
    report: Callable[[dict], None] | None = None,
    run_config: dict | None = None,
) -> TrainResult:
    """A checkpoint every second step, and a validation where there is one."""
    encoder = tiny_encoder()
    transformer = encoder.transformer.model_copy(update={"feed_forward": feed_forward})
    schedule = ScheduleConfig(learning_rate=1e-3, warmup_steps=1, total_steps=steps)
    return train(
        model=build_pretrain_model(encoder.model_copy(update={"transformer": transformer}), HEADS, OBJECTIVE, 1),
        data=TrainingData(stream, validation, 24_000),
        config=TrainerConfig(
            schedule=schedule,
            mixture=None,
            log_every=1,
            checkpoint_every=2,
            validate_every=2,
            keep_checkpoints=3,
            max_failed_checkpoints=limit,
        ),
        run_folder=folder,
        run_config=run_config or {},
        seed=11,
        device=torch.device("cpu"),
        stop=stop,
        report=report or (records if records is not None else []).append,
    )


def short_batches(position: dict | None, step: int) -> Iterator[tuple[dict, dict]]:
    """One row of ten frames a step."""
    number = 0 if position is None else position["offset"]
    while True:
        number += 1
        yield synthetic_batch(number, rows=1, frames=10), {"offset": number}


def killed_while_it_writes(folder: Path) -> None:
    """A run that ends itself by SIGKILL between the first byte of a checkpoint and its publication, when a later step
    is recorded.

    It looks when the step after the checkpoint's is recorded, and goes on where the checkpoint is there already.
    """
    checkpoints = folder / "checkpoints"

    def report(record: dict) -> None:
        step = record["step"] - 1
        if record["kind"] != "train" or step % 2 or step < 4:
            return
        while not (checkpoints / f"step_{step}").exists():
            if is_under_way(checkpoints / f"{PARTIAL}{step}"):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.001)

    run(folder, 100, 32, short_batches, report=report, run_config=LONG_TO_WRITE)


def is_under_way(partial: Path) -> bool:
    return (partial / "model.safetensors").exists() and not (partial / "checksums.json").exists()


@pytest.mark.process
@pytest.mark.slow
def test_training_goes_on_while_a_checkpoint_is_written_and_a_killed_writer_costs_only_that_one(tmp_path: Path):
    assert Forked(killed_while_it_writes, tmp_path).wait(120) == -signal.SIGKILL
    (partial,) = (tmp_path / "checkpoints").glob(PARTIAL + "*")
    step = int(partial.name.removeprefix(PARTIAL))
    assert is_under_way(partial) and read_metrics(tmp_path, "train")[-1]["step"] > step
    newest, faults = latest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None and newest.name == f"step_{step - 2}" and faults == []

    records: list[dict] = []
    result = run(tmp_path, step + 1, 32, short_batches, records)
    assert records[0]["kind"] == "incomplete_checkpoint"
    assert records[0]["fault"].endswith(f"step_{step}: its write was cut short")
    assert records[1] == {"kind": "resume", "step": step - 2, "path": str(newest), "world_size": 1}
    assert (result.status, result.step) == ("done", step + 1)
    assert [record["step"] for record in records if record["kind"] == "checkpoint"] == [step, step + 1]
    assert [record["step"] for record in read_metrics(tmp_path, "train")] == list(range(1, step + 2))
    assert all(find_fault(path) is None for path in (tmp_path / "checkpoints").iterdir())


@contextmanager
def small_files_only() -> Iterator[None]:
    """No file may grow beyond 20 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def once_step_2_is_written(folder: Path, act: Callable[[], object]) -> Stream:
    """Batches of a run in `folder`; `act` is called before that of step 3, when the checkpoint of step 2 is there."""

    def stream(position: dict | None, step: int) -> Iterator[tuple[dict, dict]]:
        for batch, after in synthetic_stream(position):
            if after["offset"] == 3:
                deadline = time.monotonic() + 60
                while not (folder / "checkpoints" / "step_2").exists():
                    assert time.monotonic() < deadline, "step 2 was never written"
                    time.sleep(0.001)
                act()
            yield batch, after

    return stream


@pytest.mark.parametrize(("limit", "failed", "end"), [(3, [4, 6], "it was the last"), (2, [4], "2 in a row have")])
def test_writes_that_fail_are_reported_and_end_the_run_only_in_a_row_or_with_the_last(
    tmp_path: Path, limit: int, failed: list[int], end: str
):
    """From step 3 on no file may grow beyond 20 kB: writing fails as on a full disk."""
    full, whole = tmp_path / "full", tmp_path / "whole"
    records: list[dict] = []
    with (
        ExitStack() as stack,
        pytest.raises(OSError, match=rf"could not be written: (?s:.*)File too large.*{end}(?s:.*)step_2$"),
    ):
        stream = once_step_2_is_written(full, lambda: stack.enter_context(small_files_only()))
        run(full, 8, 32, stream, records, limit=limit)
    assert [path.name for path in (full / "checkpoints").iterdir()] == ["step_2"]
    reported = [record for record in records if record["kind"] == "failed_checkpoint"]
    assert [record["step"] for record in reported] == failed
    assert all("File too large" in each["error"] and each["error"].count("step_2") == 1 for each in reported)

    run(full, 8, 32)
    run(whole, 8, 32)
    assert read_metrics(full) == read_metrics(whole)
    ours, theirs = final_weights(full), final_weights(whole)
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)  # TensorBoard leaves a file open when it fails


def fill(disk: Path) -> Path:
    """A file that takes all the room there is."""
    taken = disk / "taken"
    with open(taken, "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    assert shutil.disk_usage(disk).free == 0
    return taken


@pytest.mark.process
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard
def test_a_run_goes_on_over_a_full_disk_and_loses_no_record(tmp_path: Path, small_disk: Path):
    """The disk is full from step 3 on, and has room again when the second checkpoint has failed."""
    full, whole, records = small_disk / "run", tmp_path / "whole", []
    stream = once_step_2_is_written(full, lambda: fill(small_disk))

    def report(record: dict) -> None:
        records.append(record)
        if [each["kind"] for each in records].count("failed_checkpoint") == 2:
            (small_disk / "taken").unlink(missing_ok=True)

    assert run(full, 10, 32, stream, report=report).status == "done"
    failed = [record for record in records if record["kind"] == "failed_checkpoint"]
    assert [record["step"] for record in failed] == [4, 6]
    assert re.search(
        r"No space left on device: it takes 0.\d MB, 0.0 MB are free in .*step_2; failed", failed[0]["error"]
    )
    assert "metrics_not_written" in [record["kind"] for record in records]
    assert [path.name for path in sorted((full / "checkpoints").iterdir())] == ["step_10", "step_2", "step_8"]
    run(whole, 10, 32)
    assert read_metrics(full, "train") == read_metrics(whole, "train")
    assert [record["step"] for record in read_metrics(full, "failed_checkpoint")] == [4, 6]
    ours, theirs = final_weights(full), final_weights(whole)
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


@pytest.mark.process
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_records_that_a_full_disk_did_not_take_are_an_error_at_the_end(small_disk: Path):
    log = MetricsLog(small_disk, 0)
    taken = fill(small_disk)
    os.truncate(taken, taken.stat().st_size - 12_288)
    for step in range(1, 200):
        log.write({"kind": "train", "step": step, "loss": 0.5, "words": "w" * 100})
    assert log.fault is not None and "No space left on device" in log.fault
    with pytest.raises(OSError, match="metrics.jsonl: No space left on device; .* bytes of records wait"):
        log.close()
    taken.unlink()
    steps = [record["step"] for record in read_metrics(small_disk)]
    assert steps == list(range(1, len(steps) + 1)) and 0 < len(steps) < 199
    MetricsLog(small_disk, 200).close()  # a torn last line is removed
    assert (small_disk / "metrics.jsonl").read_bytes().count(b"\n") == len(steps)
    assert (small_disk / "metrics.jsonl").read_bytes().endswith(b"}\n")


def validated_on_two_ranks(process_rank: int, folder: Path) -> None:
    """Rank 1 has no batch to wait for, and looks at what is there when its validation begins."""
    whole: list[bool] = []

    def validation() -> list[dict]:
        whole.append(find_fault(folder / "checkpoints" / f"step_{2 * len(whole)}") is None)
        return [synthetic_batch(1_000)] if rank() == 0 else []

    run(folder, 2, 10_000, short_batches, validation=validation)
    assert whole == [False, True]


@pytest.mark.process
def test_the_checkpoint_of_a_step_is_there_on_all_ranks_before_its_validation(tmp_path: Path):
    run_ranks(validated_on_two_ranks, 2, tmp_path)


def test_a_stop_during_the_wait_for_a_checkpoint_needs_only_the_next(tmp_path: Path):
    """At step 4 the checkpoint of step 2 is waited for, and the stop comes then: it is asked for twice at steps 2 and
    4.
    """
    there: list[bool] = []

    def stop() -> bool:
        there.append((tmp_path / "checkpoints" / "step_2").exists())
        return len(there) == 6

    result = run(tmp_path, 100, 10_000, short_batches, stop=stop)
    assert (result.status, result.step) == ("stopped", 4)
    assert there[-1] and sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_2", "step_4"]


def test_a_full_disk_is_named_with_the_space_that_was_left(tmp_path: Path):
    """ENOSPC as the kernel gives it, behind an error of another kind, with 300 MB taken by what is then removed."""
    with pytest.raises(RuntimeError, match="torch failed") as raised, publish_folder(tmp_path / "step_1") as temporary:
        with open(temporary / "weights", "wb") as taken:
            os.posix_fallocate(taken.fileno(), 0, 300_000_000)
        try:
            Path("/dev/full").write_bytes(b"0")
        except OSError:
            raise RuntimeError("torch failed")  # noqa: B904
    (note,) = raised.value.__notes__
    told = re.fullmatch(rf"No space left on device: (\d+) MB were free in {re.escape(str(tmp_path))}", note)
    assert told is not None and int(told[1]) < shutil.disk_usage(tmp_path).free // 1_000_000 - 100


def start(writer: CheckpointWriter, step: int) -> None:
    writer.start(CheckpointState(step, None, 7, 1), {"weight": torch.ones(3)}, {}, None)


def test_a_whole_checkpoint_is_not_reported_as_failed_when_an_older_one_stays(tmp_path: Path):
    (tmp_path / "step_1").write_text("no folder, so that it cannot be removed as one")
    with CheckpointWriter(tmp_path, {}, 1) as writer:
        start(writer, 2)
        with pytest.raises(OSError, match="step_2 is whole, but an older checkpoint could not be removed: .*step_1"):
            writer.wait()
    assert find_fault(tmp_path / "step_2") is None


def test_a_failed_write_is_told_beside_the_error_that_ends_training(tmp_path: Path):
    (tmp_path / "checkpoints").write_text("no folder")
    with (
        pytest.raises(FloatingPointError, match="diverged") as raised,
        CheckpointWriter(tmp_path / "checkpoints", {}, 1) as writer,
    ):
        start(writer, 1)
        raise FloatingPointError("diverged")
    assert ["step_1 could not be written: " in note for note in raised.value.__notes__] == [True]
    with (
        pytest.raises(OSError, match="step_1 could not be written: "),
        CheckpointWriter(tmp_path / "checkpoints", {}, 1) as writer,
    ):
        start(writer, 1)


def test_the_cause_is_named_where_torch_hides_it(tmp_path: Path):
    """Weights fit under the limit, the optimiser's state does not."""
    with (
        small_files_only(),
        pytest.raises(OSError, match="step_1 could not be written: .*File too large"),
        CheckpointWriter(tmp_path, {}, 1) as writer,
    ):
        writer.start(CheckpointState(1, None, 7, 1), {"weight": torch.ones(3)}, {"moment": torch.ones(100_000)}, None)
