"""Sets that lack a target (`missing_targets: mask`): their rows do not count in its loss, and count in all else."""

from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from pretrain_run import final_weights, pretrain_here, read_metrics
from shard_fixtures import CODES, write_set
from tiny_model import HEADS, OBJECTIVE, slice_rows, synthetic_batch, tiny_encoder

from mert_foundry.jobs.pretraining.run_description import read_description
from mert_foundry.model.objective.pretrain_model import PretrainModel, build_pretrain_model
from mert_foundry.model.training.device_batch import to_device
from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.stream.batch_stream import MixtureStream, StreamConfig, validation_batches
from mert_foundry.pipeline.stream.set_mixture import SetMixture, ShardSet

STREAM = StreamConfig(batch_size=6, crop_samples=6400, shuffle_window=2, threads=2)
PRESENT = torch.tensor([[True], [False], [True], [False]])


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two sets, the second without CQT."""
    root = tmp_path_factory.mktemp("sets")
    write_set(root / "both", [3, 4], valid_sizes=[3], prefix="a")
    write_set(root / "codes", [5], valid_sizes=[4], prefix="b", specs=[CODES])
    return {"both": root / "both", "codes": root / "codes"}


def mixture_of(sets: dict[str, Path]) -> SetMixture:
    return SetMixture([ShardSet(str(folder), load_index(str(folder))) for folder in sets.values()], "mask")


def partial_model(*names: str, **objective: object) -> PretrainModel:
    heads = [spec.model_copy(update={"partial": spec.name in names}) for spec in HEADS]
    return build_pretrain_model(tiny_encoder(dropout=0.0), heads, OBJECTIVE.model_copy(update=objective), 1).eval()


def sums_of(model: PretrainModel, batch: dict, **present: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sums over a batch of which every second frame is masked."""
    inputs = to_device(batch, model.head_specs, torch.device("cpu")) | present
    frames = model.encoder.num_frames(batch["audio"].shape[1])
    mask = (torch.arange(frames) % 2 == 0).expand(len(batch["key"]), -1)
    return model(inputs, mask)


@pytest.mark.parametrize("name", ["codes", "cqt"])
def test_the_loss_of_a_target_is_that_of_the_rows_that_have_it(name: str) -> None:
    whole, batch = partial_model(unmasked_weight=0.5), synthetic_batch(0)
    model = partial_model(name, unmasked_weight=0.5)
    sums = sums_of(model, batch, **{f"present/{name}": PRESENT})
    alone = sums_of(whole, slice_rows({**batch, "key": batch["key"]}, slice(0, 4, 2)))
    everything = sums_of(whole, batch)
    other = "cqt" if name == "codes" else "codes"
    for term in (name, f"unmasked/{name}"):
        torch.testing.assert_close(sums[f"loss/{term}"], alone[f"loss/{term}"])
    for term in (other, f"unmasked/{other}", "feature_penalty"):
        torch.testing.assert_close(sums[f"loss/{term}"], everything[f"loss/{term}"])
    found, expected = model.summarise(sums), whole.summarise(alone)
    assert found["losses"][name] == pytest.approx(expected["losses"][name], rel=1e-5)
    assert found["accuracy"]["codes"] == pytest.approx(
        (expected if name == "codes" else whole.summarise(everything))["accuracy"]["codes"]
    )


@pytest.mark.parametrize("name", ["codes", "cqt"])
def test_a_batch_without_the_target_has_no_loss_of_it_and_no_gradient_but_zeros(name: str) -> None:
    model = partial_model(name)
    sums = sums_of(model, synthetic_batch(0), **{f"present/{name}": torch.zeros(4, 1, dtype=torch.bool)})
    loss = model.weighted_loss(model.mean_losses(sums, sums))
    loss.backward()
    assert torch.isfinite(loss) and float(sums[f"loss/{name}"]) == 0.0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.heads[name].parameters())
    summary = model.summarise(sums)
    assert name not in summary["losses"] and name not in summary["accuracy"]
    assert sums.keys() == model.zero_sums().keys()


def test_rows_say_which_targets_they_have_and_hold_zeros_for_others(sets: dict[str, Path]) -> None:
    mixture = mixture_of(sets)
    assert [spec.name for spec in mixture.targets] == ["codes", "cqt"] and mixture.partial_targets == {"cqt"}
    with MixtureStream(mixture, "train", STREAM, 0) as stream:
        batches = [batch for batch, _ in islice(stream, 4)]
    validation = [
        batch
        for each in mixture.sets
        for batch in validation_batches(each.folder, each.index, "valid", STREAM, mixture=mixture)
    ]
    for batch in batches + validation:
        assert batch["present/cqt"].dtype == torch.bool and "present/codes" not in batch
        assert batch["present/cqt"][:, 0].tolist() == [key.startswith("a") for key in batch["key"]]
        for key, values, codes in zip(batch["key"], batch["cqt"], batch["codes"], strict=True):
            assert bool(values.any()) == key.startswith("a") and codes.to(torch.int64).any()
    assert {key[0] for batch in batches for key in batch["key"]} == {"a", "b"}


def settings(sets: dict[str, Path]) -> str:
    listed = [{"path": str(folder), "weight": 1} for folder in sets.values()]
    return f"shards={yaml.safe_dump(listed, default_flow_style=True, width=10_000).strip()}"


def test_a_run_learns_from_both_sets_however_its_batches_are_split(sets, tmp_path, capsys):
    short = [
        settings(sets),
        "trainer.schedule.warmup_steps=1",
        "trainer.schedule.total_steps=3",
        "trainer.validate_every=3",
    ]
    still = ["trainer.mixture=null", "encoder.input_dropout=0", "encoder.transformer.layer_drop=0"]
    still += ["encoder.transformer.dropout=0", "encoder.transformer.attention_dropout=0"]
    capsys.readouterr()
    assert pretrain_here(sets["both"], tmp_path / "refused", *short) == 1
    message = capsys.readouterr().err
    assert f"{sets['codes']} has no target cqt, which {sets['both']} has; missing_targets=mask" in message
    for name, split in (("whole", []), ("split", ["trainer.accumulation=4"])):
        assert pretrain_here(sets["both"], tmp_path / name, *short, *still, *split, "missing_targets=mask") == 0
    for ours, theirs in zip(*(read_metrics(tmp_path / name, "train") for name in ("whole", "split")), strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4)
    (validation,) = read_metrics(tmp_path / "whole", "validation")[-1:]
    assert set(validation["losses"]) == {"codes", "cqt", "feature_penalty"}
    weights = [final_weights(tmp_path / name) for name in ("whole", "split")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-3, atol=1e-5)
    heads = read_description(tmp_path / "whole").heads
    assert [(spec.name, spec.partial) for spec in heads] == [("codes", False), ("cqt", True)]

    # A run that goes on must have the targets that it had; a set without one may be left out or come later.
    only_codes = settings({"codes": sets["codes"]})
    capsys.readouterr()
    longer = ["trainer.schedule.warmup_steps=1", "trainer.schedule.total_steps=4", *still]
    assert pretrain_here(sets["both"], tmp_path / "whole", only_codes, *longer) == 1
    assert "targets were codes, cqt in this run, they are codes now; use another out folder" in capsys.readouterr().err
    assert pretrain_here(sets["both"], tmp_path / "whole", *longer) == 0
