"""Batch size and crops that change by schedule: the stream, what is told of it afterwards, and runs that are killed
around a change.
"""

import json
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pretrain_run import (
    NO_DROPOUT,
    final_weights,
    held_back,
    pretrain_here,
    read_metrics,
    read_steps,
)
from pydantic import ValidationError
from shard_fixtures import write_set
from tiny_model import synthetic_batch, tiny_model

from mert_foundry.jobs import audit
from mert_foundry.model.objective.operations import count_operations
from mert_foundry.model.runs.checkpoint import load_state
from mert_foundry.model.training import spikes
from mert_foundry.model.training.optimizer import ScheduleConfig
from mert_foundry.model.training.pace import Pace
from mert_foundry.model.training.stages import Stage
from mert_foundry.model.training.step_clock import PARTS
from mert_foundry.model.training.trainer import TrainingData, train
from mert_foundry.model.training.trainer_config import TrainerConfig
from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.stream.batch_stream import BatchStream, MixtureStream
from mert_foundry.pipeline.stream.set_mixture import SetMixture, ShardSet
from mert_foundry.pipeline.stream.staged_stream import staged_batches
from mert_foundry.pipeline.stream.stream_config import StreamConfig

SIZES = {"a": [3, 0, 4, 6], "b": [2, 3]}
EXAMPLES = 13  # of a
SEED = 3
STREAM = {"batch_size": 4, "crop_samples": 20 * 320, "shuffle_window": 2, "threads": 2}
STAGED = STREAM | {
    "batch_size_schedule": [(3, 8), (6, 4)],
    "crop_samples_schedule": [(6, 60 * 320), (9, 40 * 320)],
}
WORLDS = (1, 2, 4)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sets")
    for name, sizes in SIZES.items():
        write_set(root / name, sizes, "pcm.npy", prefix=name, valid_sizes=[3] if name == "a" else [])
    return {name: root / name for name in SIZES}


def mixture(sets: dict[str, Path], *names: str) -> SetMixture:
    return SetMixture([ShardSet(str(sets[name]), load_index(str(sets[name])), 1) for name in names])


def drawn(mixed: SetMixture, config: StreamConfig, steps: int, step=0, position=None, ranks=1) -> list[tuple]:
    """Steps as `ranks` ranks draw them after `step` steps: rows of (key, first sample, valid frames), whole audio, and
    the position.
    """
    shares = []
    for number in range(ranks):

        def open_stream(stage: StreamConfig, position: dict | None, number: int = number) -> MixtureStream:
            return MixtureStream(mixed, "train", stage, SEED, number, ranks, position)

        batches = staged_batches(open_stream, config, step, position)
        shares.append([(batch, json.loads(json.dumps(after))) for batch, after in islice(batches, steps)])
        batches.close()
    found = []
    for of_ranks in zip(*shares, strict=True):
        numbers = [row for batch, _ in of_ranks for row in batch["row"].tolist()]
        assert numbers == list(range(len(numbers)))
        keys = [key for batch, _ in of_ranks for key in batch["key"]]
        audio = torch.cat([batch["audio"] for batch, _ in of_ranks])
        frames = torch.cat([batch["valid"].sum(1) for batch, _ in of_ranks]).tolist()
        (after,) = {json.dumps(after) for _, after in of_ranks}
        rows = [(key, int(row[0]), count) for key, row, count in zip(keys, audio, frames, strict=True)]
        found.append((rows, audio, json.loads(after)))
    return found


