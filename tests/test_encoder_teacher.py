"""An encoder as teacher: its windows against those of feature stores, its codes against the nearest entries, what it
refuses.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from audio_files import noise, rising_tone, tone, write_audio
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import tiny_encoder

from mert_foundry.jobs import fit
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.extraction.models import model_fingerprint, open_model
from mert_foundry.model.encoder import EncoderConfig, MertEncoder
from mert_foundry.model.features.windows import FrameGeometry, plan_windows
from mert_foundry.model.frontend.log_mel import LogMelFrontendConfig
from mert_foundry.model.interop.export import export_model
from mert_foundry.model.interop.stored_model import StoredModel
from mert_foundry.model.teacher.encoder_teacher import EncoderTeacher, EncoderTeacherConfig
from mert_foundry.model.teacher.registry import TEACHERS
from mert_foundry.model.teacher.window_stream import stream_windows
from mert_foundry.pipeline.audio.blocks import to_float
from mert_foundry.pipeline.manifest.scan import ManifestConfig, scan, write_manifest
from mert_foundry.pipeline.storage.folder_kinds import ENCODER_CODES, FolderError
from mert_foundry.pipeline.teachers import registry
from mert_foundry.pipeline.teachers.residual_kmeans import load_residual
from mert_foundry.pipeline.teachers.teacher import label_track

CPU = torch.device("cpu")
WINDOWS = "windows: {seconds: 2, overlap_seconds: 0.5}"
HOPS = {"convolution": 320, "log_mel": 960}


@given(
    num_samples=st.integers(1, 4000),
    cuts=st.lists(st.integers(1, 3999), max_size=4),
    hop_and_more=st.tuples(st.integers(5, 60), st.integers(0, 90)),
    sizes=st.integers(1, 30).flatmap(lambda window: st.tuples(st.just(window), st.integers(0, window - 1))),
)
def test_windows_are_those_of_the_whole_track_as_far_as_it_has_begun_hops(num_samples, cuts, hop_and_more, sizes):
    hop, more = hop_and_more
    geometry, (window, overlap) = FrameGeometry(hop, hop + more), sizes
    track = np.arange(1, num_samples + 1, dtype=np.float32)
    blocks = np.split(track, sorted({cut for cut in cuts if cut < num_samples}))
    frames = -(-num_samples // hop)
    whole = np.pad(track, (0, max(0, geometry.num_samples(frames) - num_samples)))
    assert geometry.num_frames(len(whole)) == frames
    planned = plan_windows(len(whole), geometry, window, overlap)
    streamed = list(stream_windows(blocks, geometry, window, overlap))
    assert len(streamed) == len(planned)
    for part, plan in zip(streamed, planned):
        np.testing.assert_array_equal(part.audio, whole[plan.start_sample : plan.start_sample + plan.num_samples])
        kept = (part.keep_start + plan.start_frame, part.keep_stop + plan.start_frame)
        assert kept == (plan.keep_start, plan.keep_stop)


def save_encoder(folder: Path, kind: str, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = tiny_encoder(layers=3)
    if kind == "log_mel":
        config = EncoderConfig(**{**dict(config), "frontend": LogMelFrontendConfig(kind="log_mel")})
    encoder = MertEncoder(config)
    for weight in encoder.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    export_model(folder, StoredModel(config, encoder.state_dict(), 24_000), {})
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of each hop in `convolution` and `log_mel`, and in `codes_...` codebooks fitted to its layer 2."""
    folder = tmp_path_factory.mktemp("encoders")
    for number in range(6):
        audio = tone(250 + 130 * number, 5) * np.linspace(0, 1, 120_000, dtype=np.float32) + noise(5, seed=number)
        write_audio(folder / "audio" / f"{number}.wav", audio)
    config = ManifestConfig(root=str(folder / "audio"), out=str(folder / "manifest"), group_by="track", splits={})
    write_manifest(config, scan(config))
    for kind in HOPS:
        teacher = (
            f"{{kind: encoder, model: {save_encoder(folder / kind, kind)}, layer: 2, codebooks: 2, entries: 12,"
            f" {WINDOWS}}}"
        )
        arguments = [f"manifest={folder / 'manifest'}", f"out={folder / f'codes_{kind}'}", f"teacher={teacher}"]
        assert run(fit.main, [*arguments, "crop_seconds=5"], "") == 0
    return folder


def make_config(folders: Path, kind: str, codes: str = "", **options) -> EncoderTeacherConfig:
    weights = str(folders / f"codes_{codes or kind}")
    return EncoderTeacherConfig(kind="encoder", model=str(folders / kind), weights=weights, **options)


