"""The Mel-RVQ teacher against residual codes written out, its stacked frames, and folders it must refuse."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from audio_files import rising_tone, tone
from folders import change_yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mel_rvq_weights import random_weights, save_random_weights

from mert_foundry.pipeline.audio.blocks import float_blocks, to_float, to_int16
from mert_foundry.pipeline.storage.folder_kinds import MEL_RVQ, FolderError
from mert_foundry.pipeline.teachers.mel_rvq import BANDS, MelRvqTeacher, MelRvqTeacherConfig
from mert_foundry.pipeline.teachers.residual_kmeans import save_residual
from mert_foundry.pipeline.teachers.spectra.power_spectra import LogMel
from mert_foundry.pipeline.teachers.spectra.stacked_log_mel import StackedLogMel
from mert_foundry.pipeline.teachers.teacher import label_track

CPU = torch.device("cpu")

LONG = to_float(rising_tone(800 / 75))  # more than a chunk of spectra


def save_folder(folder: Path, seed: int = 0, codebooks: int = 3) -> Path:
    return save_random_weights(folder, codebooks, entries=32, dimensions=8, seed=seed)


def make_teacher(folder: Path, **options) -> MelRvqTeacher:
    return MelRvqTeacher(MelRvqTeacherConfig(kind="mel_rvq", weights=str(folder), **options), CPU)


def stacked(audio: np.ndarray) -> np.ndarray:
    """Three log-mel frames side by side, the outer ones repeated at the ends."""
    frames = np.concatenate([part.numpy() for part in LogMel(128, CPU).stream(float_blocks(audio))])
    padded = np.concatenate([frames[:1], frames, frames[-1:]])
    return np.concatenate([padded[:-2], padded[1:-1], padded[2:]], axis=1)


def test_codes_are_the_nearest_entries_of_what_is_left(tmp_path: Path):
    teacher, audio = make_teacher(save_folder(tmp_path / "folder")), rising_tone(5)
    codes = label_track(teacher, audio)
    assert codes.dtype == np.uint16 and codes.shape == (3, 375) == teacher.spec.shape(375)
    weights = {name: array.astype(np.float64) for name, array in random_weights(3, 32, 8).items()}
    left = (stacked(audio) - weights["mean"]) / weights["deviation"] @ weights["projection"]
    for level, codebook in enumerate(weights["codebooks"]):
        distances = np.linalg.norm(left[:, None] - codebook, axis=2)
        chosen = distances[np.arange(375), codes[level]]
        assert (chosen - distances.min(axis=1) <= 1e-4 * chosen).all()
        assert len(np.unique(codes[level])) > 3
        left = left - codebook[codes[level]]


@settings(max_examples=30)
@given(frames=st.integers(1, 800), cuts=st.lists(st.integers(1, 799), max_size=5))
def test_neither_frames_nor_labels_depend_on_the_blocks(frames: int, cuts: list[int]):
    audio = LONG[: frames * 320]
    feature = StackedLogMel(128, CPU)
    blocks = np.split(audio, np.array(sorted({cut for cut in cuts if cut < frames}), int) * 320)
    whole, cut = (torch.cat(list(feature.stream(parts))) for parts in ([audio], blocks))
    assert torch.equal(cut, whole) and whole.shape == (frames, 384)
    np.testing.assert_array_equal(whole[:-1, 128:256], whole[1:, :128])
    np.testing.assert_array_equal(whole[:-1, 256:], whole[1:, 128:256])


def test_a_track_longer_than_a_chunk_has_the_same_codes_in_any_blocks(tmp_path: Path):
    teacher, audio = make_teacher(save_folder(tmp_path / "folder")), next(float_blocks(rising_tone(19)))
    whole = np.concatenate(list(teacher.label([audio])), axis=1)
    cut = np.concatenate(list(teacher.label(np.split(audio, np.array([1, 2, 40, 749, 750, 751]) * 320))), axis=1)
    np.testing.assert_array_equal(cut, whole)
    assert whole.shape == (3, 1425)


def test_a_steady_tone_has_one_code_a_codebook(tmp_path: Path):
    codes = label_track(make_teacher(save_folder(tmp_path / "folder")), to_int16(tone(450, 2)))
    assert (codes[:, 20:-20] == codes[:, 20:21]).all()


def test_fingerprint_follows_weights_not_name_and_place(tmp_path: Path):
    first = make_teacher(save_folder(tmp_path / "one")).spec
    other = make_teacher(save_folder(tmp_path / "two"), name="other").spec
    assert (first.name, other.name) == ("mel_rvq", "other") and first.fingerprint == other.fingerprint
    assert (first.size, first.codebook_size, first.frame_rate, first.teacher["weights"]) == (3, 32, 75, "one")
    assert make_teacher(save_folder(tmp_path / "three", seed=1)).spec.fingerprint != first.fingerprint
    assert make_teacher(save_folder(tmp_path / "four", codebooks=2)).spec.fingerprint != first.fingerprint


def test_missing_and_damaged_folders_are_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/mel_rvq.yaml: not there; mert fit writes such a folder"):
        make_teacher(tmp_path / "nowhere")
    folder = save_folder(tmp_path / "folder")
    content, card = (folder / "mel_rvq.safetensors").read_bytes(), (folder / "mel_rvq.yaml").read_text()
    (folder / "mel_rvq.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"mel_rvq.safetensors: SHA-256 [0-9a-f]{64}, mel_rvq.yaml says [0-9a-f]{64}"):
        make_teacher(folder)
    (folder / "mel_rvq.safetensors").write_bytes(content)
    change_yaml(folder / "mel_rvq.yaml", entries=33)
    with pytest.raises(ValueError, match=r"codebooks is float32 \(3, 32, 8\), mel_rvq.yaml says float32 \(3, 33, 8\)"):
        make_teacher(folder)
    (folder / "mel_rvq.yaml").write_text(card)
    change_yaml(
        folder / "mel_rvq.yaml", feature_settings=yaml.safe_load(card)["feature_settings"] | {"sample_rate": 16_000}
    )
    with pytest.raises(ValueError, match=r"mel_rvq.yaml.*16000.*24000"):
        make_teacher(folder)
    change_yaml(folder / "mel_rvq.yaml", feature_settings=yaml.safe_load(card)["feature_settings"] | {"size": 128})
    with pytest.raises(ValueError, match=r"mel_rvq.yaml: feature_settings.size is 128, .* is for 384 values a frame"):
        make_teacher(folder)
    for text in ("entries: [", "!!python/object/apply:os.getcwd []", "surprise: 1"):
        (folder / "mel_rvq.yaml").write_text(text)
        with pytest.raises(ValueError, match="mel_rvq.yaml: not a card of mert fit"):
            make_teacher(folder)
    (folder / "mel_rvq.safetensors").unlink()
    (folder / "mel_rvq.yaml").write_text(card)
    with pytest.raises(FileNotFoundError, match="mel_rvq.safetensors"):
        make_teacher(folder)


@pytest.mark.parametrize("name", ["codebooks", "mean"])
def test_weights_that_are_not_finite_are_refused(name: str, tmp_path: Path):
    weights = random_weights(3, 32, 8)
    weights[name].flat[2] = np.nan
    save_residual(tmp_path, MEL_RVQ, weights, StackedLogMel.describe(BANDS), {}, {})
    with pytest.raises(ValueError, match=rf"mel_rvq.safetensors: 1 of \d+ values of {name} are not finite"):
        make_teacher(tmp_path)


def test_a_folder_of_centroids_is_refused_by_name(tmp_path: Path):
    for name in ("kmeans.yaml", "centroids.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(FolderError, match="is a k-means folder .* a Mel-RVQ folder .* is needed"):
        make_teacher(tmp_path)