def test_rows_go_on_in_their_order_through_stages(sets):
    """The sequence of examples is that of a stream of single rows; sizes are those of the schedule."""
    mixed, config = mixture(sets, "a", "b"), StreamConfig(**STAGED)
    found = drawn(mixed, config, 11)
    assert [len(rows) for rows, _, _ in found] == [4, 4, 8, 8, 8, 4, 4, 4, 4, 4, 4]
    assert [audio.shape[1] // 320 for _, audio, _ in found] == [20] * 5 + [60] * 3 + [40] * 3
    keys = [key for rows, _, _ in found for key, _, _ in rows]
    assert len(keys) == 56
    with MixtureStream(mixed, "train", StreamConfig(**STREAM | {"batch_size": 1}), SEED) as single:
        assert [batch["key"][0] for batch, _ in islice(single, len(keys))] == keys


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([4, 8, 12]), min_size=1, max_size=4),
    crops=st.lists(st.sampled_from([20, 40, 60]), min_size=1, max_size=3),
    begins=st.lists(st.integers(2, 9), min_size=5, max_size=5, unique=True),
    resumed=st.integers(1, 9),
    ranks=st.sampled_from(WORLDS),
)
def test_an_epoch_has_every_example_once_and_any_resume_gives_the_very_batches(
    sets, sizes, crops, begins, resumed, ranks
):
    schedule = list(zip(sorted(begins[:3]), sizes[1:]))
    crop_schedule = list(zip(sorted(begins[3:]), [320 * frames for frames in crops[1:]]))
    config = StreamConfig(
        **STREAM | {"batch_size": sizes[0], "crop_samples": 320 * crops[0]},
        batch_size_schedule=schedule,
        crop_samples_schedule=crop_schedule,
    )
    mixed = mixture(sets, "a")
    whole = drawn(mixed, config, 10)
    keys = [key for rows, _, _ in whole for key, _, _ in rows]
    for epoch in range(len(keys) // EXAMPLES):
        assert set(Counter(keys[epoch * EXAMPLES : (epoch + 1) * EXAMPLES]).values()) == {1}
    expected = [dict(schedule).get(step) for step in range(1, 11)]
    size = sizes[0]
    for (rows, _, _), change in zip(whole, expected):
        size = change or size
        assert len(rows) == size
    again = drawn(mixed, config, 10 - resumed, resumed, whole[resumed - 1][2], ranks)
    for (rows, audio, position), (rows_again, audio_again, position_again) in zip(whole[resumed:], again, strict=True):
        assert rows_again == rows and position_again == position and torch.equal(audio_again, audio)


def test_one_stage_is_the_plain_stream(sets):
    folder = str(sets["a"])
    with BatchStream(folder, load_index(folder), "train", StreamConfig(**STREAM), SEED) as plain:
        expected = [(batch["key"], batch["audio"], after) for batch, after in islice(plain, 5)]
    for (keys, audio, after), (rows, found, position) in zip(
        expected, drawn(mixture(sets, "a"), StreamConfig(**STREAM), 5), strict=True
    ):
        assert [key for key, _, _ in rows] == keys and torch.equal(found, audio) and position == after


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size_schedule": [[5, 8], [5, 16]]}, "batch_size_schedule must have rising steps above 1, not [5, 5]"),
        ({"crop_samples_schedule": [[1, 640]]}, "crop_samples_schedule must have rising steps above 1, not [1]"),
        ({"batch_size_schedule": [[5, 0]]}, "batch_size_schedule has batch_size 0"),
        (
            {"batch_size_schedule": [[5, 6]], "crops_per_visit": 4},
            "batch_size 6 is not a multiple of crops_per_visit 4",
        ),
        ({"crop_samples_schedule": [[5, 641]]}, "641 samples is not a positive multiple of the hop, 320 samples"),
    ],
)
def test_schedules_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ValidationError) as refused:
        StreamConfig.model_validate(STREAM | changes)
    assert words in str(refused.value)


# What is told afterwards.


def write_run(folder: Path, sets, steps, stream, log_every: int) -> Path:
    """The folder of a run that drew these steps, as far as these commands read it."""
    folder.mkdir()
    document = yaml.safe_dump({"config": {"shards": str(sets["a"]), "stream": json.loads(json.dumps(stream))}})
    (folder / "config.yaml").write_text(document)
    records = [
        json.dumps({"kind": "train", "step": step, "loss": 1.0, "position": position})
        for step, (_, _, position) in enumerate(steps, 1)
        if step % log_every == 0
    ]
    (folder / "metrics.jsonl").write_text("\n".join(records))
    return folder


