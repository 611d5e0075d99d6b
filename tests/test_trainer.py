"""Resume, stops, broken steps and ranks, on models of a few thousand weights and synthetic batches."""

import itertools
from pathlib import Path

import pytest
import torch
from pretrain_run import final_weights, read_metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_model import run_ranks, slice_rows, synthetic_batch, synthetic_stream, tiny_model

from mert_foundry.model.objective.mixture import MixtureConfig
from mert_foundry.model.objective.pretrain_model import ObjectiveConfig
from mert_foundry.model.objective.span_mask import ChannelMaskConfig, MaskConfig
from mert_foundry.model.runs.checkpoint import latest_checkpoint, load_average, load_state, load_weights
from mert_foundry.model.training.optimizer import OptimizerConfig, ScheduleConfig
from mert_foundry.model.training.precision import resolve_precision
from mert_foundry.model.training.ranks import rank, world_size
from mert_foundry.model.training.train_step import TrainStep
from mert_foundry.model.training.trainer import TrainingData, TrainResult, train
from mert_foundry.model.training.trainer_config import TrainerConfig
from mert_foundry.model.training.weight_average import WeightAverage, decay_at

MIXTURE = MixtureConfig(min_samples=500, max_samples=900)
CPU = torch.device("cpu")


def config(total_steps: int = 6, **changes: object) -> TrainerConfig:
    schedule = ScheduleConfig(learning_rate=1e-2, warmup_steps=2, total_steps=total_steps)
    settings = {"mixture": MIXTURE, "log_every": 1, "validate_every": 3, "checkpoint_every": 2, "keep_checkpoints": 2}
    return TrainerConfig(schedule=schedule, **{**settings, **changes})


def validation() -> list[dict]:
    """Two batches, the second on rank 0 alone."""
    batches = [synthetic_batch(1_000), synthetic_batch(1_001)]
    rows = 4 // world_size()
    return [slice_rows(batches[0], slice(rank() * rows, (rank() + 1) * rows)), *batches[1 : 2 - rank()]]


def run(
    folder: Path,
    trainer: TrainerConfig,
    stop=lambda: False,
    stream=None,
    records=None,
    validation=validation,
    **model,
) -> TrainResult:
    torch.manual_seed(len(list(folder.glob("**/*"))))  # a run must not lean on the global generator
    if stream is None:
        stream = lambda position, step: synthetic_stream(position, rank(), world_size())  # noqa: E501, E731
    return train(
        model=tiny_model(**model),
        data=TrainingData(stream, validation, 24_000),
        config=trainer,
        run_folder=folder,
        run_config={"trainer": trainer.model_dump(mode="json")},
        seed=11,
        device=CPU,
        stop=stop,
        report=([] if records is None else records).append,
    )


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = final_weights(first), final_weights(second)
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


class Killed(Exception):
    """Stands for SIGKILL: nothing of the trainer gets to run after it but its file closing."""


def stream_killed_at(step: int):
    def stream(position, done):
        for batch, after in synthetic_stream(position):
            if after["offset"] == step:
                raise Killed
            yield batch, after

    return stream


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder, config(), layer_drop=0.3).status == "done"
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("first, second", [(1, 2), (3, 4), (3, 6), (4, 5), (5, 6)])
def test_two_kills_and_resumes_change_no_bit(tmp_path, uninterrupted, first, second):
    for step in (first, second):
        with pytest.raises(Killed):
            run(tmp_path, config(), stream=stream_killed_at(step), layer_drop=0.3)
    assert run(tmp_path, config(), layer_drop=0.3).status == "done"
    assert read_metrics(tmp_path) == read_metrics(uninterrupted)
    assert_same_weights(tmp_path, uninterrupted)


