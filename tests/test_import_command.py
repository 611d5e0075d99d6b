"""`mert import`: a folder or file of others becomes one that `mert export` and `mert pretrain` begin from."""

import importlib
import json
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from audio_files import mert
from hubert_sources import TINY, fairseq_checkpoint, random_hubert, save_hubert, save_mert
from pretrain_run import NO_DROPOUT, checkpoint_names, final_weights, pretrain_here
from safetensors.torch import load_file
from shard_fixtures import write_set

from mert_foundry.jobs import export
from mert_foundry.jobs.command.line import run
from mert_foundry.model.interop.load import load_encoder, read_model

# Of pretrain_run.CONFIG's encoder, so that this config file fits.
SIZES = {**TINY, "num_attention_heads": 2, "intermediate_size": 64}
SHORT = "trainer.schedule.total_steps=5"
STANDING = ["trainer.schedule.learning_rate=1e-12", SHORT, *NO_DROPOUT]


@pytest.fixture
def imported(run_here):
    """Run the command in this process; gives exit code, stdout and stderr."""
    return partial(run_here, importlib.import_module("mert_foundry.jobs.import"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_set(folder, [4], valid_sizes=[2])
    return folder


@pytest.mark.parametrize("kind", ["hugging face", "mert", "fairseq"])
def test_sources_come_in_and_transformers_opens_the_folder(tmp_path, imported, kind):
    hubert, source = random_hubert(**SIZES), tmp_path / "source"
    if kind == "fairseq":
        torch.save(fairseq_checkpoint(hubert), source)
    else:
        (save_mert if kind == "mert" else save_hubert)(hubert, source)
    code, out, error = imported(source, tmp_path / "out")
    assert (code, out) == (
        0,
        f"imported {len(hubert.state_dict())} weights (2 layers of width 32, 24000 Hz, no heads) from {source} to"
        f" {tmp_path}/out\n",
    )
    left_out = [line.split()[2] for line in error.splitlines()]
    heads = ["encoder_cqt_model.fc.weight", "final_proj.bias", "final_proj.weight", "label_embs_concat"]
    assert left_out == (heads if kind == "fairseq" else [])
    again = transformers.AutoModel.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in hubert.state_dict().items())
    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert "license" not in front


@pytest.mark.process
def test_console_script_and_module(tmp_path):
    save_hubert(random_hubert(**SIZES), tmp_path / "source", 16_000)
    done = mert("import", tmp_path / "source", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json"
    ]  # fmt: skip
    assert load_encoder(tmp_path / "out")[1] == 16_000


@pytest.mark.parametrize("rate", [None, 22_050])
def test_an_unknown_sample_rate_is_asked_for(tmp_path, imported, rate):
    random_hubert(**SIZES).save_pretrained(tmp_path / "source")
    code, _, error = imported(tmp_path / "source", tmp_path / "out", *(["--sample-rate", rate] if rate else []))
    if rate:
        assert code == 0 and read_model(tmp_path / "out").sample_rate == rate
    else:
        assert code == 1 and error.endswith("preprocessor_config.json; give --sample-rate\n")
        assert not (tmp_path / "out").exists()


def test_refusals_are_one_line_and_leave_nothing(tmp_path, imported):
    code, _, error = imported(tmp_path / "nowhere", tmp_path / "out")
    assert (code, error) == (1, f"error: {tmp_path}/nowhere: neither a file nor a folder with config.json\n")
    source = save_mert(random_hubert(**SIZES), tmp_path / "source", feature_extractor_cqt=True)
    code, _, error = imported(source, tmp_path / "out")
    assert code == 1 and error.count("\n") == 1
    assert error == f"error: {source}/config.json: feature_extractor_cqt is True, the encoder has False only\n"
    (source / "config.json").write_text("{")
    code, _, error = imported(source, tmp_path / "out")
    assert code == 1 and error.startswith(f"error: {source}/config.json: ") and error.count("\n") == 1
    (source / "config.json").write_text('{"model_type": "hubert"}')
    (source / "pytorch_model.bin").write_bytes(b"no weights")
    code, _, error = imported(source, tmp_path / "out")
    assert code == 1 and f"{source}/pytorch_model.bin: not loaded" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_pretraining_goes_on_from_an_import_in_one_command_and_exports(shards, tmp_path, imported, capsys):
    hubert = random_hubert(**SIZES)
    assert imported(save_mert(hubert, tmp_path / "source"), tmp_path / "imported")[0] == 0
    initial = f"initial={tmp_path}/imported"
    assert pretrain_here(shards, tmp_path / "still", initial, *STANDING) == 0
    assert "first weights: encoder and no heads as stored; new heads: codes, cqt\n" in capsys.readouterr().err
    assert pretrain_here(shards, tmp_path / "run", initial, SHORT) == 0
    capsys.readouterr()
    assert run(export.main, [str(tmp_path / "still"), str(tmp_path / "same")], "") == 0
    assert run(export.main, [str(tmp_path / "run"), str(tmp_path / "moved")], "") == 0
    same, moved = (load_file(tmp_path / name / "model.safetensors") for name in ("same", "moved"))
    # At a rate of nothing the imported weights come out again; at a real one they have moved, though not far.
    for name, weight in hubert.state_dict().items():
        assert torch.allclose(same[name], weight, atol=1e-6), name
        assert not torch.equal(moved[name], weight) and torch.allclose(moved[name], weight, atol=0.1), name
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["config"]
    assert config["initial"] == f"{tmp_path}/imported" and config["encoder"]["transformer"]["layers"] == 2
    assert "initial weights: imported" in (tmp_path / "moved" / "README.md").read_text()


def test_encoder_settings_come_from_the_folder_or_must_agree(shards, tmp_path, imported, capsys):
    hubert = random_hubert(**SIZES, hidden_dropout=0.25)
    imported(save_mert(hubert, tmp_path / "source"), tmp_path / "imported")
    initial = f"initial={tmp_path}/imported"
    assert pretrain_here(shards, tmp_path / "run", initial, "encoder.transformer.layers=3", SHORT) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/imported has another encoder: encoder.transformer.layers is 3 in the config, 2 there\n"
    )
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert pretrain_here(shards, tmp_path / "run", initial, "encoder={frontend: {kind: log_mel}}", SHORT) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/imported has another encoder: encoder.frontend.kind is 'log_mel' in the config,"
        " 'convolution' there\n"
    )
    # The config says attention_dropout, which is no architecture, and nothing of dropout.
    assert pretrain_here(shards, tmp_path / "run", initial, "encoder.transformer.attention_dropout=0.3", SHORT) == 0
    transformer = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["config"]["encoder"]["transformer"]
    assert (transformer["dropout"], transformer["attention_dropout"]) == (0.25, 0.3)


