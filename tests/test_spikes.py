"""Spikes are recorded with their examples and rank, also across a resume."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from pretrain_run import read_metrics
from tiny_model import run_ranks, slice_rows, synthetic_batch, tiny_model

from mert_foundry.model.runs.checkpoint import CheckpointState, load_average, load_state, load_weights, save_checkpoint
from mert_foundry.model.runs.rewinds import find_target, forget_rewinds_after, position_after, rewind
from mert_foundry.model.training import spikes
from mert_foundry.model.training.optimizer import ScheduleConfig
from mert_foundry.model.training.ranks import rank, world_size
from mert_foundry.model.training.spikes import SpikeWatch
from mert_foundry.model.training.train_step import StepResult
from mert_foundry.model.training.trainer import TrainingData, train
from mert_foundry.model.training.trainer_config import TrainerConfig

SPIKE = 14


def result(loss: float, norm: float = 1.0, finite: bool = True) -> StepResult:
    return StepResult({"loss": loss}, norm, finite, {}, torch.tensor(loss), None)


def test_a_value_beyond_the_band_of_median_and_mad_is_a_spike():
    """Losses 1 to 5 in turn: median 3, median distance 1, so the limit is 3 + 10 x 1.4826."""
    watch = SpikeWatch(10.0, None)
    for number in range(200):
        assert watch.look(result(1.0 + number % 5), []) is None
    assert watch.look(result(17.82), ["a"]) is None
    found = watch.look(result(17.83), ["a", "b"])
    assert found is not None and found["beyond"] == {"loss": {"median": 3.0, "limit": pytest.approx(17.826)}}
    assert (found["rank"], found["keys"], found["shares"]) == (0, [["a", "b"]], [pytest.approx(17.83)])
    again = SpikeWatch(10.0, watch.state()).look(result(3.0, 1.11), [])
    assert again is not None and set(again["beyond"]) == {"gradient_norm"}  # 1 % of the median is the least spread
    assert watch.look(result(float("nan"), finite=False), []) is None
    assert SpikeWatch(None, watch.state()).look(result(100.0), []) is None


def train_with_a_spike(
    process_rank: int,
    folder: Path,
    total_steps: int,
    band: float | None,
    on_spike: str = "record",
    jumps: Mapping[int, int] = MappingProxyType({}),
) -> None:
    """The values of one rank's rows are large at one step."""
    spikes.WINDOW = 10

    def stream(position: dict | None, step: int) -> Iterator[tuple[dict, dict]]:
        number = 0 if position is None else jumps.get(position["offset"], position["offset"])
        while True:
            number += 1
            batch = slice_rows(synthetic_batch(number), slice(2 * rank(), 2 * rank() + 2))
            if number == SPIKE and rank() == 1:
                batch["cqt"] = batch["cqt"] + 100
            yield batch, {"offset": number}

    trainer = TrainerConfig(
        schedule=ScheduleConfig(learning_rate=1e-3, warmup_steps=1, total_steps=total_steps),
        mixture=None,
        log_every=1,
        checkpoint_every={"record": 100, "skip": 1, "rewind": 4}[on_spike],
        rewind_steps=3,
        keep_checkpoints=100,
        spike_band=band,
        on_spike=on_spike,
        ema=0.9,
    )
    assert world_size() == 2
    data = TrainingData(stream, None, 24_000)
    train(tiny_model(), data, trainer, folder, {}, 1, torch.device("cpu"), lambda: False, lambda record: None)


@pytest.mark.process
def test_a_spike_is_recorded_with_the_keys_and_rank_that_made_it_also_across_a_resume(tmp_path: Path):
    run_ranks(train_with_a_spike, 2, tmp_path / "run", 12, 10.0)
    run_ranks(train_with_a_spike, 2, tmp_path / "run", 16, 10.0)
    (found,) = read_metrics(tmp_path / "run", "spike")
    assert (found["step"], found["rank"]) == (SPIKE, 1) and "loss" in found["beyond"]
    assert found["keys"] == [[f"track-{SPIKE}-0", f"track-{SPIKE}-1"], [f"track-{SPIKE}-2", f"track-{SPIKE}-3"]]
    assert found["loss"] == pytest.approx(sum(found["shares"]), rel=1e-5) and found["shares"][1] > found["shares"][0]
    assert found["loss"] > found["beyond"]["loss"]["limit"] > found["beyond"]["loss"]["median"]