@pytest.mark.parametrize("stops", [(1, 4), (2, 3)])
def test_stops_write_a_checkpoint_and_change_no_bit(tmp_path, uninterrupted, stops):
    for step in stops:
        done = [record["step"] for record in read_metrics(tmp_path)] if (tmp_path / "metrics.jsonl").exists() else [0]
        polls = itertools.count(max(done) + 1)
        trainer = config(checkpoint_every=100)  # so that it asks once a step
        result = run(tmp_path, trainer, stop=lambda polls=polls, step=step: next(polls) == step, layer_drop=0.3)
        assert (result.status, result.step) == ("stopped", step)
        assert result.checkpoint == latest_checkpoint(tmp_path / "checkpoints")[0]
        assert load_state(result.checkpoint).position == {"offset": step}
    assert run(tmp_path, config(), layer_drop=0.3).status == "done"
    assert read_metrics(tmp_path) == read_metrics(uninterrupted)
    assert_same_weights(tmp_path, uninterrupted)


class BrokenShard(Exception):
    """A validation that fails."""


def validation_broken_at_call(number: int):
    calls = itertools.count(1)

    def broken() -> list[dict]:
        if next(calls) == number:
            raise BrokenShard
        return validation()

    return broken


@pytest.mark.parametrize("call, step", [(2, 3), (3, 6)])
def test_a_validation_that_fails_costs_no_step_and_is_made_up_for(tmp_path, call, step):
    """Also what a kill between checkpoint and validation leaves behind."""
    trainer = config(checkpoint_every=3)
    for broken in (call, 1):
        with pytest.raises(BrokenShard):
            run(tmp_path, trainer, validation=validation_broken_at_call(broken), layer_drop=0.3)
        assert load_state(latest_checkpoint(tmp_path / "checkpoints")[0]).step == step
    result = run(tmp_path, trainer, stream=None if step < 6 else stream_killed_at(1), layer_drop=0.3)
    assert result.status == "done" and result.validation is not None
    whole = tmp_path / "whole"
    run(whole, trainer, layer_drop=0.3)
    assert read_metrics(tmp_path) == read_metrics(whole)
    assert_same_weights(tmp_path, whole)


def test_diagnostics_are_recorded_at_their_interval_and_change_no_bit(tmp_path):
    folders = [tmp_path / name for name in ("with", "killed", "without")]
    for folder, interval in zip(folders, (2, 2, None)):
        folder.mkdir()
        if folder.name == "killed":
            with pytest.raises(Killed):
                run(folder, config(diagnostics_every=interval), stream=stream_killed_at(4), layer_drop=0.3)
        run(folder, config(diagnostics_every=interval), layer_drop=0.3)
    with_them, killed, without = (read_metrics(folder) for folder in folders)
    assert [record["step"] for record in with_them if record["kind"] == "diagnostics"] == [2, 4, 6]
    assert with_them == killed
    assert [record for record in with_them if record["kind"] != "diagnostics"] == without
    assert_same_weights(folders[0], folders[2])
    events = EventAccumulator(str(folders[0] / "tensorboard")).Reload()
    for name in ("gradient_norms/heads.codes", "attention_entropy/1", "code_entropy/codes", "effective_rank"):
        assert len(events.Scalars(f"diagnostics/{name}")) == 3


EVERY_OPTION = {
    "objective": ObjectiveConfig(
        final_dim=4,
        tied_projection=True,
        learnable_temperature=True,
        codebooks_per_step=1,
        unmasked_weight=0.3,
        target_weights={"cqt": 0.5},
    ),
    "layer_drop": 0.3,
}
EVERY_MASK = MaskConfig(
    min_space=1,
    probability_schedule=((3, 0.4),),
    span_schedule=((2, 3),),
    fill="noise",
    replace=0.2,
    keep=0.2,
    channels=ChannelMaskConfig(probability=0.3, span=2),
)


def test_every_option_together_resumes_to_the_bit(tmp_path):
    trainer = config(mask=EVERY_MASK, accumulation=2, diagnostics_every=2)
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
    run(folders[0], trainer, **EVERY_OPTION)
    for step in (3, 6):
        with pytest.raises(Killed):
            run(folders[1], trainer, stream=stream_killed_at(step), **EVERY_OPTION)
    run(folders[1], trainer, **EVERY_OPTION)
    assert read_metrics(folders[0]) == read_metrics(folders[1])
    assert_same_weights(*folders)
    accuracies = [record["accuracy"]["codes"] for record in read_metrics(folders[0]) if record["kind"] == "train"]
    assert all(accuracy.count(None) == 1 for accuracy in accuracies)
    assert {accuracy.index(None) for accuracy in accuracies} == {0, 1}
    assert None not in read_metrics(folders[0])[0]["accuracy"]["codes"]  # a validation uses all codebooks


