"""`mert fit`: what it draws, what it fits, the same bytes again, and what it refuses."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from audio_files import noise, tone, write_audio
from folders import make_manifest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from mert_foundry.jobs import fit as job
from mert_foundry.jobs.command import line, progress
from mert_foundry.jobs.command.line import run
from mert_foundry.pipeline.audio.blocks import float_blocks, to_int16
from mert_foundry.pipeline.fitting.codebook import fit_codebook, nearest
from mert_foundry.pipeline.fitting.codebook_quality import codebook_quality
from mert_foundry.pipeline.fitting.kmeans_fitting import KmeansFittingConfig
from mert_foundry.pipeline.fitting.sample import choose_crops, hold_out
from mert_foundry.pipeline.manifest.rows import Manifest, Track
from mert_foundry.pipeline.manifest.scan import ManifestConfig, scan, write_manifest
from mert_foundry.pipeline.storage.folder_kinds import MEL_RVQ as MEL_RVQ_FOLDER
from mert_foundry.pipeline.teachers.kmeans import load_kmeans
from mert_foundry.pipeline.teachers.mel_rvq import MelRvqTeacher, MelRvqTeacherConfig
from mert_foundry.pipeline.teachers.residual_kmeans import load_residual
from mert_foundry.pipeline.teachers.teacher import label_track

MEL_RVQ = "{kind: mel_rvq, codebooks: 4, entries: 16, dimensions: 16}"
PITCHES = [261.6, 329.6, 392.0, 466.2]  # C, E, G, B flat


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight tracks of one tone each, two tracks a pitch, in train; loud noise in valid."""
    root, out = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("manifest")
    for number in range(8):
        write_audio(root / f"track{number}.wav", tone(PITCHES[number % 4], 4) + noise(4, seed=number) / 1000)
    make_manifest(root, out, group_by="track", splits={})
    return out


def fit(manifest: Path, out: Path, teacher: str, *more: str) -> int:
    return run(job.main, [f"manifest={manifest}", f"out={out}", f"teacher={teacher}", "crop_seconds=1.0", *more], "")


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
    frames=st.integers(1, 80_000),
    seed=st.integers(0, 5),
)
def test_drawn_pieces_lie_in_the_train_tracks_and_reach_the_frames(lengths: list[float], frames: int, seed: int):
    tracks = [track(number, seconds) for number, seconds in enumerate(lengths)] + [track(99, 1000.0, "valid")]
    listing = Manifest(root="", sha256="", tracks=tracks)
    crops = choose_crops(listing, frames, 30.0, seed)
    assert crops == choose_crops(listing, frames, 30.0, seed)
    drawn = [(crop.track.key, number) for crop in crops for number in crop.numbers]
    assert drawn == sorted(set(drawn)) and all(crop.track.split == "train" for crop in crops)
    assert all(number == 0 or (number + 1) * 30 <= crop.track.seconds for crop in crops for number in crop.numbers)
    seconds = sum(crop.seconds(30.0) for crop in crops)
    every_piece = sum(max(1, int(length / 30)) * min(30.0, length) for length in lengths)
    assert min(frames / 75, every_piece) - 1e-6 <= seconds < frames / 75 + 30


def test_another_seed_draws_other_pieces():
    listing = Manifest(root="", sha256="", tracks=[track(number, 300.0) for number in range(20)])
    assert choose_crops(listing, 50_000, 30.0, 0) != choose_crops(listing, 50_000, 30.0, 1)


@pytest.mark.parametrize(("tracks", "held"), [(1, 0), (2, 1), (8, 1), (30, 3)])
def test_a_tenth_of_the_tracks_is_held_out_whole(tracks: int, held: int):
    crops = choose_crops(
        Manifest(root="", sha256="", tracks=[track(number, 90.0) for number in range(tracks)]), 10**6, 30.0, 0
    )
    kept, out = hold_out(crops, 0)
    assert len(out) == held and sorted(kept + out, key=lambda drawn: drawn.track.key) == crops
    assert not {drawn.track.key for drawn in kept} & {drawn.track.key for drawn in out}


