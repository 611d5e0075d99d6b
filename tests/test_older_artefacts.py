"""Small folders of every kind, made before the modules had rooms (commit ef98c03): they open, and work goes on in them.

They were made in one folder with relative paths: a manifest of four tones, shards with codes and a companded CQT, a run
of four steps as it was after two, the export of it when it was done, and pooled features of that.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from tiny_model import tiny_encoder

from mert_foundry.jobs import export, inspect, pretrain, verify
from mert_foundry.model.encoder import EncoderConfig, MertEncoder
from mert_foundry.model.interop.export import export_model
from mert_foundry.model.interop.load import load_encoder, read_model
from mert_foundry.model.interop.stored_model import StoredModel
from mert_foundry.model.objective.heads import HeadSpec
from mert_foundry.model.objective.pretrain_model import ObjectiveConfig, build_pretrain_model
from mert_foundry.model.runs import stored_config
from mert_foundry.model.runs.checkpoint import CheckpointState, save_checkpoint
from mert_foundry.pipeline.features import older_names
from mert_foundry.pipeline.storage.documents import fingerprint
from mert_foundry.pipeline.teachers.kmeans import KmeansTeacherConfig
from mert_foundry.pipeline.teachers.registry import build_teachers

CONFIGS = Path(__file__).parent.parent / "configs"
LABEL = [
    "teachers=[{kind: random_projection, codebook_size: 16}, {kind: cqt, bins: 24, bins_per_octave: 12}]",
    "segments.segment_seconds=2", "segments.shortest_seconds=1",
]  # fmt: skip
RUN = [
    "stream.batch_size=2", "stream.crop_samples=9600", "encoder.frontend.channels=8", "encoder.transformer.layers=2",
    "encoder.transformer.width=16", "encoder.transformer.heads=2", "encoder.transformer.feed_forward=32",
    "encoder.transformer.position=rope", "objective.final_dim=4", "trainer.schedule.total_steps=4",
    "trainer.schedule.warmup_steps=1", "trainer.checkpoint_every=2", "trainer.validate_every=4", "trainer.log_every=1",
]  # fmt: skip


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folders, which is the working directory."""
    shutil.copytree(Path(__file__).parent / "data" / "before_rooms", tmp_path / "older")
    monkeypatch.chdir(tmp_path / "older")
    return tmp_path / "older"


@pytest.fixture
def command(run_here: Callable) -> Callable[..., tuple[int, str]]:
    """Run a command; gives its exit code and all that it said."""

    def command(module, *arguments: object) -> tuple[int, str]:
        code, out, err = run_here(module, *arguments)
        return code, out + err

    return command


def test_shards_are_whole_and_of_their_manifest(older: Path, command: Callable):
    code, said = command(verify, "shards", "--manifest", "manifest", "--relabel", 2, "--corpus", 4)
    assert code == 0 and "no fault" in said and "4 agree" in said, said


def test_labelling_finds_nothing_to_do(older: Path, command: Callable):
    from mert_foundry.jobs import label

    before = {path: path.read_bytes() for path in (older / "shards").iterdir()}
    code, said = command(label, CONFIGS / "label.yaml", "manifest=manifest", "out=shards", *LABEL)
    assert code == 0 and "0 to do" in said, said
    assert {path: path.read_bytes() for path in before} == before


def test_the_run_goes_on(older: Path, command: Callable):
    code, said = command(pretrain, CONFIGS / "tiny.yaml", "shards=shards", "out=run", *RUN)
    assert code == 0 and "step_2" in said and "done after step 4" in said, said


def test_the_export_opens(older: Path):
    encoder, sample_rate = load_encoder("export")
    assert sample_rate == 24_000 and sum(weight.numel() for weight in encoder.parameters()) > 1000


def test_the_features_are_complete(older: Path, command: Callable):
    import zarr

    from mert_foundry.jobs import extract

    code, said = command(
        extract, CONFIGS / "extract.yaml", "model=export", "input=shards", "out=features.zarr", "pooling=mean"
    )
    assert code == 0 and "0 to do" in said, said
    assert np.isfinite(zarr.open_group("features.zarr", mode="r")["mean"][:].astype(np.float32)).all()


