"""What a run drew, told afterwards from its positions: the rows of any step, what was heard how often, and whether any
is missing.
"""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_fixtures import write_set

from mert_foundry.jobs import audit
from mert_foundry.model.runs import checkpoint
from mert_foundry.model.runs.checkpoint import CheckpointState, save_checkpoint
from mert_foundry.model.runs.rewinds import rewind
from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.stream.batch_stream import MixtureStream, StreamConfig
from mert_foundry.pipeline.stream.past_rows import PastRows
from mert_foundry.pipeline.stream.set_mixture import SetMixture, ShardSet

SIZES = {"a": [3, 0, 4, 6], "b": [2, 3]}
STREAM = {"batch_size": 4, "crop_samples": 6400, "shuffle_window": 2, "threads": 2}
SEED = 3


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sets")
    for name, sizes in SIZES.items():
        write_set(root / name, sizes, "pcm.npy", prefix=name)
    return {name: root / name for name in SIZES}


def drawn(sets, phases, **changes):
    """Steps as a run draws them, by phases of (weights, steps, batch size): each step's rows, (key, first frame), and
    its position.
    """
    position, steps = None, []
    for weights, count, batch_size in phases:
        mixture = SetMixture(
            [ShardSet(str(sets[name]), load_index(str(sets[name])), weight) for name, weight in weights.items()]
        )
        config = StreamConfig(**STREAM | {"batch_size": batch_size} | changes)
        with MixtureStream(mixture, "train", config, SEED, position=position) as stream:
            for _ in range(count):
                batch, position = next(stream)
                first = [int(audio[0]) // 320 for audio in batch["audio"]]
                steps.append((list(zip(batch["key"], first, strict=True)), json.loads(json.dumps(position))))
    return steps


def past_of(sets, steps, batch_size, log_every=1):
    known = {step: position for step, (_, position) in enumerate(steps, 1) if step % log_every == 0}
    read = [ShardSet(str(folder), load_index(str(folder))) for folder in sets.values()]
    return PastRows(read, known, [(1, batch_size)])


def write_run(folder: Path, sets, steps, shards=None, log_every=1, stream=STREAM) -> Path:
    """The folder of a run that drew these steps, as far as these commands read it."""
    folder.mkdir()
    config = {"shards": shards or [{"path": str(path)} for path in sets.values()], "stream": stream}
    (folder / "config.yaml").write_text(yaml.safe_dump({"config": config}))
    records = [
        {"kind": "train", "step": step, "loss": 1.0, "position": position}
        for step, (_, position) in enumerate(steps, 1)
    ]
    lines = [json.dumps(record) for record in records if record["step"] % log_every == 0]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    return folder


WEIGHTS = st.sampled_from([{"a": 1}, {"a": 1, "b": 1}, {"a": 1, "b": 3}, {"a": 7, "b": 2}])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(phases=st.lists(st.tuples(WEIGHTS, st.integers(1, 6)), min_size=1, max_size=3), log_every=st.integers(1, 4))
def test_any_step_is_told_from_the_positions_around_it(sets, phases, log_every):
    steps = drawn(sets, [(weights, count, 4) for weights, count in phases])
    if len(steps) < log_every:
        return
    past = past_of(sets, steps, 4, log_every)
    names = {load_index(str(folder)).digest(): name for name, folder in sets.items()}
    for step in range(1, len(steps) // log_every * log_every + 1):
        told = [(names[row.digest], row.place.shard, row.place.example) for row in past.places_of(step)]
        # Keys tell set, shard and example: `atrain2x1-00000`. Shards of no example have a number too.
        rows = [(key[0], *map(int, key[6:-6].split("x"))) for key, _ in steps[step - 1][0]]
        assert told == rows
    assert list(past.find_faults()) == []


def test_a_batch_size_that_changed_is_told_where_positions_say_so(sets):
    steps = drawn(sets, [({"a": 1, "b": 1}, 6, 4), ({"a": 1, "b": 1}, 7, 8)])
    past = past_of(sets, steps, 8, log_every=2)
    assert [len(past.rows_of(step)) for step in (1, 6, 7, 12)] == [4, 4, 8, 8]
    around = drawn(sets, [({"a": 1, "b": 1}, 7, 4), ({"a": 1, "b": 1}, 5, 8)])
    past = past_of(sets, around, 8, log_every=3)
    names = {load_index(str(folder)).digest(): name for name, folder in sets.items()}
    for step in range(1, 13):  # also from 7 to 9, between two positions
        told = [(names[row.digest], row.place.shard, row.place.example) for row in past.places_of(step)]
        assert told == [(key[0], *map(int, key[6:-6].split("x"))) for key, _ in around[step - 1][0]]
    between = past_of(sets, drawn(sets, [({"a": 1}, 4, 4), ({"a": 1}, 2, 8)]), 8, log_every=3)
    with pytest.raises(
        ValueError, match="step 5: 20 rows were drawn in the 3 steps after step 3, stream.batch_size is 8"
    ):
        between.rows_of(5)


def test_the_command_lists_keys_and_crops(sets, tmp_path, run_here):
    steps = drawn(sets, [({"a": 1}, 3, 4), ({"a": 2, "b": 1}, 6, 4)])
    folder = write_run(tmp_path / "run", sets, steps, log_every=3)
    for step in (1, 3, 4, 8):
        code, out, err = run_here(audit, folder, "--step", step, "--json")
        assert (code, err) == (0, "")
        rows = json.loads(out)["rows"]
        assert [(row["key"], round(75 * row["start"])) for row in rows] == steps[step - 1][0]
        assert [Path(row["set"]).name for row in rows] == [key[0] for key, _ in steps[step - 1][0]]
    code, out, _ = run_here(audit, folder, "--step", 8)
    assert code == 0 and all(key in out for key, _ in steps[7][0])


@pytest.mark.parametrize(("step", "words"), [(0, "steps 1 to 3"), (4, "step 4: positions are known of steps 1 to 3")])
def test_a_step_that_was_not_made_is_refused_in_a_line(sets, tmp_path, run_here, step, words):
    folder = write_run(tmp_path / "run", sets, drawn(sets, [({"a": 1}, 3, 4)]))
    code, out, err = run_here(audit, folder, "--step", step)
    assert (code, out) == (1, "") and words in err and err.count("\n") == 1


def test_a_step_at_which_batches_were_passed_over_is_refused_and_those_around_it_are_told(
    sets, tmp_path, run_here, say
):
    made = drawn(sets, [({"a": 1}, 9, 4)])
    steps = [*made[:3], *made[5:]]  # step 5 was a spike, from which the run went back to step 3
    folder = write_run(tmp_path / "run", sets, steps)
    rewind(folder, 3, 5, made[4][1])
    for step in (3, 5):
        code, out, _ = run_here(audit, folder, "--step", step, "--json")
        assert code == 0 and [row["key"] for row in json.loads(out)["rows"]] == [key for key, _ in steps[step - 1][0]]
    code, out, err = run_here(audit, folder, "--step", 4)
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert "step 4 cannot be told: between steps 3 and 4 the run went back from step 5 to step 3" in err
    assert "batches that a rewind passed over count as drawn" in say(folder)[1]


def test_sets_that_moved_are_named_and_one_that_was_left_out_is_asked_for(sets, tmp_path, run_here):
    steps = drawn(sets, [({"a": 1, "b": 1}, 3, 4), ({"a": 1}, 3, 4)])
    folder = write_run(tmp_path / "run", sets, steps, shards=str(sets["a"]))
    assert run_here(audit, folder, "--step", 5)[0] == 0
    code, _, err = run_here(audit, folder, "--step", 2)
    assert code == 1 and f"index.json of SHA-256 {load_index(str(sets['b'])).digest()} is not among {sets['a']}" in err
    moved = shutil.copytree(sets["b"], tmp_path / "moved")
    code, out, _ = run_here(audit, folder, "--step", 2, "--shards", sets["a"], moved, "--json")
    assert code == 0 and str(moved) in {row["set"] for row in json.loads(out)["rows"]}


def test_coverage_is_that_of_the_keys_drawn(sets, tmp_path, say):
    steps = drawn(sets, [({"a": 1}, 3, 4), ({"a": 2, "b": 1}, 6, 4)])
    folder = write_run(tmp_path / "run", sets, steps)
    code, out, _ = say(folder, "--json")
    found = json.loads(out)["coverage"]
    assert code == 0 and found["rows"] == 36 and found["faults"] == [] and found["positions"] == 9
    heard = Counter(key for rows, _ in steps for key, _ in rows)
    for each in found["sets"]:
        name = Path(each["set"]).name
        counts = Counter(times for key, times in heard.items() if key[0] == name)
        assert sum(counts.values()) == each["examples"] == sum(SIZES[name])
        assert each["heard"] == pytest.approx(
            {str(times): number / each["examples"] for times, number in counts.items()}
        )
        assert each["drawn"] == sum(times for key, times in heard.items() if key[0] == name)
    # 28 of 13 examples, 8 of 5: three epochs begun and two.
    assert (found["epochs_counted"], found["examples_counted"]) == (5, 3 * 13 + 2 * 5)
    _, out, _ = say(folder)
    assert "84.6% 2 times, 15.4% 3 times" in out and "sets or weights changed after rows 12" in out


@pytest.mark.parametrize("change", [1, -1])
def test_a_position_that_leaves_out_or_repeats_an_example_is_named(sets, tmp_path, say, change):
    steps = drawn(sets, [({"a": 1, "b": 1}, 5, 4)])
    digest = load_index(str(sets["a"])).digest()
    steps[3][1]["sets"][digest]["offset"] += change
    _, out, _ = say(write_run(tmp_path / "run", sets, steps))
    assert f"step 4: {sets['a']}: {8 + change} examples consumed, 8 rows drawn" in out and "no example" not in out


def test_positions_that_go_back_are_named(sets, tmp_path, say):
    steps = drawn(sets, [({"a": 1}, 5, 4)])
    steps[3] = steps[2]
    _, out, _ = say(write_run(tmp_path / "run", {"a": sets["a"]}, steps))
    assert "step 4: 0 rows since step 3, fewer than steps" in out


def test_inspect_shows_a_run_whose_shards_are_gone(sets, tmp_path, say):
    folder = write_run(tmp_path / "run", sets, drawn(sets, [({"a": 1}, 2, 4)]), shards=str(tmp_path / "gone"))
    code, out, _ = say(folder)
    assert code == 0 and "not known: " in out and "gone" in out


def test_a_set_that_was_removed_takes_only_its_own_positions_along(sets, tmp_path, run_here, say):
    steps = drawn(sets, [({"a": 1}, 3, 4), ({"a": 1, "b": 1}, 3, 4), ({"b": 1}, 3, 4)])
    folder = write_run(tmp_path / "run", sets, steps, shards=str(sets["b"]))
    code, out, err = run_here(audit, folder, "--step", 8, "--json")
    assert (code, err) == (0, "")
    assert [row["key"] for row in json.loads(out)["rows"]] == [key for key, _ in steps[7][0]]
    code, _, err = run_here(audit, folder, "--step", 2)
    assert code == 1 and f"index.json of SHA-256 {load_index(str(sets['a'])).digest()} is not among" in err
    found = json.loads(say(folder, "--json")[1])["coverage"]
    assert (found["positions"], found["positions_left_out"], found["faults"]) == (6, 3, [])
    assert "3 positions, of steps 1 to 3, are of sets that are not at hand" in " ".join(say(folder)[1].split())


def test_other_sets_altogether_are_refused(sets, tmp_path, run_here):
    folder = write_run(tmp_path / "run", sets, drawn(sets, [({"a": 1}, 2, 4)]), shards=str(sets["b"]))
    code, _, err = run_here(audit, folder, "--step", 1)
    assert code == 1 and f"none of 2 positions is of {sets['b']}" in err


def test_a_run_without_its_config_is_shown_and_not_audited(sets, tmp_path, run_here, say):
    folder = write_run(tmp_path / "run", sets, drawn(sets, [({"a": 1}, 2, 4)]))
    (folder / "config.yaml").unlink()
    code, out, _ = say(folder)
    assert code == 0 and "not known: " in out and "no config.yaml with config.shards" in out
    code, _, err = run_here(audit, folder, "--step", 1)
    assert code == 1 and "no config.yaml with config.shards" in err and err.count("\n") == 1


def test_a_folder_that_is_no_run_is_named(tmp_path, run_here):
    code, _, errors = run_here(audit, tmp_path / "none", "--step", 1)
    assert code == 1 and errors == f"error: {tmp_path / 'none'}: there is no such folder; a run folder is needed\n"
    code, _, errors = run_here(audit, tmp_path, "--step", 1)
    assert code == 1 and errors.startswith(f"error: {tmp_path}: no run folder, it has no metrics.jsonl")


def test_a_position_that_is_no_mapping_is_named(sets, tmp_path, say):
    steps = drawn(sets, [({"a": 1}, 2, 4)])
    code, out, _ = say(write_run(tmp_path / "run", {"a": sets["a"]}, [steps[0], (steps[1][0], 7)]))
    assert code == 0 and "step 2: the position is 7, a mapping is needed" in " ".join(out.split())


def save(folder: Path, step: int, position) -> Path:
    state = CheckpointState(step=step, position=position, seed=SEED, world_size=1)
    return save_checkpoint(folder / "checkpoints", state, {"weight": torch.ones(2)}, {}, {})


def test_positions_are_of_whole_checkpoints_only(sets, tmp_path, run_here, say):
    """A run of which the newest checkpoint was damaged went on from an older one, with other weights."""
    lost = drawn(sets, [({"a": 1, "b": 1}, 6, 4)])
    steps = drawn(sets, [({"a": 1, "b": 1}, 3, 4), ({"a": 3, "b": 1}, 2, 4)])
    folder = write_run(tmp_path / "run", sets, steps[:3])
    (save(folder, 6, lost[5][1]) / "model.safetensors").write_bytes(b"cut")
    code, _, err = run_here(audit, folder, "--step", 5)
    assert code == 1 and "positions are known of steps 1 to 3" in err
    save(folder, 5, steps[4][1])
    (save(folder, 7, lost[5][1]) / "state.json").write_text('{"form')
    code, out, _ = run_here(audit, folder, "--step", 5, "--json")
    assert code == 0 and [row["key"] for row in json.loads(out)["rows"]] == [key for key, _ in steps[4][0]]
    assert json.loads(say(folder, "--json")[1])["coverage"]["faults"] == []


def test_a_checkpoint_of_another_version_does_not_hide_the_run(sets, tmp_path, monkeypatch, say):
    folder = write_run(tmp_path / "run", {"a": sets["a"]}, drawn(sets, [({"a": 1}, 2, 4)]))
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 99)
    save(folder, 3, {"epoch": 0})
    monkeypatch.undo()
    code, out, _ = say(folder, "--json")
    assert code == 0 and json.loads(out)["coverage"]["positions"] == 2