def test_a_place_that_cannot_be_written_is_named_before_anything_is_read(manifest, capsys):
    assert fit(manifest, Path("/proc/nowhere/out"), "{kind: kmeans, clusters: 4}") == 2
    printed = capsys.readouterr()
    assert "/proc/nowhere/out: nothing can be written" in printed.err and "read" not in printed.out + printed.err


def test_finds_the_pitches_of_the_corpus(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert fit(manifest, tmp_path / "out", "{kind: kmeans, feature: chroma, clusters: 4}") == 0
    printed = capsys.readouterr()
    assert "fitting 1 codebook to 2100 frames" in printed.out and "on 1 held-out track, 300 frames" in printed.out
    centroids, card = load_kmeans(tmp_path / "out")
    expected = {round(22 * (12 * np.log2(pitch / 440) + 9)) % 264 for pitch in PITCHES}
    found = {
        min(expected, key=lambda bin: min((place - bin) % 264, (bin - place) % 264))
        for place in centroids.argmax(axis=1)
    }
    assert found == expected
    assert card.fitting["fitted_frames"] == 7 * 300 and card.quality["frames"] == 300
    assert card.fitting["batch_frames"] == 7 * 300  # all there are


def test_the_same_again_gives_the_same_bytes(manifest: Path, tmp_path: Path):
    kinds = {"kmeans": "{kind: kmeans, clusters: 20}", "mel_rvq": MEL_RVQ}
    for kind, teacher in kinds.items():
        for name in ("one", "two"):
            assert fit(manifest, tmp_path / kind / name, teacher, "frames=1000") == 0
        assert fit(manifest, tmp_path / kind / "other", teacher, "frames=1000", "seed=1") == 0
        first, second, other = (
            {path.name: path.read_bytes() for path in (tmp_path / kind / name).iterdir()}
            for name in ("one", "two", "other")
        )
        (weights,) = {name for name in first if name.endswith(".safetensors")}
        assert set(first) == {f"{kind}.yaml", weights}
        assert first == second and first[weights] != other[weights]
        card = yaml.safe_load(first[f"{kind}.yaml"])
        assert card["fitting"]["fitted_frames"] + card["quality"]["frames"] == 14 * 75
        assert str(tmp_path) not in first[f"{kind}.yaml"].decode()


def test_the_number_of_threads_changes_neither_weights_nor_card(manifest: Path, tmp_path: Path):
    for threads in (1, 2):
        with threadpool_limits(threads):
            assert fit(manifest, tmp_path / str(threads), "{kind: mel_rvq, codebooks: 2, entries: 64}") == 0
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("1", "2"))
    assert one == two and len(one) == 2


def test_mel_rvq_codes_held_out_music_as_well_as_its_card_says(manifest: Path, tmp_path: Path):
    assert fit(manifest, tmp_path / "out", MEL_RVQ) == 0
    weights, card = load_residual(tmp_path / "out", MEL_RVQ_FOLDER)
    errors, perplexity = card.quality["relative_error"], card.quality["perplexity"]
    assert len(errors) == len(perplexity) == 4 and all(1 > error > after for error, after in zip(errors, errors[1:]))
    directions = weights["projection"].astype(np.float64)
    np.testing.assert_allclose(directions.T @ directions, np.eye(16), atol=1e-5)
    teacher = MelRvqTeacher(MelRvqTeacherConfig(kind="mel_rvq", weights=str(tmp_path / "out")), torch.device("cpu"))
    audio = to_int16(tone(PITCHES[0], 4) + noise(4, seed=50) / 1000)
    codes, frames = label_track(teacher, audio), torch.cat(list(teacher.feature.stream(float_blocks(audio))))
    standardised = (frames.numpy().astype(np.float64) - weights["mean"]) / weights["deviation"]
    rebuilt = sum(codebook[row] for codebook, row in zip(weights["codebooks"], codes)) @ directions.T
    error = np.square(standardised - rebuilt).sum() / np.square(standardised).sum()
    assert error < 0.5
    first = weights["codebooks"][0][codes[0]] @ directions.T
    assert error < np.square(standardised - first).sum() / np.square(standardised).sum()


