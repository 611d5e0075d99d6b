"""`mert pretrain` on several sets: how they are named and weighed, what is refused, and what a resume with others
records.
"""

import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pretrain_run import NO_DROPOUT, Ranks, arguments, final_weights, pretrain_here, read_metrics
from shard_fixtures import CODES, CQT, write_set

from mert_foundry.jobs.command.config import UsageError, load_config
from mert_foundry.jobs.pretraining.run_description import PretrainConfig, read_description
from mert_foundry.jobs.pretraining.shard_sets import load_mixture
from mert_foundry.jobs.pretraining.target_values import measure_split, sample_values
from mert_foundry.jobs.pretraining.trivial_scores import measure_trivial, sum_split
from mert_foundry.model.runs.checkpoint import load_state
from mert_foundry.pipeline.shards.index import load_index, load_records
from mert_foundry.pipeline.shards.set_statistics import sum_records
from mert_foundry.pipeline.shards.statistics import mean_and_variance


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three sets of 13, 5 and 7 examples to train on; the second has none to validate on."""
    root = tmp_path_factory.mktemp("sets")
    for name, sizes, valid in (("a", [3, 4, 6], [3]), ("b", [5], None), ("c", [7], [4])):
        write_set(root / name, sizes, valid_sizes=valid, prefix=name)
    return {name: root / name for name in "abc"}


def listed(sets: dict[str, Path], **weights: float | None) -> str:
    """The setting that names sets, as YAML."""
    entries = [{"path": str(sets[name]), "weight": weight} for name, weight in weights.items()]
    return f"shards={yaml.safe_dump(entries, default_flow_style=True, width=10_000).strip()}"


def start(sets: dict[str, Path], out: Path, *changes: str, **weights: float | None) -> int:
    return pretrain_here(sets["a"], out, listed(sets, **weights), *changes)


def refusal(capsys: pytest.CaptureFixture, *run: object, **weights: float | None) -> str:
    """The one line on stderr of a run that must fail."""
    capsys.readouterr()
    assert start(*run, **weights) != 0
    output = capsys.readouterr()
    assert not output.out and output.err.count("\n") == 1, output
    return output.err


def config_of(*arguments: str) -> PretrainConfig:
    return load_config(PretrainConfig, [*arguments, "out=run", "stream.batch_size=4", "stream.crop_samples=6400"])


def shares(config: PretrainConfig) -> dict[str, float]:
    mixture = load_mixture(config.shards, config.mixing_temperature, config.train_split)
    return {Path(each.folder).name: each.weight / sum(other.weight for other in mixture.sets) for each in mixture.sets}


def test_sets_are_weighed_by_numbers_by_hours_or_by_temperature(sets):
    assert shares(config_of(listed(sets, a=2, b=0.5))) == {"a": 0.8, "b": 0.2}
    frames = {name: load_index(str(folder)).totals["train"].seconds for name, folder in sets.items()}
    total = sum(frames.values())
    by_hours = shares(config_of(listed(sets, a=None, b=None, c=None)))
    assert by_hours == pytest.approx({name: count / total for name, count in frames.items()})
    roots = {name: count**0.5 for name, count in frames.items()}
    by_root = shares(config_of(listed(sets, a=None, b=None, c=None), "mixing_temperature=2"))
    assert by_root == pytest.approx({name: root / sum(roots.values()) for name, root in roots.items()}, abs=1e-6)
    coldest = shares(config_of(listed(sets, a=None, b=None, c=None), "mixing_temperature=0.001"))
    assert coldest["a"] == pytest.approx(1.0, abs=1e-5)  # the longest set, no overflow


def test_a_folder_is_still_named_by_its_path_alone(sets):
    assert config_of("shards=s3://a/b #1").shards == "s3://a/b #1"
    assert config_of("--shards", "123").shards == "123"
    changed = config_of(listed(sets, a=1, b=1), "shards.1.weight=3")
    assert [each.weight for each in changed.shards] == [1, 3]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["shards=[{path: A, weight: 1}, {path: B}]"],
            "shards: A has a weight, B has none; give all of them one, or none",
        ),
        (["shards=[{path: A, wieght: 1}]"], "unknown key 'shards.0.wieght'; the nearest known key is 'weight'"),
        (["shards=[{path: A, weight: 0}]"], "shards.0.weight: Input should be greater than 0 (got 0)"),
        (["shards=[{path: A, weight: 1}]", "mixing_temperature=2"], "for sets without weight; A has one"),
        (["shards=A", "mixing_temperature=2"], "mixing_temperature is 2, but shards is one folder, A"),
        (["shards=[]"], "shards is an empty list"),
    ],
)
def test_what_names_no_mixture_is_refused_in_a_line(settings, words):
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        config_of(*settings)
    assert str(caught.value).count("\n") == 0


def test_a_list_of_one_is_that_set_to_the_last_bit(sets, tmp_path):
    assert pretrain_here(sets["a"], tmp_path / "folder") == 0
    assert start(sets, tmp_path / "listed", a=7) == 0
    assert read_metrics(tmp_path / "folder") == read_metrics(tmp_path / "listed")
    first, second = final_weights(tmp_path / "folder"), final_weights(tmp_path / "listed")
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    data = [read_description(tmp_path / name).data for name in ("folder", "listed")]
    assert data[0] == data[1]


SHORT = "trainer.schedule.warmup_steps=2"


def test_a_mixture_that_goes_on_is_the_run_that_was_never_stopped(sets, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert start(sets, whole, a=2, c=1) == 0
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoints" / "step_12")
    assert start(sets, stopped, a=2, c=1) == 0
    assert read_metrics(stopped) == read_metrics(whole)
    first, second = final_weights(whole), final_weights(stopped)
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    position = load_state(whole / "checkpoints" / "step_12").position
    digests = {name: load_index(str(folder)).digest() for name, folder in sets.items()}
    consumed = {name: position["sets"][digests[name]] for name in "ac"}
    assert consumed["a"]["epoch"] * 13 + consumed["a"]["offset"] == 32
    assert consumed["c"]["epoch"] * 7 + consumed["c"]["offset"] == 16


def test_a_set_added_and_a_weight_changed_at_resumes_are_recorded(sets, tmp_path, capsys):
    out, digests = tmp_path / "run", {name: load_index(str(folder)).digest() for name, folder in sets.items()}
    assert pretrain_here(sets["a"], out, SHORT, "trainer.schedule.total_steps=4") == 0
    capsys.readouterr()
    assert start(sets, out, SHORT, "trainer.schedule.total_steps=8", a=1, b=1) == 0
    changes = capsys.readouterr().err.splitlines()[0]
    assert (
        changes.startswith(f"shards: '{sets['a']}' became [{{'path': '{sets['a']}', 'weight': 1.0}}")
        and "data." not in changes
    )
    assert start(sets, out, SHORT, "trainer.schedule.total_steps=12", a=1, b=3) == 0
    position = load_state(out / "checkpoints" / "step_12").position
    phases = [(phase["rows"], phase["weights"]) for phase in position["phases"]]
    assert phases == [
        (0, {digests["a"]: 1}),
        (16, {digests["a"]: 1, digests["b"]: 1}),
        (32, {digests["a"]: 1, digests["b"]: 3}),
    ]
    assert position["sets"][digests["a"]] == {"epoch": 2, "offset": 2, "bad_shards": []}  # 16 + 8 + 4 of 13
    assert position["sets"][digests["b"]] == {"epoch": 4, "offset": 0, "bad_shards": []}  # 8 + 12 of 5
    described = read_description(out).data
    assert {Path(each["path"]).name: each["share"] for each in described["sets"]} == {"a": 0.25, "b": 0.75}
    assert described["hours"]["train"] == pytest.approx(
        sum(each["hours"]["train"] for each in described["sets"]), abs=1e-3
    )


@pytest.mark.process
@pytest.mark.slow
def test_two_ranks_draw_the_mixture_of_one_and_go_on_with_another_weight(sets, tmp_path):
    two, still = tmp_path / "two", [*NO_DROPOUT, "trainer.mixture=null", SHORT, "missing_targets=mask"]
    ends = {6: {"a": 2, "c": 1}, 9: {"a": 1, "c": 2}}
    for steps, weights in ends.items():
        changes = [listed(sets, **weights), *still, f"trainer.schedule.total_steps={steps}"]
        assert Ranks(two, [arguments(sets["a"], two, *changes)] * 2).finish() == [0, 0]
        assert pretrain_here(sets["a"], tmp_path / "one", *changes) == 0
    for ours, theirs in zip(*(read_metrics(tmp_path / name, "train") for name in ("two", "one")), strict=True):
        assert ours["position"] == theirs["position"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert len(ours["position"]["phases"]) == 2


def test_validation_is_told_together_and_by_set(sets, tmp_path, say):
    out = tmp_path / "run"
    assert start(sets, out, "trainer.schedule.warmup_steps=1", "trainer.schedule.total_steps=2", a=1, b=1, c=1) == 0
    (record,) = read_metrics(out, "validation")[-1:]
    found = {Path(name).name: part for name, part in record["sets"].items()}
    assert sorted(found) == ["a", "c"]  # b has no split to validate on
    # The whole is the mean over the frames of both, in the same proportion for every target.
    shares = {
        (record["losses"][name] - found["c"]["losses"][name])
        / (found["a"]["losses"][name] - found["c"]["losses"][name])
        for name in ("codes", "cqt")
    }
    assert 0 < min(shares) and max(shares) == pytest.approx(min(shares), rel=1e-2) and max(shares) < 1
    _, text, _ = say(out)
    assert "last validation, by set" in text and str(sets["a"]) in text


def test_sets_that_take_the_place_of_others_are_refused(sets, tmp_path, capsys):
    out = tmp_path / "run"
    assert start(sets, out, SHORT, "trainer.schedule.total_steps=4", a=1, b=1) == 0
    before = (out / "config.yaml").read_bytes()
    digests = {name: load_index(str(folder)).digest() for name, folder in sets.items()}
    line = refusal(capsys, sets, out, SHORT, "trainer.schedule.total_steps=5", c=1)
    assert "data.index_sha256 was " in line and digests["a"] in line and digests["c"] in line
    assert (out / "config.yaml").read_bytes() == before
    moved = {**sets, "b": shutil.copytree(sets["b"], tmp_path / "b")}
    assert start(moved, out, SHORT, "trainer.schedule.total_steps=5", a=1, b=1) == 0
    shutil.rmtree(moved["b"])
    write_set(moved["b"], [4], prefix="other")
    before = (out / "config.yaml").read_bytes()
    line = refusal(capsys, moved, out, SHORT, "trainer.schedule.total_steps=6", a=1, b=1)
    assert f"index_sha256 of {moved['b']} was '{digests['b']}' in this run, it is" in line
    assert (out / "config.yaml").read_bytes() == before


def test_a_target_of_another_teacher_is_refused_also_in_a_set_that_joins(sets, tmp_path, capsys):
    """Its head was trained on the codes of one codec; those of another would be taken for the same without a word."""
    out, other = tmp_path / "run", CODES.model_copy(update={"fingerprint": "f" * 64})
    codes_only = {"a": sets["a"], "b": tmp_path / "b", "c": tmp_path / "c"}
    write_set(codes_only["b"], [5], prefix="b", specs=[CQT])
    write_set(codes_only["c"], [5], prefix="c", specs=[other, CQT])
    mask = (SHORT, "missing_targets=mask", "valid_split=null")
    assert start(codes_only, out, *mask, "trainer.schedule.total_steps=3", a=1, b=1) == 0
    before = (out / "config.yaml").read_bytes()
    line = refusal(capsys, codes_only, out, *mask, "trainer.schedule.total_steps=4", b=1, c=1)
    assert f"teacher of codes was '{CODES.fingerprint}' in this run, it is '{other.fingerprint}' now" in line
    assert (out / "config.yaml").read_bytes() == before


def test_folders_that_exchange_their_names_are_the_same_sets(sets, tmp_path):
    out = tmp_path / "run"
    assert start(sets, out, SHORT, "trainer.schedule.total_steps=3", a=1, b=3) == 0
    swapped = {"a": shutil.copytree(sets["b"], tmp_path / "a"), "b": shutil.copytree(sets["a"], tmp_path / "b")}
    assert start(swapped, out, SHORT, "trainer.schedule.total_steps=4", b=1, a=3) == 0


def test_a_set_without_the_split_to_train_on_is_named(sets, tmp_path, capsys):
    line = refusal(capsys, sets, tmp_path / "run", "train_split=valid", a=1, b=1)
    assert line.endswith(f"{sets['b']}: no split 'valid' to train on, only train\n")
    line = refusal(capsys, sets, tmp_path / "run", "valid_split=test", a=1, c=1)
    assert "no split 'test' to validate on, only train, valid; valid_split=null" in line


def test_scales_and_constants_are_of_the_mixture_not_of_the_larger_set(sets):
    config = config_of(listed(sets, a=1, c=3), "objective.value_scale=standardised")
    mixture = load_mixture(config.shards, 1.0, "train")
    sums, basis = sum_split(config, mixture, "train")
    assert basis == "train (4 of 4 shards)"
    means, usage, totals = {}, {}, Counter()
    for each in mixture.sets:
        entries = each.index.shards("train")
        partial, _ = sum_records(each.index.targets, load_records(each.folder, entries))
        weight = each.weight / 4
        means[each.folder] = weight * mean_and_variance(partial["cqt"])[0]
        counts = np.array(partial["codes"].counts)
        usage[each.folder] = weight * counts / counts.sum(1, keepdims=True)
        totals["frames"] += partial["cqt"].count
    assert sums["cqt"].count == pytest.approx(totals["frames"], abs=1)
    assert mean_and_variance(sums["cqt"])[0] == pytest.approx(sum(means.values()), rel=1e-4)  # whole frames
    counts = np.array(sums["codes"].counts)
    assert counts / counts.sum(1, keepdims=True) == pytest.approx(sum(usage.values()), abs=2e-3)

    moments = sample_values(config, mixture)["cqt"]["train"]
    (spec,) = [spec for spec in mixture.targets if spec.name == "cqt"]
    parts = {each.folder: measure_split(each, "train", spec, 1, False) for each in mixture.sets}
    weights = {each.folder: each.weight / 4 for each in mixture.sets}
    assert moments.mean == pytest.approx(sum(weights[folder] * part.mean for folder, part in parts.items()))
    second = sum(weights[folder] * (part.covariance + np.outer(part.mean, part.mean)) for folder, part in parts.items())
    assert moments.covariance + np.outer(moments.mean, moments.mean) == pytest.approx(second)
    assert measure_trivial(config, mixture, [], {}).basis.startswith("the best constants of train (4 of 4 shards)")
