"""`mert export`: a run or a checkpoint becomes a folder that transformers opens by itself, with our hidden states."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from audio_files import mert
from export_agreement import assert_transformers_agrees, hidden_states_of
from pretrain_run import pretrain_here
from shard_fixtures import write_set

from mert_foundry.jobs import export
from mert_foundry.jobs.pretraining.run_description import RunDescription
from mert_foundry.model.interop.load import load_encoder
from mert_foundry.model.objective.pretrain_model import build_pretrain_model
from mert_foundry.model.runs.checkpoint import load_config, load_weights


@pytest.fixture(scope="module", params=["post", "pre"])
def trained(request, tmp_path_factory) -> Path:
    """A run folder with checkpoints of steps 5 and 8, of either norm; read only."""
    folder = tmp_path_factory.mktemp(request.param)
    write_set(folder / "shards", [4], valid_sizes=[2])
    changes = [f"encoder.transformer.norm={request.param}", "trainer.schedule.total_steps=8"]
    # A high rate, so that no weight is left at its first value.
    assert pretrain_here(folder / "shards", folder / "run", *changes, "trainer.schedule.learning_rate=0.1") == 0
    return folder / "run"


@pytest.fixture
def exported(run_here):
    """Run the command in this process; gives exit code, stdout and stderr."""
    return partial(run_here, export)


def our_model(checkpoint: Path):
    description = RunDescription(**load_config(checkpoint))
    model = build_pretrain_model(description.config.encoder, description.heads, description.config.objective, 7)
    model.load_state_dict(load_weights(checkpoint))
    return model.eval()


def assert_transformers_agrees_with(folder: Path, checkpoint: Path) -> None:
    assert_transformers_agrees(folder, hidden_states_of(our_model(checkpoint).encoder), (401, 6_401, 13_337, 24_001))


def test_newest_checkpoint_of_a_run(trained, tmp_path, exported):
    code, out, _ = exported(trained, tmp_path / "out")
    assert (code, out) == (0, f"exported step 8 of {trained}/checkpoints/step_8 to {tmp_path}/out\n")
    assert_transformers_agrees_with(tmp_path / "out", trained / "checkpoints" / "step_8")


def test_one_checkpoint(trained, tmp_path, exported):
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    code, out, _ = exported(trained / "checkpoints" / "step_5", tmp_path / "out")
    assert (code, out.split(" of ")[0]) == (0, "exported step 5")
    assert_transformers_agrees_with(tmp_path / "out", trained / "checkpoints" / "step_5")


def test_model_card_and_feature_extractor(trained, tmp_path, exported):
    assert exported(trained, tmp_path / "out")[0] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "transformers" and "license" not in front
    data = yaml.safe_load(card.split("## Data\n\n```yaml\n")[1].split("```")[0])
    assert data == load_config(trained / "checkpoints" / "step_8")["data"]
    training = yaml.safe_load(card.split("## Training\n\n```yaml\n")[1].split("```")[0])
    assert (training["steps"], training["examples a step"], training["crop samples"]) == (8, 4, 6_400)
    assert training["trainer"]["schedule"]["learning_rate"] == 0.1
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert (extractor.sampling_rate, extractor.do_normalize) == (24_000, False)


@pytest.mark.process
def test_console_script(trained, tmp_path):
    done = mert("export", trained, tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "heads.safetensors", "model.safetensors", "preprocessor_config.json"
    ]  # fmt: skip


def torn_copy(trained: Path, folder: Path, *steps: int) -> Path:
    run_folder = shutil.copytree(trained, folder / "run")
    for step in steps:
        weights = run_folder / "checkpoints" / f"step_{step}" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4])
    return run_folder


def test_an_incomplete_checkpoint_is_refused_and_in_a_run_passed_over(trained, tmp_path, exported):
    run_folder = torn_copy(trained, tmp_path, 8)
    torn = run_folder / "checkpoints" / "step_8"
    code, out, error = exported(torn, tmp_path / "out")
    assert (code, out) == (1, "")
    assert (
        error.startswith(f"error: incomplete checkpoint: {torn}: model.safetensors has SHA-256 ")
        and error.count("\n") == 1
    )
    assert not (tmp_path / "out").exists()

    code, out, error = exported(run_folder, tmp_path / "out")
    assert code == 0 and out.startswith("exported step 5 ")
    assert error.startswith(f"passed over: {torn}: model.safetensors has SHA-256 ")


def test_a_run_without_a_whole_checkpoint_is_refused(trained, tmp_path, exported):
    run_folder = torn_copy(trained, tmp_path, 5, 8)
    code, _, error = exported(run_folder, tmp_path / "out")
    assert code == 1 and f"{run_folder}: no whole checkpoint; " in error
    assert "step_8: model.safetensors has" in error and "step_5: model.safetensors has" in error


def test_a_folder_with_content_is_refused_and_left_alone(trained, tmp_path, exported):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    code, _, error = exported(trained, tmp_path / "out")
    assert (code, error) == (1, f"error: {tmp_path}/out exists and is not empty; export to a new folder\n")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_what_is_no_run_is_refused(trained, tmp_path, exported):
    code, _, error = exported(trained.parent / "nowhere", tmp_path / "out")
    assert code == 1 and error.startswith(
        f"error: {trained.parent}/nowhere is neither a run folder nor a whole checkpoint"
    )
    code, _, error = exported(trained.parent / "shards", tmp_path / "out")
    assert code == 2 and error.startswith(
        f"{trained.parent}/shards is a shard folder (it has index.json); a run folder (made by mert pretrain) or "
    )


def test_options_that_hubert_lacks_are_told_and_the_folder_opens_with_our_loader(tmp_path, exported):
    write_set(tmp_path / "shards", [4], valid_sizes=[2])
    changes = [
        "encoder.transformer.position=rope",
        "encoder.transformer.norm_kind=rms",
        "trainer.schedule.total_steps=5",
    ]
    assert pretrain_here(tmp_path / "shards", tmp_path / "run", *changes) == 0
    code, out, error = exported(tmp_path / "run", tmp_path / "out")
    assert code == 0 and out.startswith("exported step 5 ")
    assert error.splitlines() == [
        "no native hubert folder: transformer.norm_kind is rms, a HubertModel would have layer",
        "no native hubert folder: transformer.position is rope, a HubertModel would have convolution",
    ]
    audio = torch.randn(1, 6_401)
    expected = our_model(tmp_path / "run" / "checkpoints" / "step_5").encoder
    for folder in (tmp_path / "out", tmp_path / "run", tmp_path / "run" / "checkpoints" / "step_5"):
        encoder, sample_rate = load_encoder(folder)
        assert sample_rate == 24_000 and not encoder.training
        with torch.no_grad():
            assert torch.equal(encoder(audio).last, expected(audio).last)


def test_an_exported_folder_exports_again(trained, tmp_path, exported):
    assert exported(trained, tmp_path / "first")[0] == 0
    code, out, error = exported(tmp_path / "first", tmp_path / "second")
    assert (code, out, error) == (0, f"exported {tmp_path}/first to {tmp_path}/second\n", "")
    for name in ("model.safetensors", "heads.safetensors", "config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
