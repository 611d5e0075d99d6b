"""`mert kmeans`: what it draws, what it fits, the same bytes again, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from audio_files import noise, tone, write_audio
from hypothesis import given
from hypothesis import strategies as st

from mert_foundry.jobs import kmeans
from mert_foundry.jobs.command.line import run
from mert_foundry.pipeline.fitting.kmeans_fitting import KmeansFittingConfig, choose_crops
from mert_foundry.pipeline.manifest.rows import Manifest, Track
from mert_foundry.pipeline.manifest.scan import ManifestConfig, scan, write_manifest
from mert_foundry.pipeline.teachers.kmeans import load_kmeans

PITCHES = [261.6, 329.6, 392.0, 466.2]  # C, E, G, B flat


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight tracks of one tone each, two tracks a pitch, in train; loud noise in valid."""
    root, out = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("manifest")
    for number in range(8):
        write_audio(root / f"track{number}.wav", tone(PITCHES[number % 4], 4) + noise(4, seed=number) / 1000)
    config = ManifestConfig(root=str(root), out=str(out), group_by="track", splits={})
    write_manifest(config, scan(config))
    return out


def fit(manifest: Path, out: Path, *more: str) -> int:
    return run(kmeans.main, [f"manifest={manifest}", f"out={out}", "crop_seconds=1.0", *more], "")


def track(number: int, seconds: float, split: str = "train") -> Track:
    return Track(
        key=f"track{number:04d}",
        path=f"{number}.wav",
        bytes=1,
        sha256="",
        audio_sha256="",
        sample_rate=24_000,
        channels=1,
        num_samples=round(seconds * 24_000),
        seconds=seconds,
        header_seconds=None,
        format="wav",
        group="",
        split=split,
    )


@given(
    lengths=st.lists(st.floats(3.0, 400.0), min_size=1, max_size=12),
    hours=st.floats(0.001, 0.3),
    seed=st.integers(0, 5),
)
def test_drawn_pieces_lie_in_the_train_tracks_and_reach_the_hours(lengths: list[float], hours: float, seed: int):
    tracks = [track(number, seconds) for number, seconds in enumerate(lengths)] + [track(99, 1000.0, "valid")]
    config = KmeansFittingConfig(manifest="", out="", hours=hours, seed=seed)
    crops = choose_crops(Manifest(root="", sha256="", tracks=tracks), config)
    assert crops == choose_crops(Manifest(root="", sha256="", tracks=tracks), config)
    drawn = [(crop.track.key, number) for crop in crops for number in crop.numbers]
    assert drawn == sorted(set(drawn)) and all(crop.track.split == "train" for crop in crops)
    assert all(number == 0 or (number + 1) * 30 <= crop.track.seconds for crop in crops for number in crop.numbers)
    seconds = sum(crop.seconds(30.0) for crop in crops)
    every_piece = sum(max(1, int(length / 30)) * min(30.0, length) for length in lengths)
    assert min(hours * 3600, every_piece) - 1e-6 <= seconds < hours * 3600 + 30


def test_another_seed_draws_other_pieces():
    listing = Manifest(root="", sha256="", tracks=[track(number, 300.0) for number in range(20)])
    draws = [choose_crops(listing, KmeansFittingConfig(manifest="", out="", hours=0.2, seed=seed)) for seed in (0, 1)]
    assert draws[0] != draws[1]


def test_finds_the_pitches_of_the_corpus(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert fit(manifest, tmp_path / "out", "feature=chroma", "clusters=4") == 0
    printed = capsys.readouterr().out
    assert "fitting 4 centroids" in printed and "4 of 4 centroids in use, perplexity 4" in printed
    centroids, card = load_kmeans(tmp_path / "out")
    expected = {round(22 * (12 * np.log2(pitch / 440) + 9)) % 264 for pitch in PITCHES}
    for place in centroids.argmax(axis=1):
        assert min(min((place - bin) % 264, (bin - place) % 264) for bin in expected) <= 8
    assert card.quality["relative_error"] < 0.1 and card.fitting["frames"] == 8 * 300


def test_the_same_again_gives_the_same_bytes(manifest: Path, tmp_path: Path):
    for name in ("one", "two"):
        assert fit(manifest, tmp_path / name, "clusters=20", "hours=0.004") == 0
    assert fit(manifest, tmp_path / "other", "clusters=20", "hours=0.004", "seed=1") == 0
    first, second, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two", "other")
    )
    assert set(first) == {"centroids.safetensors", "kmeans.yaml"}
    assert first == second and first["centroids.safetensors"] != other["centroids.safetensors"]
    card = yaml.safe_load(first["kmeans.yaml"])
    assert card["fitting"]["frames"] == 15 * 75 and str(tmp_path) not in first["kmeans.yaml"].decode()


def test_the_published_numbers_are_the_default():
    counts = {
        feature: KmeansFittingConfig(manifest="", out="", feature=feature).num_clusters
        for feature in ("logmel", "chroma")
    }
    assert counts == {"logmel": 300, "chroma": 200}


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["clusters=5000"], 1, ["2400 frames", "5000"]),
        (["feature=mfcc"], 2, ["feature", "mfcc"]),
        (["clusters=1"], 2, ["clusters"]),
    ],
)
def test_refuses_what_cannot_be(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture, more: list[str], code: int, words: list[str]
):
    assert fit(manifest, tmp_path / "out", *more) == code
    error = capsys.readouterr().err.splitlines()[-1]
    assert all(word in error for word in words), error
    assert not (tmp_path / "out").exists()


def test_refuses_a_folder_in_use_and_a_corpus_that_changed(tmp_path: Path, capsys: pytest.CaptureFixture):
    root, out = tmp_path / "corpus", tmp_path / "manifest"
    write_audio(root / "one.wav", tone(440, 4))
    config = ManifestConfig(root=str(root), out=str(out), splits={})
    write_manifest(config, scan(config))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    assert fit(out, tmp_path / "used") == 1 and "not empty" in capsys.readouterr().err
    write_audio(root / "one.wav", tone(441, 4))
    assert fit(out, tmp_path / "new") == 1
    assert "one.wav: changed" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_tracks_shorter_than_a_frame_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_audio(tmp_path / "corpus" / "click.wav", tone(440, 0.01))
    config = ManifestConfig(
        root=str(tmp_path / "corpus"), out=str(tmp_path), group_by="track", splits={}, min_seconds=0.0
    )
    write_manifest(config, scan(config))
    assert fit(tmp_path, tmp_path / "kmeans") == 1
    assert "no whole frame of 320 samples in 1 tracks" in capsys.readouterr().err