def average_of(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_average(folder / "checkpoints" / f"step_{step}")


def test_the_average_is_the_formulas_and_changes_no_bit_of_training(tmp_path, uninterrupted):
    run(tmp_path, config(ema=0.5, checkpoint_every=1, keep_checkpoints=6), layer_drop=0.3)
    assert_same_weights(tmp_path, uninterrupted)
    expected = {name: weight.clone() for name, weight in tiny_model(layer_drop=0.3).state_dict().items()}
    for step in range(1, 7):
        weights = load_weights(tmp_path / "checkpoints" / f"step_{step}")
        decay = [2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16][step - 1]
        expected = {name: decay * value + (1 - decay) * weights[name] for name, value in expected.items()}
        found = average_of(tmp_path, step)
        assert found.keys() == weights.keys()
        for name, value in expected.items():
            assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-6), name
    assert decay_at(0.999, 10**6) == 0.999


def test_the_average_resumes_to_the_bit_and_may_be_asked_for_later(tmp_path, uninterrupted):
    whole, killed, later = (tmp_path / name for name in ("whole", "killed", "later"))
    for folder in (whole, killed, later):
        folder.mkdir()
    run(whole, config(ema=0.3), layer_drop=0.3)
    for step in (3, 6):
        with pytest.raises(Killed):
            run(killed, config(ema=0.3), stream=stream_killed_at(step), layer_drop=0.3)
    run(killed, config(ema=0.3), layer_drop=0.3)
    first, second = average_of(whole, 6), average_of(killed, 6)
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    assert not torch.equal(first["encoder.mask_embedding"], final_weights(whole)["encoder.mask_embedding"])

    with pytest.raises(Killed):
        run(later, config(), stream=stream_killed_at(4), layer_drop=0.3)
    with pytest.raises(ValueError, match=r"step_2 has no averaged weights \(ema.safetensors\)"):
        average_of(later, 2)
    run(later, config(ema=0.3), layer_drop=0.3)
    assert_same_weights(later, uninterrupted)
    assert average_of(later, 6).keys() == first.keys()


def test_a_skipped_step_leaves_the_average_alone(tmp_path):
    run(tmp_path, config(total_steps=3, ema=0.9, checkpoint_every=1), stream=poisoned_stream({3}))
    before, after = average_of(tmp_path, 2), average_of(tmp_path, 3)
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_a_finished_run_is_left_as_it_is(uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    result = run(uninterrupted, config(), stream=stream_killed_at(1), layer_drop=0.3)
    assert (result.status, result.step, result.checkpoint.name) == ("done", 6, "step_6")
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def test_records_hold_what_they_promise(uninterrupted):
    records = read_metrics(uninterrupted)
    by_kind = {kind: [r for r in records if r["kind"] == kind] for kind in ("train", "validation")}
    assert [r["step"] for r in by_kind["train"]] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in by_kind["validation"]] == [0, 3, 6]
    record = by_kind["train"][2]
    assert record["learning_rate"] == pytest.approx(0.75e-2) and record["position"] == {"offset": 3}
    assert record["skipped_steps"] == 0 and record["gradient_norm"] > 0
    losses = record["losses"]
    assert record["loss"] == pytest.approx(losses["codes"] + 0.5 * losses["cqt"] + 10 * losses["feature_penalty"])
    assert len(record["accuracy"]["codes"]) == 2
    names = {path.name for path in (uninterrupted / "checkpoints").iterdir()}
    assert names == {"step_4", "step_6"}