@pytest.mark.parametrize(
    ("folder", "word"), [("manifest", "manifest"), ("shards", "cqt"), ("run", "step"), ("features.zarr", "layers")]
)
def test_inspect_shows_them(older: Path, command: Callable, folder: str, word: str):
    code, said = command(inspect, folder)
    assert code == 0 and word in said, said
    code, said = command(inspect, folder, "--html", "page.html")
    assert code == 0 and (older / "page.html").stat().st_size > 10_000, said


# Names that settings had until November 2026, in documents that hold them.

SWITCHES = {
    "attention": {"learnable_temperature": True},
    "overrides": {"1": {"attention": {"learnable_temperature": False}}},
}


def old_names(text: str) -> str:
    return text.replace("learnable_temperature", "temperature")


def switched_encoder() -> EncoderConfig:
    """A tiny encoder with the switch that was `attention.temperature`."""
    encoder = tiny_encoder()
    transformer = {**encoder.transformer.model_dump(), **SWITCHES}
    return EncoderConfig.model_validate({**encoder.model_dump(), "transformer": transformer})


def test_an_encoders_old_names_become_those_of_now_and_nothing_else_changes():
    document = {
        "config": {
            "encoder": {"transformer": {"attention": {"window": 3, "temperature": True}, "overrides": {
                1: {"attention": {"temperature": False}}, "2-3": {"attention.temperature": True, "dropout": 0.2}}}},
            "objective": {"temperature": 0.1, "learnable_temperature": False},
        },
        "heads": [{"temperature": 1}],
    }  # fmt: skip
    present = stored_config.present_names(document)
    assert present["config"]["encoder"]["transformer"] == {
        "attention": {"window": 3, "learnable_temperature": True},
        "overrides": {
            1: {"attention": {"learnable_temperature": False}},
            "2-3": {"attention.learnable_temperature": True, "dropout": 0.2}
        },
    }  # fmt: skip
    assert present["config"]["objective"] == document["config"]["objective"] and present["heads"] == document["heads"]
    assert stored_config.present_names(present) == present and stored_config.present_names(None) is None


def test_an_export_with_an_old_name_opens(tmp_path: Path):
    config = switched_encoder()
    encoder = MertEncoder(config)
    assert export_model(tmp_path / "export", StoredModel(config, encoder.state_dict(), 24_000), {})
    path = tmp_path / "export" / "config.json"
    assert "learnable_temperature" in path.read_text()
    path.write_text(old_names(path.read_text()))
    opened, _ = load_encoder(tmp_path / "export")
    assert opened.config == config
    assert opened.transformer.layers[0].attention.log_temperature is not None
    assert opened.transformer.layers[1].attention.log_temperature is None


def test_a_checkpoint_with_an_old_name_opens_and_is_exported(tmp_path: Path, older: Path, command: Callable):
    config = switched_encoder()
    description = yaml.safe_load((older / "run" / "config.yaml").read_text())
    description["config"]["encoder"] = yaml.safe_load(old_names(yaml.safe_dump(config.model_dump(mode="json"))))
    assert "learnable_temperature" not in str(description["config"]["encoder"])
    heads = tuple(HeadSpec(**spec) for spec in description["heads"])
    model = build_pretrain_model(config, heads, ObjectiveConfig(**description["config"]["objective"]), 0)
    state = CheckpointState(step=1, position=None, seed=0, world_size=1)
    save_checkpoint(tmp_path / "run" / "checkpoints", state, model.state_dict(), {}, description)
    assert read_model(tmp_path / "run").encoder == config
    code, said = command(export, tmp_path / "run", tmp_path / "out")
    assert code == 0, said
    assert load_encoder(tmp_path / "out")[0].config == config


