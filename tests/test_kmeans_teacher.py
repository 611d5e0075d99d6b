"""The k-means teacher against the definition of a nearest centroid, and folders it must refuse."""

from pathlib import Path

import numpy as np
import pytest
import torch
from audio_files import rising_tone, tone
from folders import change_yaml

from mert_foundry.pipeline.audio.blocks import float_blocks, to_int16
from mert_foundry.pipeline.teachers.kmeans import (
    KmeansTeacher,
    KmeansTeacherConfig,
    build_feature,
    load_kmeans,
    save_kmeans,
)
from mert_foundry.pipeline.teachers.teacher import label_track

CPU = torch.device("cpu")
FEATURES = ["logmel", "chroma"]


def features_of(name: str, audio: np.ndarray) -> np.ndarray:
    return np.concatenate([part.numpy() for part in build_feature(name, CPU).stream(float_blocks(audio))])


def laughs(levels: int) -> str:
    """YAML of a few hundred bytes for a list of 9 to the power of `levels` words (the billion laughs)."""
    lists = [f"l{level}: &l{level} [{', '.join([f'*l{level - 1}' if level else 'ha'] * 9)}]" for level in range(levels)]
    return "\n".join(lists)


def save_folder(folder: Path, feature: str, clusters: int = 12, seed: int = 0) -> Path:
    """Centroids taken from the features of `rising_tone`."""
    features = features_of(feature, rising_tone(4))
    chosen = np.random.default_rng(seed).choice(len(features), clusters, replace=False)
    folder.mkdir()
    save_kmeans(folder, features[chosen], build_feature(feature, CPU).settings, {"seed": seed}, {"used": clusters})
    return folder


def make_teacher(folder: Path, **options) -> KmeansTeacher:
    return KmeansTeacher(KmeansTeacherConfig(kind="kmeans", weights=str(folder), **options), CPU)


@pytest.mark.parametrize("feature", FEATURES)
def test_codes_are_the_nearest_centroids(feature: str, tmp_path: Path):
    teacher = make_teacher(save_folder(tmp_path / "kmeans", feature))
    audio = rising_tone(5)
    codes = label_track(teacher, audio)
    assert codes.dtype == np.uint16 and codes.shape == (1, 375) == teacher.spec.shape(375)
    centroids, _ = load_kmeans(tmp_path / "kmeans")
    distances = np.linalg.norm(features_of(feature, audio).astype(np.float64)[:, None] - centroids, axis=2)
    chosen = distances[np.arange(375), codes[0]]
    assert ((chosen - distances.min(axis=1)) <= 1e-5 * chosen).all()
    assert len(np.unique(codes)) == 12


@pytest.mark.parametrize("feature", FEATURES)
def test_labels_do_not_depend_on_the_blocks(feature: str, tmp_path: Path):
    teacher = make_teacher(save_folder(tmp_path / "kmeans", feature))
    audio = next(float_blocks(rising_tone(15)))
    whole = np.concatenate(list(teacher.label([audio])), axis=1)
    cut = np.concatenate(list(teacher.label(np.split(audio, np.array([1, 2, 40, 900, 1100]) * 320))), axis=1)
    assert whole.shape == (1, 1125)
    np.testing.assert_array_equal(cut, whole)


def test_a_steady_tone_has_one_code(tmp_path: Path):
    codes = label_track(make_teacher(save_folder(tmp_path / "kmeans", "chroma")), to_int16(tone(440, 2)))
    assert len(np.unique(codes[0, 20:-20])) == 1


def test_the_name_is_that_of_the_feature_unless_given(tmp_path: Path):
    folder = save_folder(tmp_path / "centroids", "chroma")
    teacher = make_teacher(folder)
    assert (teacher.spec.name, teacher.spec.codebook_size, teacher.spec.size) == ("chroma", 12, 1)
    assert teacher.spec.teacher["weights"] == "centroids"
    assert make_teacher(folder, name="harmony").spec.name == "harmony"


def test_fingerprint_follows_centroids_and_feature_not_name_and_place(tmp_path: Path):
    first = make_teacher(save_folder(tmp_path / "one", "logmel")).spec.fingerprint
    assert make_teacher(save_folder(tmp_path / "two", "logmel"), name="other").spec.fingerprint == first
    assert make_teacher(save_folder(tmp_path / "three", "logmel", seed=1)).spec.fingerprint != first
    assert make_teacher(save_folder(tmp_path / "four", "chroma")).spec.fingerprint != first


def test_a_folder_of_another_rate_or_feature_is_refused(tmp_path: Path):
    folder = save_folder(tmp_path / "kmeans", "logmel")
    settings = build_feature("logmel", CPU).settings
    change_yaml(folder / "kmeans.yaml", feature_settings=settings | {"sample_rate": 16_000})
    with pytest.raises(ValueError, match=r"kmeans.yaml.*16000.*24000"):
        make_teacher(folder)
    change_yaml(folder / "kmeans.yaml", feature_settings=settings, feature="chroma")
    with pytest.raises(ValueError, match=r"kmeans.yaml.*'logmel'.*'chroma'"):
        make_teacher(folder)
    for size in (230, "229", "many"):
        change_yaml(folder / "kmeans.yaml", feature_settings=settings | {"size": size}, feature="logmel")
        words = rf"kmeans.yaml: feature_settings.size is {size!r}, centroids.safetensors is for 229 values a frame"
        with pytest.raises(ValueError, match=words):
            make_teacher(folder)
    change_yaml(folder / "kmeans.yaml", feature="mfcc")
    with pytest.raises(ValueError, match=r"kmeans.yaml.*feature: Input should be 'logmel' or 'chroma'"):
        make_teacher(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_centroids_that_are_not_finite_are_refused(value: float, tmp_path: Path):
    centroids, card = load_kmeans(save_folder(tmp_path / "good", "logmel"))
    broken = np.array(centroids)
    broken[3, 5:7] = value
    (tmp_path / "broken").mkdir()
    save_kmeans(tmp_path / "broken", broken, card.feature_settings, {}, {})
    with pytest.raises(ValueError, match=r"broken/centroids.safetensors: 2 of 2748 values of centroids are not finite"):
        make_teacher(tmp_path / "broken")


def test_missing_and_damaged_folders_are_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere/kmeans.yaml"):
        make_teacher(tmp_path / "nowhere")
    folder = save_folder(tmp_path / "kmeans", "logmel")
    content = (folder / "centroids.safetensors").read_bytes()
    (folder / "centroids.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"centroids.safetensors: SHA-256 [0-9a-f]{64}, kmeans.yaml says [0-9a-f]{64}"):
        make_teacher(folder)
    (folder / "centroids.safetensors").write_bytes(content)
    change_yaml(folder / "kmeans.yaml", clusters=13)
    with pytest.raises(
        ValueError,
        match=r"centroids.safetensors: centroids is float32 \(12, 229\), kmeans.yaml says float32 \(13, 229\)",
    ):
        make_teacher(folder)
    for card in ("clusters: [", "[" * 5000, "!!python/object/apply:os.getcwd []", laughs(12)):
        (folder / "kmeans.yaml").write_text(card)
        with pytest.raises(ValueError, match="kmeans.yaml: not a card") as caught:
            make_teacher(folder)
        assert len(str(caught.value)) < 1000
    (folder / "centroids.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="centroids.safetensors"):
        make_teacher(folder)