def test_the_quality_is_that_of_its_definition():
    random = np.random.default_rng(0)
    frames = random.standard_normal((500, 6)).astype(np.float32) + 3
    directions = np.linalg.qr(random.standard_normal((6, 4)))[0].astype(np.float32)
    codebooks = random.standard_normal((2, 8, 4)).astype(np.float32)
    quality = codebook_quality(((part, part @ directions) for part in np.array_split(frames, 3)), codebooks)
    left = frames @ directions
    for level, codebook in enumerate(codebooks):
        codes = np.linalg.norm(left[:, None] - codebook, axis=2).argmin(axis=1)
        left = left - codebook[codes]
        rebuilt = (frames @ directions - left) @ directions.T
        error = np.square(frames - rebuilt).sum() / np.square(frames - frames.mean(axis=0)).sum()
        shares = np.unique(codes, return_counts=True)[1] / 500
        assert quality["relative_error"][level] == pytest.approx(error, abs=2e-4)
        assert quality["perplexity"][level] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), abs=0.1)
        assert quality["used"][level] == len(shares)


def test_an_entry_that_no_frame_chooses_is_revived():
    """Nine of ten frames are the same: k-means that starts from frames has most of its entries there."""
    random = np.random.default_rng(0)
    frames = np.concatenate([np.zeros((9000, 2)), random.standard_normal((1000, 2))]).astype(np.float32)
    entries = fit_codebook(frames, 50, 0, lambda step, error: None)
    assert len(np.unique(nearest(frames, entries))) >= 45


def test_progress_has_the_steps_the_error_and_the_time_left(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)
    assert fit(manifest, tmp_path / "out", MEL_RVQ) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any(re.search(r"^fit: .* ETA \d+ s, codebook 3 of 4, step 70: error \d+\.\d%$", line) for line in lines), (
        lines
    )
    assert any(line.startswith("read: ") for line in lines)
    assert any(line.startswith("read held-out tracks: ") for line in lines)


def test_the_published_numbers_are_the_default():
    counts = {
        feature: KmeansFittingConfig(kind="kmeans", feature=feature).num_clusters for feature in ("logmel", "chroma")
    }
    assert counts == {"logmel": 300, "chroma": 200}


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["teacher.clusters=5000"], 1, ["2100 frames", "5000"]),
        (["teacher.feature=mfcc"], 2, ["teacher(kmeans).feature", "mfcc"]),
        (["teacher.clusters=1"], 2, ["teacher(kmeans).clusters"]),
        (["teacher.kind=mfcc"], 2, ["teacher", "mfcc", "'mel_rvq', 'kmeans', 'encoder'"]),
    ],
)
def test_refuses_what_cannot_be(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture, more: list[str], code: int, words: list[str]
):
    assert fit(manifest, tmp_path / "out", "{kind: kmeans}", *more) == code
    error = capsys.readouterr().err.splitlines()[-1]
    assert all(word in error for word in words), error
    assert not (tmp_path / "out").exists()


def test_refuses_a_folder_in_use_and_a_corpus_that_changed(tmp_path: Path, capsys: pytest.CaptureFixture):
    root, out = tmp_path / "corpus", tmp_path / "manifest"
    write_audio(root / "one.wav", tone(440, 4))
    make_manifest(root, out, splits={})
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    assert fit(out, tmp_path / "used", "{kind: kmeans}") == 1 and "not empty" in capsys.readouterr().err
    write_audio(root / "one.wav", tone(441, 4))
    assert fit(out, tmp_path / "new", "{kind: kmeans}") == 1
    assert "one.wav: changed" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_tracks_shorter_than_a_frame_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_audio(tmp_path / "corpus" / "click.wav", tone(440, 0.01))
    config = ManifestConfig(
        root=str(tmp_path / "corpus"), out=str(tmp_path), group_by="track", splits={}, min_seconds=0.0
    )
    write_manifest(config, scan(config))
    assert fit(tmp_path, tmp_path / "kmeans", "{kind: kmeans}") == 1
    assert "no whole frame of 320 samples in 1 tracks" in capsys.readouterr().err


def test_the_name_of_before_is_refused_with_the_one_of_now(capsys: pytest.CaptureFixture, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mert", "kmeans", "configs/kmeans.yaml"])
    assert line.main() == 2
    assert capsys.readouterr().err.splitlines() == ["mert: kmeans is now called fit; see mert fit --help"]