def test_validation_does_not_depend_on_training_before_it(tmp_path, uninterrupted):
    """Same weights, same value: masks are fixed and dropout is off."""
    run(tmp_path, config(total_steps=4, validate_every=1), layer_drop=0.3)
    first = [record for record in read_metrics(tmp_path) if record["kind"] == "validation"][0]
    assert first == read_metrics(uninterrupted)[0]


@pytest.mark.parametrize(
    ("change", "words"), [("missing", "is only in the model"), ("unknown", "is only in the checkpoint")]
)
def test_an_average_of_other_weights_is_refused_in_a_line(change, words):
    average = WeightAverage(tiny_model(), 0.9)
    saved = dict(average.weights)
    if change == "missing":
        saved.pop("encoder.mask_embedding")
    else:
        saved["surprise"] = torch.zeros(1)
    with pytest.raises(ValueError, match=f"step_5: averaged weights: weight (encoder.mask_embedding|surprise) {words}"):
        average.load(saved, "step_5")


def test_training_lowers_the_validation_loss(tmp_path):
    stream = lambda position, step: iter([(synthetic_batch(1_000 + i % 2), {"offset": i}) for i in range(40)])  # noqa: E501, E731
    run(tmp_path, config(total_steps=40, validate_every=40, checkpoint_every=40), stream=stream, dropout=0.0)
    first, last = [record["loss"] for record in read_metrics(tmp_path) if record["kind"] == "validation"]
    assert last < first - 0.5


def test_another_seed_or_model_is_refused(tmp_path, uninterrupted):
    with pytest.raises(ValueError, match="seed is 11 in the checkpoint but 12"):
        data = TrainingData(lambda position, step: synthetic_stream(position), None, 24_000)
        train(tiny_model(), data, config(), uninterrupted, {}, 12, CPU, lambda: False, print)
    with pytest.raises(ValueError, match="layers.2.*is only in the model"):
        run(uninterrupted, config(), layers=3)


def test_a_stream_that_ends_is_an_error(tmp_path):
    stream = lambda position, step: itertools.islice(synthetic_stream(position), 3)  # noqa: E501, E731
    with pytest.raises(ValueError, match="stream ended after step 3, before total_steps 6"):
        run(tmp_path, config(), stream=stream)


def test_an_incomplete_checkpoint_is_reported_and_passed_over(tmp_path, uninterrupted):
    run(tmp_path, config(), layer_drop=0.3)
    (tmp_path / "checkpoints" / "step_6" / "optimizer.pt").write_bytes(b"torn")
    (tmp_path / "checkpoints" / ".partial-step_8").mkdir()
    records = []
    run(tmp_path, config(), records=records, layer_drop=0.3)
    assert [record["kind"] for record in records[:3]] == ["incomplete_checkpoint", "incomplete_checkpoint", "resume"]
    assert "optimizer.pt" in records[0]["fault"] and records[2]["step"] == 4
    assert records[1]["fault"].endswith("step_8: its write was cut short")
    assert read_metrics(tmp_path) == read_metrics(uninterrupted)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_4", "step_6"]


def poisoned_stream(steps: set[int], poisoned_rank: int = 0):
    """Targets that are not finite, on one rank only."""

    def stream(position, done):
        for batch, after in synthetic_stream(position, rank(), world_size()):
            if after["offset"] in steps and rank() == poisoned_rank:
                batch["cqt"] = batch["cqt"] * float("inf")
            yield batch, after

    return stream


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path):
    run(tmp_path, config(total_steps=4), stream=poisoned_stream({2, 3}))
    records = read_metrics(tmp_path)
    assert [record["step"] for record in records if record["kind"] == "skipped"] == [2, 3]
    assert [record["skipped_steps"] for record in records if record["kind"] == "train"] == [0, 1, 2, 2]
    assert all(weight.isfinite().all() for weight in final_weights(tmp_path).values())


def test_too_many_broken_steps_in_a_row_end_training_even_across_a_resume(tmp_path):
    trainer = config(total_steps=9, max_consecutive_skips=3, checkpoint_every=100)
    polls = itertools.count(1)
    run(tmp_path, trainer, stream=poisoned_stream({1, 3, 4, 5}), stop=lambda: next(polls) == 4)
    with pytest.raises(FloatingPointError, match="step 5: .* 3 steps in a row, max_consecutive_skips is 3"):
        run(tmp_path, trainer, stream=poisoned_stream({1, 3, 4, 5}))


