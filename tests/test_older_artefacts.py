"""Small folders of every kind, made before the modules had rooms (commit ef98c03): they open, and work goes on in them.

They were made in one folder with relative paths: a manifest of four tones, shards with codes and a companded CQT, a run of
four steps as it was after two, the export of it when it was done, and pooled features of that.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from mert_foundry.jobs import extract, inspect, label, pretrain, verify
from mert_foundry.jobs.command.line import run
from mert_foundry.model.interop.load import load_encoder

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
def command(capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str]]:
    def command(module, *arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = run(module.main, [str(argument) for argument in arguments], module.__doc__)
        output = capsys.readouterr()
        return code, output.out + output.err

    return command


def test_shards_are_whole_and_of_their_manifest(older: Path, command: Callable):
    code, said = command(verify, "shards", "--manifest", "manifest", "--relabel", 2, "--corpus", 4)
    assert code == 0 and "no fault" in said and "4 agree" in said, said


def test_labelling_finds_nothing_to_do(older: Path, command: Callable):
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
    code, said = command(extract, CONFIGS / "extract.yaml", "model=export", "input=shards", "out=features.zarr", "pooling=mean")
    assert code == 0 and "0 to do" in said, said
    assert np.isfinite(zarr.open_group("features.zarr", mode="r")["mean"][:].astype(np.float32)).all()


@pytest.mark.parametrize(("folder", "word"), [("manifest", "manifest"), ("shards", "cqt"), ("run", "step"), ("features.zarr", "layers")])
def test_inspect_shows_them(older: Path, command: Callable, folder: str, word: str):
    code, said = command(inspect, folder)
    assert code == 0 and word in said, said
    code, said = command(inspect, folder, "--html", "page.html")
    assert code == 0 and (older / "page.html").stat().st_size > 10_000, said
