"""The list of teachers, and the way of pipeline/teachers/README.md to add one, followed to the letter."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from audio_files import noise, tone
from encodec.model import EncodecModel
from mel_rvq_weights import save_random_weights
from pydantic import TypeAdapter, ValidationError

from mert_foundry.pipeline.audio.blocks import to_int16
from mert_foundry.pipeline.teachers import registry as teachers
from mert_foundry.pipeline.teachers.codec.weights import OFFICIAL_FILE, load_codec, read_codec
from mert_foundry.pipeline.teachers.kmeans import describe_feature, save_kmeans
from mert_foundry.pipeline.teachers.teacher import label_track

ROOT = Path(__file__).parent.parent
SECTION = "## A teacher of your own"
CQT = {"kind": "cqt", "lowest_frequency": 500.0, "bins": 24, "bins_per_octave": 12}


def readme_blocks() -> dict[str, list[str]]:
    """The fenced blocks of the section, by language."""
    section = (ROOT / "pipeline" / "teachers" / "README.md").read_text().split(SECTION)[1].split("\n#")[0]
    blocks: dict[str, list[str]] = {}
    for language, content in re.findall(r"^```(\w+)\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL):
        blocks.setdefault(language, []).append(content)
    return blocks


def module_of(name: str, path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def with_loudness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """pipeline/teachers/registry.py with the README's file beside it and the README's line in it."""
    code, line = readme_blocks()["python"]
    (tmp_path / "loudness.py").write_text(code)
    assert line.count("\n") == 1
    source = (ROOT / "pipeline" / "teachers" / "registry.py").read_text()
    place = source.index("from mert_foundry.pipeline.teachers.random_projection")
    (tmp_path / "registry.py").write_text(source[:place] + line + source[place:])
    for name in ("mert_foundry.pipeline.teachers.loudness", "registry_with_loudness"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))  # so that it is taken away again
    module_of("mert_foundry.pipeline.teachers.loudness", tmp_path / "loudness.py")
    return module_of("registry_with_loudness", tmp_path / "registry.py")


def test_the_teacher_of_the_readme_labels_a_track(with_loudness: ModuleType):
    config = yaml.safe_load(readme_blocks()["yaml"][0])["teachers"]
    configs = TypeAdapter(list[with_loudness.TeacherConfig]).validate_python([*config, CQT])
    loudness, cqt = with_loudness.build_teachers(configs, "cpu")
    assert (loudness.spec.name, cqt.spec.name) == ("loudness", "cqt")
    audio = to_int16(np.concatenate([tone(440, 2), noise(23, seed=1), np.zeros(24_000, np.float32)]))
    labels = label_track(loudness, audio)
    assert labels.dtype == np.float16 and labels.shape == loudness.spec.shape(26 * 75)
    assert labels[75, 0] == pytest.approx(-9.03, abs=0.1)  # a sine of half full scale
    assert labels[1000, 0] == pytest.approx(-20, abs=1.5) and (labels[-75:] == -80).all()
    with pytest.raises(ValidationError, match="loudness"):
        TypeAdapter(list[teachers.TeacherConfig]).validate_python(config)


def test_every_kind_has_its_config_and_class():
    kinds = {
        config.model_fields["kind"].annotation.__args__[0]: teacher for config, teacher in teachers.TEACHERS.items()
    }
    assert {kind: teacher.__name__ for kind, teacher in kinds.items()} == {
        "encodec": "EncodecTeacher",
        "cqt": "CqtTeacher",
        "kmeans": "KmeansTeacher",
        "mel_rvq": "MelRvqTeacher",
        "random_projection": "RandomProjectionTeacher",
    }


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ValidationError, match="mfcc.*random_projection"):
        TypeAdapter(list[teachers.TeacherConfig]).validate_python([{"kind": "mfcc"}])


def test_a_description_is_the_spec_of_the_teacher_and_builds_no_module(
    tiny_codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    centroids = np.random.default_rng(0).standard_normal((5, 229))
    (tmp_path / "kmeans").mkdir()
    save_kmeans(tmp_path / "kmeans", centroids, describe_feature("logmel"), {}, {})
    save_random_weights(tmp_path / "mel_rvq", codebooks=2, entries=7, dimensions=4)
    configs = TypeAdapter(list[teachers.TeacherConfig]).validate_python(
        [
            {"kind": "encodec", "weights": str(tiny_codec), "codebooks": 3},
            {"kind": "encodec", "weights": "foundry-small", "name": "shipped", "precision": "bf16"},
            CQT,
            CQT | {"storage": "float16", "name": "halves"},
            {"kind": "kmeans", "weights": str(tmp_path / "kmeans")},
            {"kind": "mel_rvq", "weights": str(tmp_path / "mel_rvq")},
            {"kind": "random_projection", "codebook_size": 16},
        ]
    )
    specs = [teacher.spec for teacher in teachers.build_teachers(configs, "cpu")]

    def refuse(*arguments: object, **settings: object) -> None:
        raise AssertionError("a module is built")

    monkeypatch.setattr(torch.nn.Module, "__init__", refuse)
    assert teachers.describe_targets(configs) == specs
    with pytest.raises(ValueError, match="'codes' is made by two teachers"):
        teachers.describe_targets([configs[0], configs[0]])


def test_the_official_codec_is_read_as_the_package_builds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    model = EncodecModel.encodec_model_24khz(pretrained=False)
    torch.save(model.state_dict(), tmp_path / OFFICIAL_FILE)
    monkeypatch.setattr("mert_foundry.pipeline.teachers.codec.weights.check_official", lambda path: None)
    stored = read_codec(str(tmp_path / OFFICIAL_FILE))
    assert stored.sizes.hop == model.encoder.hop_length == 320
    assert (stored.sizes.codebooks, stored.sizes.codebook_size) == (model.quantizer.n_q, model.quantizer.bins)
    loaded = load_codec(str(tmp_path / OFFICIAL_FILE)).state_dict()
    codebooks = [f"quantizer.vq.layers.{level}._codebook.embed" for level in range(32)]
    assert set(stored.weights) == {*(name for name in loaded if name.startswith("encoder.")), *codebooks}
    assert all(torch.equal(weight, loaded[name]) for name, weight in stored.weights.items())


@pytest.mark.parametrize(("device", "settings"), [("cpu", {"precision": "tf32"}), ("cuda", {"backend": "openvino"})])
def test_what_a_device_cannot_do_is_refused_with_its_place(device: str, settings: dict):
    configs = TypeAdapter(list[teachers.TeacherConfig]).validate_python(
        [CQT, {"kind": "encodec", "weights": "foundry-small", **settings}]
    )
    with pytest.raises(ValueError, match=rf"teachers\.1\.{next(iter(settings))} .* the device is {device}"):
        teachers.check_device(configs, device)


def test_two_targets_of_one_name_are_refused():
    configs = TypeAdapter(list[teachers.TeacherConfig]).validate_python(
        [{"kind": "random_projection", "codebook_size": 16}, CQT, {"kind": "random_projection", "codebook_size": 32}]
    )
    with pytest.raises(ValueError, match="'random_projection' is made by two teachers"):
        teachers.build_teachers(configs, "cpu")
    other = configs[2].model_copy(update={"name": "other"})
    assert [each.spec.name for each in teachers.build_teachers([*configs[:2], other], "cpu")] == [
        "random_projection",
        "cqt",
        "other",
    ]