def gradient(accumulation: int, batch: dict, mask: MaskConfig = MaskConfig(), **model) -> dict[str, torch.Tensor]:
    """The gradient an optimiser step applies, caught before the optimiser clears it."""
    model = tiny_model(**{"dropout": 0.0, **model})
    step = TrainStep(model, OptimizerConfig(gradient_clip=1e9), mask, None, accumulation, False, 11, CPU)
    caught = {}
    step.optimizer.step = lambda: caught.update({n: p.grad.clone() for n, p in model.named_parameters()})
    result = step.train(batch, 1, 1e-3, {})
    caught["loss"] = torch.tensor(result.summary["loss"])
    return caught


def uneven_batch() -> dict:
    """Rows with different numbers of valid and masked frames."""
    batch = synthetic_batch(5)
    for row, frames in enumerate((20, 7, 3, 15)):
        batch["valid"][row, frames:] = False
    return batch


def assert_close(first: dict, second: dict) -> None:
    for name, value in first.items():
        assert torch.allclose(value, second[name], rtol=1e-3, atol=1e-5 * float(value.abs().max()) + 1e-8), name


def test_a_step_moves_weights_by_its_rate_and_draws_its_own_dropout():
    model = tiny_model()
    every_frame = MaskConfig(probability=1.0, span=1)
    step = TrainStep(model, OptimizerConfig(), every_frame, None, 1, False, 11, CPU)
    before = model.encoder.mask_embedding.clone()
    losses = [step.train(synthetic_batch(0), number, 0.0, {}).summary["loss"] for number in (1, 2, 1)]
    assert torch.equal(model.encoder.mask_embedding, before)
    assert losses[0] == losses[2] != losses[1]
    step.train(synthetic_batch(0), 3, 0.25, {})
    moved = (model.encoder.mask_embedding - before).abs()
    assert 0.05 < moved.max() < 0.5  # Adam moves a weight by about the rate


@pytest.mark.parametrize("accumulation", [2, 3, 4])
def test_accumulation_does_not_change_the_gradient(accumulation):
    assert_close(gradient(1, uneven_batch()), gradient(accumulation, uneven_batch()))


def test_accumulation_does_not_change_the_gradient_with_every_option():
    options = {"mask": EVERY_MASK, "objective": EVERY_OPTION["objective"]}
    assert_close(gradient(1, uneven_batch(), **options), gradient(3, uneven_batch(), **options))


def test_the_rate_of_a_group_is_the_schedules_times_its_multiplier():
    step = TrainStep(tiny_model(), OptimizerConfig(), MaskConfig(), None, 1, False, 11, CPU)
    for number, group in enumerate(step.optimizer.param_groups):
        group["rate_multiplier"] = 0.5**number
    step.train(synthetic_batch(0), 1, 1e-3, {})
    rates = [group["lr"] for group in step.optimizer.param_groups]
    assert len(rates) > 1 and rates == [1e-3 * 0.5**number for number in range(len(rates))]


def test_a_batch_smaller_than_accumulation_is_refused():
    with pytest.raises(ValueError, match="4 rows cannot be split into accumulation 5 parts"):
        gradient(5, uneven_batch())