@pytest.mark.parametrize("log_every", [1, 4, 12])
def test_audit_and_coverage_know_the_stages_also_between_positions(sets, tmp_path, run_here, say, log_every):
    steps = drawn(mixture(sets, "a"), StreamConfig(**STAGED), 12)
    folder = write_run(tmp_path / "run", sets, steps, STAGED, log_every)
    for step, (rows, _, _) in enumerate(steps, 1):
        code, out, err = run_here(audit, folder, "--step", step, "--json")
        assert (code, err) == (0, ""), err
        told = json.loads(out)["rows"]
        assert [(row["key"], round(75 * row["start"]), round(75 * row["seconds"])) for row in told] == [
            (key, first // 320, frames) for key, first, frames in rows
        ]
    found = json.loads(say(folder, "--json")[1])["coverage"]
    assert found["faults"] == [] and found["rows"] == sum(len(rows) for rows, _, _ in steps)
    heard = Counter(Counter(key for rows, _, _ in steps for key, _, _ in rows).values())
    assert found["sets"][0]["heard"] == pytest.approx({str(k): v / EXAMPLES for k, v in heard.items()})


def test_a_schedule_that_the_run_did_not_follow_is_not_believed(sets, tmp_path, run_here):
    steps = drawn(mixture(sets, "a"), StreamConfig(**STAGED), 12)
    folder = write_run(tmp_path / "run", sets, steps, STAGED | {"batch_size_schedule": [[4, 8], [6, 4]]}, 4)
    code, _, err = run_here(audit, folder, "--step", 2)
    assert code == 1 and "24 rows were drawn in the 4 steps after step 0, stream.batch_size is 4" in err
    assert run_here(audit, folder, "--step", 10)[0] == 0


# The loop.


def test_the_time_left_counts_the_steps_of_each_stage_by_their_operations():
    now, model = [0.0], tiny_model()
    stages = [Stage(1, 4, 20 * 320), Stage(5, 8, 20 * 320), Stage(7, 8, 60 * 320)]
    pace = Pace(model, 24_000, 2, 10, clock=lambda: now[0], stages=stages)
    sizes = {3: stages[0], 4: stages[0], 5: stages[1], 6: stages[1], 7: stages[2]}

    def work(stage: Stage) -> float:
        return count_operations(model, stage.samples)(stage.rows, stage.rows * model.encoder.num_frames(stage.samples))

    operations = 0.0
    for step, stage in sizes.items():
        named = {"rows": stage.rows, "samples": stage.rows * stage.samples, "masked_frames": 10, "valid_frames": 80}
        named |= {f"seconds/{part}": 0.0 for part in PARTS}
        totals = {name: torch.tensor(float(value)) for name, value in named.items()} | {"busy": torch.tensor([0.0])}
        if step > 3:
            now[0] += work(stage) / 1e6
        pace.add(totals)
        operations += count_operations(model, stage.samples)(stage.rows, 10)
    found = pace.read(heard=None, memory=torch.tensor([1.0]))
    assert found["eta_seconds"] == pytest.approx(3 * work(stages[2]) / 1e6)
    assert found["operations_per_second"] == pytest.approx(operations / now[0])
    seconds = sum(stage.rows * stage.samples for stage in sizes.values()) / 24_000
    assert found["audio_seconds_per_second"] == pytest.approx(seconds / now[0])


def test_a_change_is_no_spike_and_ends_no_run(tmp_path, monkeypatch):
    """Losses jump where batches become others: with on_spike skip, that would leave out every step from there on."""
    monkeypatch.setattr(spikes, "WINDOW", 10)

    def stream(position: dict | None, step: int):
        while True:
            step += 1
            batch = synthetic_batch(step)
            batch["cqt"] = batch["cqt"] + (30 if step >= 13 else 0)
            yield batch, {"offset": step}

    def found(name: str, stages: list[Stage]) -> list[int]:
        trainer = TrainerConfig(
            schedule=ScheduleConfig(learning_rate=1e-3, warmup_steps=1, total_steps=16),
            mixture=None,
            on_spike="skip",
            checkpoint_every=12,
        )
        data = TrainingData(stream, None, 24_000, stages=stages)
        for steps in (14, 16):  # the second goes on within the stage
            schedule = trainer.schedule.model_copy(update={"total_steps": steps})
            one = trainer.model_copy(update={"schedule": schedule})
            train(tiny_model(), data, one, tmp_path / name, {}, 1, torch.device("cpu"), lambda: False, lambda _: None)
        return [record["step"] for record in read_metrics(tmp_path / name, "spike")]

    size = (4, 20 * 320)
    assert found("plain", [Stage(1, *size)]) == [13, 14, 15, 16]
    assert found("staged", [Stage(1, *size), Stage(13, *size)]) == []
    (record,) = read_metrics(tmp_path / "staged", "stage")
    assert record == {"kind": "stage", "step": 13, "batch_size": 4, "crop_samples": 6400}


# The command.

STEPS = 36
SCHEDULES = [
    "stream.batch_size_schedule=[[11,8]]",
    "stream.crop_samples_schedule=[[11,12800],[16,6400]]",
    f"trainer.schedule.total_steps={STEPS}",
    "trainer.keep_checkpoints=100",
    "trainer.mixture=null",
    *NO_DROPOUT,
]


@pytest.fixture(scope="module")
def whole(sets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run through two changes, undisturbed, with a checkpoint every fifth step; read only."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert pretrain_here(sets["a"], out, *SCHEDULES) == 0
    return out


def test_a_run_says_what_it_heard_and_validates_alike_in_every_stage(sets, whole, tmp_path, run_here, say):
    seconds = 0.0
    for record in read_metrics(whole, "train")[:17]:
        step = record["step"]
        rows = json.loads(run_here(audit, whole, "--step", step, "--json")[1])["rows"]
        assert len(rows) == (4 if step < 11 else 8)
        assert max(row["seconds"] for row in rows) <= (40 if 11 <= step < 16 else 20) / 75 + 1e-3
        seconds += sum(row["seconds"] for row in rows)
        assert record["hours_heard"] * 3600 == pytest.approx(seconds, abs=0.1)
    found = [(each["step"], each["batch_size"], each["crop_samples"]) for each in read_metrics(whole, "stage")]
    assert found == [(11, 8, 12_800), (16, 8, 6_400)]
    code, out, _ = say(whole, "--json")
    assert code == 0 and json.loads(out)["coverage"]["faults"] == []
    # Another run with the same weights, and crops as in the first stage.
    checkpoint, plain = whole / "checkpoints" / "step_20", tmp_path / "plain"
    one_step = ["trainer.schedule.warmup_steps=0", "trainer.schedule.total_steps=1"]
    assert pretrain_here(sets["a"], plain, *SCHEDULES[3:], *one_step, f"initial={checkpoint}") == 0
    of_stage, of_plain = read_metrics(whole, "validation")[2], read_metrics(plain, "validation")[0]
    assert (of_stage["step"], of_plain["step"]) == (20, 0)
    assert of_plain["loss"] == pytest.approx(of_stage["loss"], rel=1e-6)


@pytest.mark.parametrize("step", [5, 10, 15], ids=["before", "at", "after"])
def test_going_on_around_a_change_changes_no_bit(sets, whole, tmp_path, step):
    out = shutil.copytree(whole, tmp_path / "run")
    for later in [*range(step + 5, STEPS, 5), STEPS]:  # what a kill before it leaves behind
        shutil.rmtree(out / "checkpoints" / f"step_{later}")
    assert pretrain_here(sets["a"], out, *SCHEDULES) == 0
    assert read_metrics(out) == read_metrics(whole)
    theirs = final_weights(whole)
    assert all(torch.equal(weight, theirs[name]) for name, weight in final_weights(out).items())
    last = f"checkpoints/step_{STEPS}"
    assert load_state(out / last) == load_state(whole / last)


@pytest.mark.process
def test_a_divided_run_that_was_killed_goes_on_alone_through_the_changes(sets, whole, tmp_path):
    out = tmp_path / "run"
    with held_back(2, sets["a"], out, *SCHEDULES, "trainer.parallel=fsdp") as stderr:
        read_steps(stderr, 12)
    assert 12 <= read_metrics(out, "train")[-1]["step"] < STEPS
    assert pretrain_here(sets["a"], out, *SCHEDULES) == 0
    ours, theirs = (read_metrics(run, "train") for run in (out, whole))
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert (one["position"], one["hours_heard"]) == (other["position"], other["hours_heard"])


def test_a_batch_to_come_that_the_ranks_cannot_share_is_refused_at_the_start(sets, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert pretrain_here(sets["a"], tmp_path / "run", "stream.batch_size_schedule=[[5,6],[9,7]]") == 1
    line = "error: stream.batch_size 7, from step 9 on, is not a multiple of the 2 ranks\n"
    assert capsys.readouterr().err == line
    changes = ["stream.batch_size_schedule=[[9,2]]", "trainer.accumulation=2"]
    assert pretrain_here(sets["a"], tmp_path / "run", *changes) == 1
    assert (
        "2, from step 9 on, gives each of 2 ranks 1 crops, fewer than trainer.accumulation 2" in capsys.readouterr().err
    )
    assert not (tmp_path / "run" / "config.yaml").exists()