@pytest.mark.process
def test_a_step_that_is_left_out_moves_no_weight_on_any_rank_also_after_a_resume(tmp_path: Path):
    total_steps, run = 18, tmp_path / "run"
    run_ranks(train_with_a_spike, 2, run, total_steps, 10.0, "skip")
    before, after, last = (run / "checkpoints" / f"step_{step}" for step in (SPIKE - 1, SPIKE, total_steps))
    for load in (load_weights, load_average):
        old, new, later = load(before), load(after), load(last)
        assert all(torch.equal(weight, new[name]) for name, weight in old.items())
        assert not all(torch.equal(weight, later[name]) for name, weight in old.items())
    states = [load_state(path) for path in (before, after, last)]
    assert [(state.skipped_steps, state.consecutive_skips) for state in states] == [(0, 0), (1, 1), (1, 0)]
    assert [state.position["offset"] for state in states] == [SPIKE - 1, SPIKE, total_steps]
    (found,) = read_metrics(run, "spike")
    assert (found["step"], found["skipped"]) == (SPIKE, True)

    again = tmp_path / "again"
    shutil.copytree(before, again / "checkpoints" / before.name)
    run_ranks(train_with_a_spike, 2, again, total_steps, 10.0, "skip")
    resumed, whole = load_weights(again / "checkpoints" / last.name), load_weights(last)
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
    assert load_state(again / "checkpoints" / last.name) == states[-1]


def train_past_a_gap(process_rank: int, folder: Path, total_steps: int, first: int, behind: int) -> None:
    """Goes on from a checkpoint at `first` with the batch after `behind`."""
    train_with_a_spike(process_rank, folder, total_steps, 10.0, "record", {first: behind})


@pytest.mark.process
def test_a_run_goes_back_and_passes_over_the_batches_also_after_a_kill(tmp_path: Path):
    """The spike is at step 14, checkpoints every four, at least three steps before: from that of step 8 on come the
    batches after 14.
    """
    run, back, total_steps = tmp_path / "run", 8, 18
    run_ranks(train_with_a_spike, 2, run, total_steps, 10.0, "rewind")
    (found,) = read_metrics(run, "rewind")
    assert (found["step"], found["spike_step"], found["rank"]) == (back, SPIKE, 1) and "loss" in found["beyond"]
    assert [record["step"] for record in read_metrics(run, "train")] == list(range(1, total_steps + 1))
    assert read_metrics(run, "spike") == []
    checkpoints = run / "checkpoints"
    positions = {step: load_state(checkpoints / f"step_{step}").position["offset"] for step in (8, 12, 16, 18)}
    assert positions == {8: 8, 12: SPIKE + 4, 16: SPIKE + 8, 18: SPIKE + 10}

    by_hand, killed = tmp_path / "by_hand", tmp_path / "killed"
    for folder in (by_hand, killed):
        shutil.copytree(checkpoints / f"step_{back}", folder / "checkpoints" / f"step_{back}")
    shutil.copy(run / "rewinds.json", killed)
    run_ranks(train_past_a_gap, 2, by_hand, total_steps, back, SPIKE)
    run_ranks(train_with_a_spike, 2, killed, total_steps, 10.0, "rewind")
    weights = [load_weights(folder / "checkpoints" / f"step_{total_steps}") for folder in (run, by_hand, killed)]
    assert all(torch.equal(weight, other[name]) for other in weights[1:] for name, weight in weights[0].items())


def test_spikes_cannot_be_left_out_where_none_is_known():
    with pytest.raises(ValueError, match="on_spike is skip, but spike_band is null"):
        TrainerConfig(on_spike="skip", spike_band=None)


def test_a_rewind_counts_for_its_checkpoint_until_the_run_goes_on_from_an_earlier_one(tmp_path: Path):
    assert find_target(tmp_path, 10) == -1 and position_after(tmp_path, 4, "own") == "own"
    for step in (4, 8):
        state = CheckpointState(step=step, position=step, seed=0, world_size=1)
        save_checkpoint(tmp_path / "checkpoints", state, {"weight": torch.zeros(1)}, {}, {})
    (tmp_path / "checkpoints" / "step_8" / "optimizer.pt").unlink()  # incomplete, so it is no target
    assert [find_target(tmp_path, step) for step in (3, 7, 10)] == [-1, 4, 4]
    assert [rewind(tmp_path, 4, spike, position) for spike, position in ((9, 9), (7, 12))] == [1, 2]
    assert not (tmp_path / "checkpoints" / "step_8").exists()
    assert rewind(tmp_path, 6, 11, 15) == 1
    assert [position_after(tmp_path, step, "own") for step in (4, 5, 6)] == [12, "own", 15]
    forget_rewinds_after(tmp_path, 4)
    assert [position_after(tmp_path, step, "own") for step in (4, 6)] == [12, "own"]
