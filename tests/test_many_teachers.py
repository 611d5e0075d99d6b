"""Seven targets of six kinds of teacher in one labelling run, and heads for all of them from index.json alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import webdataset
import yaml
from audio_files import noise, tone, write_audio
from hubert_sources import TINY, random_hubert, save_hubert
from pretrain_run import CONFIG, final_weights, pretrain_here, read_metrics

from mert_foundry.jobs import fit, label, verify
from mert_foundry.jobs.command.line import run
from mert_foundry.pipeline.manifest.scan import ManifestConfig, scan, write_manifest
from mert_foundry.pipeline.shards.index import load_index

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]

EXPECTED = {
    "codes": ("discrete", 4, 64),
    "cqt": ("continuous", 24, None),
    "logmel": ("discrete", 1, 30),
    "chroma": ("discrete", 1, 20),
    "mel_rvq": ("discrete", 3, 16),
    "encoder": ("discrete", 1, 10),
    "random_projection": ("discrete", 2, 256),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tiny_codec: Path, ray_address: str) -> Path:
    """A small corpus labelled by all teachers at once."""
    root, folder = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("many")
    for number in range(8):
        write_audio(root / f"track{number}.wav", tone(250 + 130 * number, 4) + noise(4, seed=number))
    config = ManifestConfig(root=str(root), out=str(folder / "manifest"), group_by="track", splits={"valid": 0.5})
    write_manifest(config, scan(config))
    encoder = save_hubert(random_hubert(**TINY), folder / "model", 24_000)
    for name, teacher in {
        "logmel": "{kind: kmeans, clusters: 30}",
        "chroma": "{kind: kmeans, feature: chroma, clusters: 20}",
        "mel_rvq": "{kind: mel_rvq, codebooks: 3, entries: 16, dimensions: 8}",
        "encoder": f"{{kind: encoder, model: {encoder}, layer: 1, entries: 10}}",
    }.items():
        arguments = [f"teacher={teacher}", f"manifest={folder / 'manifest'}", f"out={folder / name}"]
        assert run(fit.main, arguments, "") == 0
    teachers = [
        {"kind": "encodec", "weights": str(tiny_codec), "codebooks": 4},
        {"kind": "cqt", "lowest_frequency": 500.0, "bins": 24, "bins_per_octave": 12},
        {"kind": "kmeans", "weights": str(folder / "logmel")},
        {"kind": "kmeans", "weights": str(folder / "chroma")},
        {"kind": "mel_rvq", "weights": str(folder / "mel_rvq")},
        {"kind": "encoder", "model": str(encoder), "weights": str(folder / "encoder")},
        {"kind": "random_projection", "codebooks": 2, "codebook_size": 256},
    ]
    settings = {"teachers": teachers, "segments": {"segment_seconds": 2.0, "shortest_seconds": 1.0}, "actors": 1}
    (folder / "label.yaml").write_text(yaml.safe_dump(settings))
    arguments = [f"manifest={folder / 'manifest'}", f"out={folder / 'shards'}", f"address={ray_address}"]
    assert run(label.main, [str(folder / "label.yaml"), *arguments], "") == 0
    return folder / "shards"


def test_every_target_is_in_the_index_and_in_every_example(shards: Path):
    index = load_index(str(shards))
    assert {spec.name: (spec.kind, spec.size, spec.codebook_size) for spec in index.targets} == EXPECTED
    specs = {spec.name: spec for spec in index.targets}
    examples = 0
    for entry in index.shardlist:
        for example in webdataset.WebDataset(str(shards / entry.url), shardshuffle=False).decode():
            frames = example["json"]["num_frames"]
            for name, spec in specs.items():
                labels = example[f"{name}.npy"]
                assert labels.shape == spec.shape(frames) and labels.dtype == np.dtype(spec.dtype)
                assert spec.kind == "continuous" or labels.max() < spec.codebook_size
            examples += 1
    assert examples == 16
    assert index.statistics["logmel"].perplexity[0] > 5


def test_verify_makes_the_labels_again(shards: Path):
    assert run(verify.main, [str(shards), "--relabel", "2"], "") == 0


def test_the_trainer_builds_a_head_for_each(shards: Path, tmp_path: Path):
    batch = json.dumps(CONFIG["stream"] | {"batch_size": 2})
    assert pretrain_here(shards, tmp_path / "run", f"stream={batch}", "trainer.schedule.total_steps=6") == 0
    last = read_metrics(tmp_path / "run", "train")[-1]
    assert set(last["losses"]) == {*EXPECTED, "feature_penalty"} and np.isfinite(list(last["losses"].values())).all()
    assert {name: len(levels) for name, levels in last["accuracy"].items()} == {
        name: size for name, (kind, size, _) in EXPECTED.items() if kind == "discrete"
    }
    heads = {name.split(".")[1] for name in final_weights(tmp_path / "run") if name.startswith("heads.")}
    assert heads == set(EXPECTED)