@pytest.mark.parametrize("kind", HOPS)
def test_codes_are_the_nearest_entries_to_the_states_of_the_layer(kind: str, folders: Path):
    teacher = EncoderTeacher(make_config(folders, kind), CPU)
    audio, hop = rising_tone(5.4), HOPS[kind]
    codes = label_track(teacher, audio)
    assert codes.dtype == np.uint16 and codes.shape == (2, 405) == teacher.spec.shape(405)
    assert teacher.spec.frame_rate == 75 and teacher.spec.codebook_size == 12

    model = open_model(str(folders / kind), CPU, layers=[2])
    window, overlap = round(2 * 24_000 / hop), round(0.5 * 24_000 / hop)
    frames = -(-len(audio) // hop)
    whole = np.pad(to_float(audio), (0, max(0, model.geometry.num_samples(frames) - len(audio))))
    states = np.concatenate(
        [
            model.encode(torch.from_numpy(whole[plan.start_sample :][: plan.num_samples])[None])[0, :, 0].numpy()[
                plan.keep_start - plan.start_frame : plan.keep_stop - plan.start_frame
            ]
            for plan in plan_windows(len(whole), model.geometry, window, overlap)
        ]
    )
    assert len(states) == frames
    weights, card = load_residual(folders / f"codes_{kind}", ENCODER_CODES)
    assert str(folders) not in (folders / f"codes_{kind}" / ENCODER_CODES.marker).read_text()
    assert card.feature_settings["encoder"] == model_fingerprint(model) and card.feature_settings["layer"] == 2
    left = (states.astype(np.float64) - weights["mean"]) / weights["deviation"] @ weights["projection"]
    at = np.arange(405) * 320 // hop
    for level, codebook in enumerate(weights["codebooks"]):
        distances = np.linalg.norm(left[:, None] - codebook, axis=2)
        chosen = distances[at, codes[level]]
        assert (chosen - distances.min(axis=1)[at] <= 1e-3 * chosen).all()
        assert len(np.unique(codes[level])) > 3
        left = left - codebook[distances.argmin(axis=1)]


@pytest.mark.parametrize("kind", HOPS)
@pytest.mark.parametrize("frames", [1, 2, 3, 149, 150, 400, 467])
def test_tracks_of_any_length_and_any_blocks(kind: str, frames: int, folders: Path):
    teacher = EncoderTeacher(make_config(folders, kind), CPU)
    audio = to_float(rising_tone(7))[: frames * 320]
    whole = np.concatenate(list(teacher.label([audio])), axis=1)
    assert whole.shape == (2, frames)
    cuts = [place for place in (1, 2, 40, 149, 151, 300) if place < frames]
    cut = np.concatenate(list(teacher.label(np.split(audio, np.array(cuts, int) * 320))), axis=1)
    np.testing.assert_array_equal(cut, whole)


def test_a_description_is_the_spec_and_follows_encoder_and_codebooks(folders: Path):
    spec = EncoderTeacher(make_config(folders, "log_mel"), CPU).spec
    assert registry.describe_targets([make_config(folders, "log_mel")], TEACHERS) == [spec]
    assert EncoderTeacher.describe(make_config(folders, "convolution")).fingerprint != spec.fingerprint
    assert EncoderTeacher.describe(make_config(folders, "log_mel", name="other")).fingerprint == spec.fingerprint
    assert (spec.name, spec.teacher["model"], spec.teacher["weights"]) == ("encoder", "log_mel", "codes_log_mel")


def test_codebooks_of_another_encoder_are_refused(folders: Path, tmp_path: Path):
    save_encoder(tmp_path / "log_mel", "log_mel", seed=1)
    (tmp_path / "codes_log_mel").symlink_to(folders / "codes_log_mel")
    with pytest.raises(ValueError, match=r"codes_log_mel/encoder_codes.yaml: fitted to .*'encoder': '[0-9a-f]{64}'"):
        EncoderTeacher(make_config(tmp_path, "log_mel"), CPU)
    with pytest.raises(ValueError, match="fitted to"):
        EncoderTeacher(make_config(folders, "convolution", codes="log_mel"), CPU)
    with pytest.raises(FolderError, match="is a manifest folder .* a run folder"):
        EncoderTeacher(make_config(folders, "manifest", codes="log_mel"), CPU)


@pytest.mark.parametrize(
    ("teacher", "code", "words"),
    [
        ("layer: 4", 1, ["layers [4]", "0 to 3"]),
        ("layer: 1, dimensions: 17", 1, ["16 dimensions, not 17"]),
        ("layer: -1", 2, ["teacher(encoder).layer", "-1"]),
        ("codebooks: 2", 2, ["teacher(encoder).layer", "missing"]),
    ],
)
def test_fit_refuses_a_layer_that_is_not_there(
    teacher: str, code: int, words: list[str], folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    setting = f"teacher={{kind: encoder, model: {folders / 'log_mel'}, {teacher}}}"
    assert run(fit.main, [f"manifest={folders / 'manifest'}", f"out={tmp_path / 'out'}", setting], "") == code
    error = capsys.readouterr().err.splitlines()[-1]
    assert all(word in error for word in words), error
    assert not (tmp_path / "out").exists()


def test_an_encoder_whose_hop_does_not_fit_is_refused(folders: Path, tmp_path: Path):
    frontend = LogMelFrontendConfig(kind="log_mel", spectra_per_frame=3)
    encoder = EncoderConfig(**{**dict(tiny_encoder(layers=3)), "frontend": frontend})
    export_model(tmp_path / "log_mel", StoredModel(encoder, MertEncoder(encoder).state_dict(), 24_000), {})
    config = EncoderTeacherConfig(
        kind="encoder", model=str(tmp_path / "log_mel"), weights=str(folders / "codes_convolution")
    )
    with pytest.raises(ValueError, match=r"a hop of 720 samples; shards hold 24000 Hz, .* a multiple of 320"):
        EncoderTeacher.describe(config)
