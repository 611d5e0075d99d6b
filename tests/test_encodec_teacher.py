"""Codes against the encodec package itself, on whole real tracks, and refusals of weights that do not fit."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from audio_files import noise
from conftest import save_tiny_codec
from encodec import EncodecModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import codec, encodec_teacher
from pipeline.codec import CodecSizes, build_codec, load_codec, save_folder
from pipeline.decode import open_audio
from pipeline.encodec_teacher import EncodecTeacher, EncodecTeacherConfig, samples_reached_back
from pipeline.resample import decoded_track, to_float

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # encodec 0.1.1 uses the older weight norm


def make_teacher(weights: object, codebooks: int = 4) -> EncodecTeacher:
    config = EncodecTeacherConfig(kind="encodec", weights=str(weights), codebooks=codebooks)
    return EncodecTeacher(config, torch.device("cpu"))


def load_clip(path: Path) -> np.ndarray:
    with open_audio(path) as audio:
        return to_float(decoded_track(audio.blocks(), audio.header.sample_rate))


def package_codes(model: EncodecModel, audio: np.ndarray, codebooks: int) -> np.ndarray:
    """`EncodecModel.encode` of the package on the whole track, `[codebooks, frames]`."""
    model.target_bandwidths = [codebooks * np.log2(model.quantizer.bins) * 75 / 1000]
    model.bandwidth = model.target_bandwidths[0]
    with torch.inference_mode():
        (codes, _), = model.encode(torch.from_numpy(audio)[None, None])
    return codes[0].numpy()


def test_the_codec_of_these_tests_uses_its_codes(tiny_codec: Path, clips: Path):
    codes = make_teacher(tiny_codec).label(load_clip(clips / "singularity-music/coherence.opus"))
    assert min(len(np.unique(level)) for level in codes) > 8


@pytest.mark.parametrize("clip", ["hyperrogue-music/laboratory.ogg", "wesnoth-1.16-music/loyalists.m4a", "asc-music/frontiers.mp3"])
def test_codes_are_those_of_the_package(tiny_codec: Path, clips: Path, clip: str, monkeypatch: pytest.MonkeyPatch):
    audio = load_clip(clips / clip)
    expected = package_codes(load_codec(str(tiny_codec)), audio, 4)
    teacher = make_teacher(tiny_codec)
    for chunk in (1500, 101, 7):
        monkeypatch.setattr(encodec_teacher, "CHUNK_FRAMES", chunk)
        codes = teacher.label(audio)
        assert codes.dtype == np.uint16 and codes.shape == expected.shape == (4, len(audio) // 320)
        assert (codes != expected).any(axis=0).sum() <= 1 + codes.shape[1] // 1000  # near ties


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.one_of(st.integers(1, 5), st.integers(6, 60)), chunk=st.integers(7, 20), seed=st.integers(0, 9))
def test_short_tracks_and_any_chunks(tiny_codec: Path, frames: int, chunk: int, seed: int):
    audio = noise(frames / 75, seed=seed)
    expected = package_codes(load_codec(str(tiny_codec)), audio, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encodec_teacher, "CHUNK_FRAMES", chunk)
        codes = make_teacher(tiny_codec).label(audio)
    assert codes.shape == (4, frames)
    np.testing.assert_array_equal(codes, expected)


def test_fewer_codebooks_are_the_first_ones(tiny_codec: Path):
    audio = noise(1)
    all_four, two = make_teacher(tiny_codec, 4), make_teacher(tiny_codec, 2)
    np.testing.assert_array_equal(two.label(audio), all_four.label(audio)[:2])
    assert two.spec.fingerprint != all_four.spec.fingerprint and two.spec.size == 2


def test_what_comes_later_does_not_change_codes(tiny_codec: Path):
    audio = noise(2)
    teacher = make_teacher(tiny_codec)
    other = audio.copy()
    other[24_000:] = noise(1, seed=5)
    first, second = teacher.label(audio), teacher.label(other)
    np.testing.assert_array_equal(first[:, :74], second[:, :74])
    assert (first[:, 75:] != second[:, 75:]).any()


def test_convolutions_reach_back_as_far_as_claimed_and_no_further(tiny_codec: Path):
    teacher = make_teacher(tiny_codec)
    reach = samples_reached_back(teacher.convolutions)
    frames = -(-reach // 320) + 3
    audio = torch.from_numpy(noise(frames / 75))[None, None]
    before = audio.clone()
    last = 320 * (frames - 1)
    with torch.inference_mode():
        before[..., : last - reach] = 0
        same = teacher.convolutions(audio)[..., -1] - teacher.convolutions(before)[..., -1]
        before[..., : last - 320] = 0
        other = teacher.convolutions(audio)[..., -1] - teacher.convolutions(before)[..., -1]
    assert same.abs().max() < 1e-6 < other.abs().max()


def test_fingerprint_is_of_weights_and_settings_not_of_the_path(tiny_codec: Path, other_codec: Path, tmp_path: Path):
    shutil.copytree(tiny_codec, tmp_path / "copy")
    fingerprints = {name: make_teacher(path).spec.fingerprint for name, path in
                    {"here": tiny_codec, "copy": tmp_path / "copy", "other": other_codec}.items()}
    assert fingerprints["here"] == fingerprints["copy"] != fingerprints["other"]
    assert make_teacher(f"{tmp_path / 'copy'}/").spec.teacher["weights"] == "copy"


def test_one_changed_codebook_entry_changes_the_fingerprint(tiny_codec: Path, tmp_path: Path):
    sizes = CodecSizes(filters=2, dimension=8, codebooks=4, codebook_size=64)
    model = load_codec(str(tiny_codec))
    model.quantizer.vq.layers[3]._codebook.embed[5, 0] += 1e-4
    save_folder(model, sizes, tmp_path)
    assert make_teacher(tmp_path).spec.fingerprint != make_teacher(tiny_codec).spec.fingerprint


def test_specification(tiny_codec: Path):
    spec = make_teacher(tiny_codec).spec
    assert (spec.name, spec.kind, spec.dtype, spec.frame_rate, spec.size, spec.codebook_size) == ("codes", "discrete", "uint16", 75, 4, 64)


def test_a_saved_codec_is_the_packages_own(tiny_codec: Path):
    """The file's names are those of `encodec.EncodecModel`, so the package can load it without this project."""
    from safetensors.torch import load_file

    official = set(EncodecModel.encodec_model_24khz(pretrained=False).state_dict())
    saved = set(load_file(tiny_codec / "codec.safetensors"))
    levels = {name for name in official if name.startswith("quantizer.vq.layers.") and name.split(".")[3] not in ("0", "1", "2", "3")}
    assert saved == official - levels


