"""`foundry-encoder`, the encoder that ships with this package: every door opens it, and a run begins where it ended."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from audio_files import MUSIC, tone
from pretrain_run import read_metrics

from mert_foundry.jobs import export, pretrain
from mert_foundry.jobs.extraction.models import model_fingerprint, open_model
from mert_foundry.jobs.pretraining.run_description import read_description
from mert_foundry.model.baselines.untrained import read_encoder_config
from mert_foundry.model.interop.load import SHIPPED_ENCODERS, load_encoder, model_folder, read_model
from mert_foundry.model.teacher.hidden_states import LayerConfig, read_encoder
from mert_foundry.pipeline.labelling.plan import SegmentConfig, plan_shards
from mert_foundry.pipeline.labelling.process_shard import process_shard
from mert_foundry.pipeline.manifest.rows import load_manifest
from mert_foundry.pipeline.manifest.scan import ManifestConfig, scan, write_manifest
from mert_foundry.pipeline.shards.index import build_index
from mert_foundry.pipeline.teachers.cqt import CqtTeacherConfig
from mert_foundry.pipeline.teachers.registry import build_teachers

NAME = "foundry-encoder"
SHIPPED = SHIPPED_ENCODERS / NAME
RECIPE = Path(__file__).parents[1] / "configs" / "small_corpus.yaml"
CPU = torch.device("cpu")
CLIPS = ("hyperrogue-music/caribbean.ogg", "singularity-music/through-space.ogg", "ufoai-music/battlescape-02.ogg")


def assert_is_the_shipped_one(weights) -> None:
    stored = read_model(SHIPPED).weights
    assert weights.keys() == stored.keys() and all(torch.equal(weights[name], stored[name]) for name in stored)


def test_it_is_small_whole_and_names_no_place_of_a_machine():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 8_000_000
    for path in SHIPPED.iterdir():
        if path.suffix != ".safetensors":
            assert not re.search(r"(?<![\w.])/(tmp|home|root|work|Users|mnt)/", path.read_text()), path.name
    assert read_model(SHIPPED).encoder == read_encoder_config(RECIPE)


def test_the_card_has_its_fingerprint_and_the_command_that_makes_it_again():
    card = (SHIPPED / "README.md").read_text()
    assert model_fingerprint(open_model(NAME, CPU)) in card
    assert "mert pretrain configs/small_corpus.yaml" in card and "mert label configs/label.yaml" in card


def test_features_are_of_its_weights():
    model, (encoder, sample_rate) = open_model(NAME, CPU), load_encoder(NAME)
    assert_is_the_shipped_one(encoder.state_dict())
    audio = torch.from_numpy(tone(440.0, 1.0)).float()[None]
    with torch.inference_mode():
        expected = torch.stack(encoder(audio).hidden_states, 2)
    found = model.encode(audio, [audio.shape[1]])
    assert sample_rate == model.sample_rate == 24_000 and model.layers == tuple(range(5))
    torch.testing.assert_close(found, expected[:, : found.shape[1]], rtol=1e-4, atol=1e-4)


def test_export_writes_it_again(tmp_path, run_here):
    code, out, _ = run_here(export, NAME, tmp_path / "out")
    assert code == 0 and out.startswith("exported ")
    assert_is_the_shipped_one(read_model(tmp_path / "out").weights)


def test_it_can_teach():
    stored, settings = read_encoder(LayerConfig(model=NAME, layer=2))
    assert_is_the_shipped_one(stored.weights)
    assert settings["encoder"] == model_fingerprint(open_model(NAME, CPU))


def test_a_folder_of_its_name_is_opened_by_its_path_only(tmp_path, monkeypatch):
    shutil.copytree(SHIPPED, tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME / "model.safetensors").unlink()
    for name in (NAME, f"{NAME}@ema"):
        with pytest.raises(ValueError, match=rf"write \./{name} for the folder, or rename the folder"):
            model_folder(name)
    with pytest.raises((OSError, ValueError), match="model.safetensors"):
        load_encoder(f"./{NAME}")


def test_it_has_no_averaged_weights():
    with pytest.raises(ValueError, match="one set of weights"):
        load_encoder(f"{NAME}@ema")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """The CQT of three clips of real music, one of them to validate on."""
    folder = tmp_path_factory.mktemp("music")
    (folder / "audio").mkdir()
    for clip in CLIPS:
        shutil.copy(MUSIC / clip, folder / "audio")
    config = ManifestConfig(
        root=str(folder / "audio"), out=str(folder / "manifest"), splits={"valid": 0.34}, group_by="track"
    )
    write_manifest(config, scan(config))
    listing = load_manifest(config.out)
    teachers = build_teachers([CqtTeacherConfig(kind="cqt", storage="uint8")], "cpu")
    tasks = plan_shards(listing, SegmentConfig(segment_seconds=10.0, shortest_seconds=3.0))
    for task in tasks:
        process_shard(task, teachers, listing.root, str(folder / "shards"), {"device": "cpu"})
    settings = {"name": "music", "manifest_sha256": listing.sha256, "segment_seconds": 10.0, "audio_member": "flac"}
    names, specs = [task.name for task in tasks], [teacher.spec for teacher in teachers]
    build_index(str(folder / "shards"), names, specs, **settings)
    return folder / "shards"


def test_a_run_begins_with_its_head_and_scale_and_so_with_a_part_of_the_cqt_explained(shards, tmp_path, run_here):
    settings = [
        "stream.batch_size=2",
        "stream.crop_samples=48000",
        "trainer.schedule.total_steps=1",
        "trainer.schedule.warmup_steps=0",
    ]
    told = {}
    for name, initial in (("gone_on", NAME), ("new", "null")):
        words = [RECIPE, f"shards={shards}", f"out={tmp_path / name}", f"initial={initial}", *settings]
        code, _, told[name] = run_here(pretrain, *words)
        assert code == 0, told[name]
    assert "encoder and cqt heads as stored; new heads: none" in told["gone_on"]
    shipped = {spec.name: spec for spec in read_model(SHIPPED).heads}["cqt"]
    gone_on, new = (read_metrics(tmp_path / name, "validation")[0] for name in ("gone_on", "new"))
    assert read_description(tmp_path / "gone_on").heads == [shipped]
    assert read_description(tmp_path / "new").heads[0].scale != shipped.scale
    assert gone_on["step"] == new["step"] == 0
    assert gone_on["explained"]["cqt"] > 0.2 > 0 > new["explained"]["cqt"]