def test_a_run_with_an_old_name_is_the_same_run(older: Path):
    """Its config is compared with that of now when it goes on; with `initial`, its encoder is read from there."""
    from mert_foundry.jobs.pretraining.initial_weights import resolve_encoder_config
    from mert_foundry.jobs.pretraining.run_description import RunDescription, save_description
    from mert_foundry.model.runs.history import load_run

    text = (older / "run" / "config.yaml").read_text()
    (older / "run" / "config.yaml").write_text(text.replace("        temperature: false", "        temperature: true"))
    description = RunDescription(**stored_config.read_run_config(older / "run" / "config.yaml"))
    assert description.config.encoder.transformer.attention.learnable_temperature
    assert RunDescription(**load_run(older / "run").config) == description  # newer keys have their defaults
    plain = {**description.config.model_dump(exclude={"encoder"}), "initial": "export"}
    settled = resolve_encoder_config(type(description.config)(**plain), None, older / "run")
    assert settled.encoder == description.config.encoder
    assert save_description(older / "run", description) == ""
    assert "learnable_temperature: true" in (older / "run" / "config.yaml").read_text()


def test_a_models_fingerprint_is_that_under_its_old_names():
    pytest.importorskip("zarr")
    from mert_foundry.jobs.extraction.models import model_fingerprint
    from mert_foundry.model.features.feature_encoder import identity

    weights = {"weight": torch.arange(3.0)}
    settings = {"sample_rate": 24_000, "normalised": False}
    architecture = {"transformer.layer.1.attention.learnable_temperature": True, "transformer.layers": 2}
    found = SimpleNamespace(settings=identity(architecture, **settings), weights=weights)
    before = {"architecture": {"transformer.layer.1.attention.temperature": True, "transformer.layers": 2}, **settings}
    assert model_fingerprint(found) == fingerprint(before, {"weight": weights["weight"].numpy()})


def test_a_stores_old_names_become_those_of_now_and_nothing_else_changes():
    before = {
        "model": {
            "layers": 2,
            "unlike_mert_95m": {
                "transformer.attention.temperature": True,
                "transformer.layer.0.attention.temperature": 1,
            },
        },
        "settings": {"pooling": "mean_deviation", "precision": "float32", "dtype": "float32", "layers": [0, 1]},
    }
    now = {
        "model": {
            "layers": 2,
            "unlike_mert_95m": {
                "transformer.attention.learnable_temperature": True,
                "transformer.layer.0.attention.learnable_temperature": 1,
            },
        },
        "settings": {"pooling": "mean_std", "precision": "fp32", "dtype": "float32", "layers": [0, 1]},
    }
    assert older_names.present_names(before) == now == older_names.present_names(now)
    assert older_names.present_names({"settings": {"precision": "bfloat16"}}) == {"settings": {"precision": "bf16"}}
    assert older_names.present_names({"settings": None, "model": 3}) == {"settings": None, "model": 3}