def two_ranks(process_rank: int, folder: Path) -> None:
    rows = slice(2 * process_rank, 2 * process_rank + 2)
    gradients = [gradient(n, slice_rows(uneven_batch(), rows)) for n in (1, 2)]
    options = {"mask": EVERY_MASK, "objective": EVERY_OPTION["objective"]}
    every_option = gradient(1, slice_rows(uneven_batch(), rows), **options)
    torch.save([*gradients, every_option], folder / f"gradients{process_rank}.pt")

    run(folder / "plain", config(mixture=None), dropout=0.0)
    stop = lambda: process_rank == 1  # noqa: E501, E731  (the signal reaches one rank only)
    stopped = run(folder / "resumed", config(), stop=stop, layer_drop=0.3)
    assert (stopped.status, stopped.step) == ("stopped", 1)
    for part in ("resumed", "whole"):
        run(folder / part, config(), layer_drop=0.3)
    for part, steps in (("options", 3), ("options", 6), ("options_whole", 6)):
        stop = (lambda: True) if steps == 3 else (lambda: False)
        run(folder / part, config(mask=EVERY_MASK, diagnostics_every=2, ema=0.4), stop=stop, **EVERY_OPTION)
    alone = lambda: validation() if process_rank == 0 else []  # noqa: E501, E731  (rank 1 has no batch to validate on)
    run(folder / "validation", config(total_steps=3, mixture=None), validation=alone)
    run(folder / "poisoned", config(total_steps=4), stream=poisoned_stream({2}, poisoned_rank=1))


@pytest.mark.process
def test_two_ranks_do_as_one(tmp_path):
    for name in ("plain", "resumed", "whole", "poisoned", "single", "options", "options_whole", "validation"):
        (tmp_path / name).mkdir()
    run_ranks(two_ranks, 2, tmp_path)

    alone = gradient(1, uneven_batch())
    every_option = gradient(1, uneven_batch(), mask=EVERY_MASK, objective=EVERY_OPTION["objective"])
    for process_rank in range(2):
        *plain, caught = torch.load(tmp_path / f"gradients{process_rank}.pt", weights_only=True)
        for one in plain:
            assert_close(alone, one)
        assert_close(every_option, caught)

    run(tmp_path / "single", config(mixture=None), dropout=0.0)
    for one, two in zip(read_metrics(tmp_path / "single"), read_metrics(tmp_path / "plain"), strict=True):
        assert one["kind"] == two["kind"] and one["loss"] == pytest.approx(two["loss"], rel=1e-4)

    assert read_metrics(tmp_path / "resumed") == read_metrics(tmp_path / "whole")
    assert_same_weights(tmp_path / "resumed", tmp_path / "whole")
    assert read_metrics(tmp_path / "options") == read_metrics(tmp_path / "options_whole")
    assert_same_weights(tmp_path / "options", tmp_path / "options_whole")
    assert all(record["loss"] > 0 for record in read_metrics(tmp_path / "validation"))
    assert [r["step"] for r in read_metrics(tmp_path / "poisoned") if r["kind"] == "skipped"] == [2]
    assert all(weight.isfinite().all() for weight in final_weights(tmp_path / "poisoned").values())


def test_precision_auto_is_fp32_on_a_cpu():
    assert [resolve_precision(name, CPU) for name in ("auto", "fp32", "bf16")] == ["fp32", "fp32", "bf16"]


def test_precision_tf32_is_for_a_gpu():
    assert resolve_precision("tf32", torch.device("cuda")) == "tf32"
    with pytest.raises(ValueError, match="precision tf32 needs a GPU .*the device is cpu"):
        resolve_precision("tf32", CPU)


def test_bf16_stays_near_fp32(tmp_path):
    losses = []
    for precision in ("fp32", "bf16"):
        folder = tmp_path / precision
        folder.mkdir()
        run(folder, config(total_steps=3, precision=precision), dropout=0.0)
        losses.append([record["loss"] for record in read_metrics(folder)])
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0][:2] == pytest.approx(losses[1][:2], rel=0.002)  # before weights have gone their own ways


def test_a_resumed_run_uses_its_own_optimizer_settings(tmp_path, uninterrupted):
    run(tmp_path, config(3))
    run(tmp_path, config(6, optimizer=OptimizerConfig(weight_decay=0.5, betas=(0.5, 0.6))))
    state = torch.load(tmp_path / "checkpoints" / "step_6" / "optimizer.pt", weights_only=True)
    assert {tuple(group["betas"]) for group in state["param_groups"]} == {(0.5, 0.6)}
    assert max(group["weight_decay"] for group in state["param_groups"]) == 0.5
