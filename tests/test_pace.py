"""What a run says of its pace, by a clock of the test and on two ranks of which one is slow."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_model import run_ranks, slice_rows, synthetic_batch, tiny_model

from mert_foundry.jobs.command.text import human_duration
from mert_foundry.model.objective.operations import count_operations
from mert_foundry.model.runs.history import load_run
from mert_foundry.model.training.device_peaks import peak_of
from mert_foundry.model.training.optimizer import ScheduleConfig
from mert_foundry.model.training.pace import Pace
from mert_foundry.model.training.ranks import rank
from mert_foundry.model.training.step_clock import PARTS
from mert_foundry.model.training.trainer import TrainingData, train
from mert_foundry.model.training.trainer_config import TrainerConfig

SAMPLES, ROWS = 6_400, 4
SLEEP = 0.3


def totals(**seconds: float) -> dict[str, torch.Tensor]:
    """Sums of a step of one rank."""
    values = {f"seconds/{part}": seconds.get(part, 0.0) for part in PARTS}
    sizes = {"samples": ROWS * SAMPLES, "rows": ROWS, "masked_frames": 30, "valid_frames": 80}
    named = {name: torch.tensor(float(value)) for name, value in {**values, **sizes}.items()}
    return named | {"busy": torch.tensor([sum(seconds.values())])}


def test_a_reading_tells_of_the_steps_since_the_last():
    now, model = [0.0], tiny_model()
    pace = Pace(model, 24_000, 10, 110, peak=1e9, clock=lambda: now[0])
    for at in (1.0, 3.0):
        now[0] = at
        pace.add(totals(wait=0.25, forward=0.5))
    with pace.paused():  # a validation
        now[0] = 13.0
    found = pace.read(heard=48_000, memory=torch.tensor([5.0]))
    assert found["audio_seconds_per_second"] == pytest.approx(2 * ROWS * SAMPLES / 24_000 / 3)
    assert found["data_wait_share"] == pytest.approx(0.5 / 3)
    assert {name: value for name, value in found["seconds"].items() if value} == {
        "step": 1.5,
        "wait": 0.25,
        "forward": 0.5,
    }
    operations = 2 * count_operations(model, SAMPLES)(ROWS, 30)
    assert found["mfu"] == pytest.approx(operations / 3 / 1e9)
    assert found["hours_heard"] == 48_000 / 24_000 / 3600 and found["memory_peak_bytes"] == 5.0
    # Of 100 steps two are done; since the end of the first, one step took 12 s with its validation.
    assert found["eta_seconds"] == pytest.approx(98 * 12) and "slowest" not in found
    now[0] = 14.0
    pace.add(totals())
    again = pace.read(heard=None, memory=torch.tensor([5.0]))
    assert again["seconds"]["step"] == 1.0 and again["data_wait_share"] == 0.0 and "hours_heard" not in again


def slow_rank(process_rank: int, folder: Path) -> None:
    def stream(position: dict | None, step: int) -> Iterator[tuple[dict, dict]]:
        number = 0
        while True:
            number += 1
            time.sleep(SLEEP * rank())
            batch = synthetic_batch(number)
            batch["valid"][:, 15:] = False  # a quarter of every row is padding
            yield slice_rows(batch, slice(2 * rank(), 2 * rank() + 2)), {"offset": number}

    trainer = TrainerConfig(
        schedule=ScheduleConfig(learning_rate=1e-3, warmup_steps=1, total_steps=6),
        mixture=None,
        log_every=3,
        checkpoint_every=100,
        accumulation=2,
        peak_operations=1e12,
    )
    data, model = TrainingData(stream, None, 24_000), tiny_model()
    sleep = SLEEP / trainer.accumulation * rank()
    model.encoder.transformer.layers[0].register_full_backward_hook(lambda *gradients: time.sleep(sleep))
    train(model, data, trainer, folder, {}, 1, torch.device("cpu"), lambda: False, lambda record: None)


@pytest.mark.process
def test_the_slowest_of_two_ranks_is_named_and_the_other_waits_for_it(tmp_path: Path):
    run_ranks(slow_rank, 2, tmp_path / "run")
    record = load_run(tmp_path / "run").of_kind("train")[-1]
    seconds = record["seconds"]
    # Two of the sleeps of a window over the data, by one of two ranks; the other waits as long for counts, and again
    # for gradients.
    assert SLEEP / 3 <= seconds["wait"] and 2 * SLEEP / 3 < seconds["exchange"]
    assert record["slowest"]["rank"] == 1 and 0.1 < record["slowest"]["behind"] < 1.0
    assert sum(seconds[part] for part in PARTS if part != "save") == pytest.approx(seconds["step"], rel=0.3)
    assert min(seconds[part] for part in ("prepare", "forward", "backward", "optimizer")) > 0
    assert record["mfu"] == pytest.approx(record["operations_per_second"] / 2e12)
    assert record["memory_peak_bytes"] > 50e6
    assert record["hours_heard"] == pytest.approx(6 * 4 * 0.75 * SAMPLES / 24_000 / 3600)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
    ]
    + [
        (name, None)
        for name in ("Tesla T4", "NVIDIA L40", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 3090 Ti")
    ],
)
def test_peaks_by_name(name: str, peak: float | None):
    assert peak_of(name) == peak


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (65, "1 min 5 s"), (7_260, "2 h 1 min"), (273_600, "3 d 4 h")]
)
def test_durations(seconds: float, text: str):
    assert human_duration(seconds) == text