@pytest.fixture
def pooled(older: Path, command: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """mert extract of means and standard deviations, in this process, a part a track."""
    pytest.importorskip("zarr")
    from mert_foundry.jobs import extract

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")

    def pooled(out: str, *more: str) -> tuple[int, str]:
        needed = ["model=export", "input=shards", f"out={out}", "pooling=mean_std", "storage.part_tracks=1"]
        return command(extract, CONFIGS / "extract.yaml", *needed, *more)

    return pooled


def begin_store(folder: Path, present: Path) -> dict:
    """The root of a store as it was when settings had their old names, with nothing in it; returns its description."""
    from mert_foundry.pipeline.features.resume import STATE, prepare_store

    attributes = json.loads((present / "zarr.json").read_text())["attributes"]
    description = {key: value for key, value in attributes.items() if key not in STATE}
    description["settings"] |= {"pooling": "mean_deviation", "precision": "float32"}
    prepare_store(str(folder), description, overwrite=False)
    return description


def test_a_store_begun_under_old_names_goes_on_under_these_and_is_the_same_store(
    older: Path, pooled: Callable, command: Callable
):
    import zarr

    from mert_foundry.pipeline.features.resume import description_digest

    assert pooled("now.zarr")[0] == 0
    now = zarr.open_group("now.zarr", mode="r")
    assert {"mean", "std"} < set(now.array_keys()) and "deviation" not in now
    description = begin_store(older / "before.zarr", older / "now.zarr")
    code, said = pooled("before.zarr")
    assert code == 0 and "4 to do" in said, said
    before = zarr.open_group("before.zarr", mode="r")
    assert {"mean", "deviation"} < set(before.array_keys()) and "std" not in before
    np.testing.assert_array_equal(before["deviation"][:], now["std"][:])
    np.testing.assert_array_equal(before["mean"][:], now["mean"][:])
    assert before.attrs["settings"] == description["settings"]
    records = [json.loads(path.read_text()) for path in (older / "before.zarr" / "parts").glob("*.json")]
    assert len(records) == 4 and {record["store"] for record in records} == {description_digest(description)}

    content = {path: path.read_bytes() for path in (older / "before.zarr").rglob("*") if path.is_file()}
    for more in ([], ["overwrite=true"]):
        code, said = pooled("before.zarr", *more)
        assert code == 0 and "0 to do" in said, said
        assert {path: path.read_bytes() for path in content} == content
    (older / "before.zarr" / "parts" / "000002.json").unlink()
    code, said = pooled("before.zarr")
    assert code == 0 and "1 to do" in said, said
    assert {path: path.read_bytes() for path in content} == content

    for folder in ("before.zarr", "now.zarr"):
        code, said = command(inspect, folder, "--json")
        assert code == 0 and json.loads(said)["settings"]["pooling"] == "mean_std"


def test_a_store_of_old_names_and_other_settings_is_refused_for_these(older: Path, pooled: Callable):
    import zarr

    assert pooled("now.zarr")[0] == 0
    begin_store(older / "before.zarr", older / "now.zarr")
    code, said = pooled("before.zarr", "dtype=float32")
    assert code == 1 and "settings.dtype 'float16', now it is 'float32'; overwrite=true throws it away" in said, said
    code, said = pooled("before.zarr", "dtype=float32", "overwrite=true")
    assert code == 0 and "std" in zarr.open_group("before.zarr", mode="r"), said


def test_centroids_of_mert_kmeans_are_the_same_teacher():
    folder = Path(__file__).parent / "data" / "kmeans"
    (teacher,) = build_teachers([KmeansTeacherConfig(kind="kmeans", weights=str(folder))], "cpu")
    # As the commit that made the folder has it.
    assert teacher.spec.fingerprint == "22a5fdce0d7d0605747ddb01039984a54310ce13b091d54ae1f6ef35cfb14ec2"
    assert (teacher.spec.name, teacher.spec.codebook_size, teacher.spec.size) == ("chroma", 4, 1)


def test_moments_of_a_run_go_to_the_weights_of_their_names(older: Path):
    """When it was written, the codes' embeddings decayed and stood elsewhere in the optimiser's state."""
    from mert_foundry.jobs.pretraining.run_description import read_description
    from mert_foundry.model.runs.checkpoint import load_optimizer_state, load_weights
    from mert_foundry.model.training.optimizer import OptimizerConfig, build_optimizer, restore_moments

    checkpoint = older / "run" / "checkpoints" / "step_2"
    saved, weights = load_optimizer_state(checkpoint), load_weights(checkpoint)
    description = read_description(older / "run")
    model = build_pretrain_model(description.config.encoder, description.heads, description.config.objective, 0)
    optimizer = build_optimizer(model, OptimizerConfig())
    restore_moments(optimizer, saved, checkpoint)
    moments = {
        name: saved["state"][number]
        for group in saved["param_groups"]
        for name, number in zip(group["param_names"], group["params"])
    }
    (decayed, kept), (decayed_before, _) = optimizer.param_groups, saved["param_groups"]
    (embedding,) = set(decayed_before["param_names"]) - set(decayed["param_names"])
    assert embedding.startswith("heads.") and embedding.endswith(".embedding") and embedding in kept["param_names"]
    for name, parameter in model.named_parameters():
        assert torch.equal(optimizer.state[parameter]["exp_avg_sq"], moments[name]["exp_avg_sq"])
        assert optimizer.state[parameter]["exp_avg"].shape == weights[name].shape