def test_official_weights_are_loaded_only_with_the_official_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "encodec_24khz-d7cc33bc.th"
    torch.save({"encoder.weight": torch.zeros(2)}, path)
    import hashlib

    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    with pytest.raises(ValueError) as caught:
        make_teacher(path, codebooks=8)
    assert digest in str(caught.value) and "d7cc33bc" in str(caught.value) and str(path) in str(caught.value)
    # The same file under its own hash goes on to the state dict, which then must fit.
    monkeypatch.setattr(codec, "OFFICIAL_FILE", f"encodec_24khz-{digest}.th")
    with pytest.raises(RuntimeError, match="Missing key"):
        make_teacher(path, codebooks=8)


def test_an_official_file_gives_the_official_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With random weights under a hash of their own: the 24 kHz model, its first 8 codebooks, as the package has them."""
    import hashlib

    torch.manual_seed(0)
    model = EncodecModel.encodec_model_24khz(pretrained=False).eval()
    for layer in model.quantizer.vq.layers:
        layer._codebook.embed.copy_(torch.randn_like(layer._codebook.embed) * 0.05)
        layer._codebook.inited.fill_(1)
    torch.save(model.state_dict(), tmp_path / "made.th")
    digest = hashlib.sha256((tmp_path / "made.th").read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(codec, "OFFICIAL_FILE", f"encodec_24khz-{digest}.th")
    monkeypatch.setattr(encodec_teacher, "CHUNK_FRAMES", 40)
    teacher = make_teacher(tmp_path / "made.th", codebooks=8)
    assert (teacher.spec.size, teacher.spec.codebook_size) == (8, 1024)
    audio = noise(112 / 75)
    model.set_target_bandwidth(6.0)
    with torch.inference_mode():
        expected = model.encode(torch.from_numpy(audio)[None, None])[0][0][0].numpy()
    assert (teacher.label(audio) == expected).all(axis=0).mean() >= 0.99


@pytest.mark.parametrize("weights", ["offical", "foundry-tiny", "no/such/folder"])
def test_unknown_weights_are_refused_and_nothing_else_is_loaded(weights: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("went to the network"))
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        make_teacher(weights)
    assert repr(weights) in str(caught.value)


def test_a_failed_download_is_an_error(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*arguments, **options):
        assert options["check_hash"] and options["weights_only"] and arguments[0].endswith("encodec_24khz-d7cc33bc.th")
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    with pytest.raises(OSError, match="no network"):
        make_teacher("official", codebooks=8)


def test_too_many_codebooks_are_refused(tiny_codec: Path):
    with pytest.raises(ValueError, match="4 codebooks, 8 asked for"):
        make_teacher(tiny_codec, 8)


def test_another_hop_is_refused(tmp_path: Path):
    sizes = CodecSizes(filters=2, dimension=8, ratios=(4, 5, 4, 2), codebooks=4, codebook_size=64)
    model = build_codec(sizes)
    for layer in model.quantizer.vq.layers:
        layer._codebook.inited.fill_(1)
    save_folder(model, sizes, tmp_path)
    with pytest.raises(ValueError, match="hop 160.*hop 320"):
        make_teacher(tmp_path)


@pytest.mark.parametrize("damage", ["sizes", "missing", "cut"])
def test_a_codec_folder_that_does_not_fit_is_refused(tmp_path: Path, damage: str):
    save_tiny_codec(tmp_path / "codec", seed=0)
    weights = tmp_path / "codec" / "codec.safetensors"
    if damage == "sizes":
        text = (tmp_path / "codec" / "codec.yaml").read_text()
        (tmp_path / "codec" / "codec.yaml").write_text(text.replace("filters: 2", "filters: 4"))
    elif damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        make_teacher(tmp_path / "codec")
    assert str(tmp_path / "codec") in str(caught.value)


def test_a_codec_whose_codebooks_were_never_trained_is_refused(tmp_path: Path):
    """Else the package would fit them to the first batch it sees, and codes would depend on it."""
    sizes = CodecSizes(filters=2, dimension=8, codebooks=4, codebook_size=64)
    save_folder(build_codec(sizes), sizes, tmp_path)
    with pytest.raises(ValueError, match="codebook"):
        make_teacher(tmp_path)