def test_another_sample_rate_is_refused(shards, tmp_path, imported, capsys):
    imported(save_hubert(random_hubert(**SIZES), tmp_path / "source", 16_000), tmp_path / "imported")
    assert pretrain_here(shards, tmp_path / "run", f"initial={tmp_path}/imported", SHORT) == 1
    assert (
        capsys.readouterr().err == f"error: {tmp_path}/imported is for audio at 16000 Hz, the shards are at 24000 Hz\n"
    )


def test_initial_counts_at_the_beginning_only(shards, tmp_path, imported, capsys):
    hubert = random_hubert(**SIZES)
    imported(save_mert(hubert, tmp_path / "source"), tmp_path / "imported")
    initial = f"initial={tmp_path}/imported"
    assert pretrain_here(shards, tmp_path / "run", initial, SHORT) == 0
    before = final_weights(tmp_path / "run")
    capsys.readouterr()
    # Neither another folder nor one that is gone changes a run that has begun.
    assert pretrain_here(shards, tmp_path / "run", "initial=gone", SHORT) == 0
    error = capsys.readouterr().err
    assert f"initial: '{tmp_path}/imported' became 'gone'" in error and "first weights" not in error
    assert all(torch.equal(weight, before[name]) for name, weight in final_weights(tmp_path / "run").items())
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        (path / "checksums.json").write_text("{")
    assert pretrain_here(shards, tmp_path / "run", initial, SHORT) == 1
    assert f"{tmp_path}/run: all its checkpoints are incomplete; remove them" in capsys.readouterr().err
    assert checkpoint_names(tmp_path / "run") == ["step_5"]


@pytest.mark.parametrize("form", ["run", "checkpoint", "export"])
def test_heads_are_taken_over_where_they_fit(shards, tmp_path, capsys, form):
    first = tmp_path / "first"
    assert pretrain_here(shards, first, SHORT) == 0
    assert run(export.main, [str(first), str(tmp_path / "export")], "") == 0
    folder = {"run": first, "checkpoint": first / "checkpoints" / "step_5", "export": tmp_path / "export"}[form]
    capsys.readouterr()
    assert pretrain_here(shards, tmp_path / "run", f"initial={folder}", *STANDING) == 0
    assert "first weights: encoder and codes, cqt heads as stored; new heads: none\n" in capsys.readouterr().err
    before, after = final_weights(first), final_weights(tmp_path / "run")
    assert all(torch.allclose(after[name], weight, atol=1e-6) for name, weight in before.items())
    # Another size of the space that codes are compared in: the head of the codes cannot be had.
    assert pretrain_here(shards, tmp_path / "other", f"initial={folder}", "objective.final_dim=4", *STANDING) == 0
    assert "encoder and cqt heads as stored; new heads: codes\n" in capsys.readouterr().err


def test_a_head_of_another_teacher_is_not_taken_over(shards, tmp_path, capsys):
    assert pretrain_here(shards, tmp_path / "first", SHORT) == 0
    other = tmp_path / "other-shards"
    write_set(other, [4], valid_sizes=[2])
    index = json.loads((other / "index.json").read_text())
    for target in index["targets"]:
        target["fingerprint"] = "f" * 64 if target["name"] == "codes" else target["fingerprint"]
    (other / "index.json").write_text(json.dumps(index))
    capsys.readouterr()
    assert pretrain_here(other, tmp_path / "run", f"initial={tmp_path}/first", SHORT) == 0
    assert "encoder and cqt heads as stored; new heads: codes\n" in capsys.readouterr().err
