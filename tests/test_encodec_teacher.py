"""Codes against the encodec package itself, on whole real tracks, and refusals of weights that do not fit."""

import importlib.util
import itertools
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from audio_files import MUSIC, decoded, noise
from conftest import save_tiny_codec
from encodec import EncodecModel
from encodec.modules import SConv1d
from forked import Forked
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mert_foundry.jobs.benchmarks.code_agreement import NEAR_TIE, CodeAgreement, compare_codes
from mert_foundry.pipeline.audio.blocks import to_float
from mert_foundry.pipeline.teachers.codec import encoder as encodec_encoder
from mert_foundry.pipeline.teachers.codec import weights as codec
from mert_foundry.pipeline.teachers.codec.encoder import EncodecEncoder
from mert_foundry.pipeline.teachers.codec.weights import CodecSizes, build_codec, load_codec, save_folder
from mert_foundry.pipeline.teachers.encodec import EncodecTeacher, EncodecTeacherConfig, codebooks_of
from mert_foundry.pipeline.teachers.registry import build_teachers

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # encodec 0.1.1 uses the older weight norm

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the extra 'openvino' is not installed"
)
BACKENDS = ["torch", pytest.param("openvino", marks=needs_openvino)]
# Where the small codec's real weights meet real music.
TRACKS = [
    "asc-music/frontiers.mp3",
    "hyperrogue-music/laboratory.ogg",
    "singularity-music/coherence.opus",
    "ufoai-music/battlescape-02.ogg",
    "wesnoth-1.16-music/loyalists.m4a",
    "wesnoth-1.16-music/transience.flac",
]


def make_teacher(weights: object, codebooks: int = 4, **choices: str) -> EncodecTeacher:
    config = EncodecTeacherConfig(kind="encodec", weights=str(weights), codebooks=codebooks, **choices)
    return EncodecTeacher(config, torch.device("cpu"))


def codes_of(teacher: EncodecTeacher, audio: np.ndarray, cuts: Iterable[int] = ()) -> np.ndarray:
    """Codes of a whole track, given in blocks that end at `cuts` (frames)."""
    return np.concatenate(list(teacher.label(np.split(audio, [320 * cut for cut in cuts]))), axis=1)


def load_clip(path: Path) -> np.ndarray:
    return to_float(decoded(path))


def package_codes(model: EncodecModel, audio: np.ndarray, codebooks: int) -> np.ndarray:
    """`EncodecModel.encode` of the package on the whole track, `[codebooks, frames]`."""
    model.target_bandwidths = [codebooks * np.log2(model.quantizer.bins) * 75 / 1000]
    model.bandwidth = model.target_bandwidths[0]
    with torch.inference_mode():
        ((codes, _),) = model.encode(torch.from_numpy(audio)[None, None])
    return codes[0].numpy()


def agreement(
    codes: np.ndarray, expected: np.ndarray, model: EncodecModel, audio: np.ndarray, near_tie: float = NEAR_TIE
) -> CodeAgreement:
    with torch.inference_mode():
        latents = model.encoder(torch.from_numpy(audio)[None, None])[0].T.numpy()
    return compare_codes(codes, expected, latents, codebooks_of(model).numpy(), near_tie)


@cache
def reference(weights: str, codebooks: int, *names: str) -> tuple[np.ndarray, np.ndarray]:
    """Of clips end to end, the package's codes and the latents `[frames, dimension]` of its encoder; one pass for all
    backends.
    """
    model, audio = load_codec(weights), np.concatenate([load_clip(MUSIC / name) for name in names])
    with torch.inference_mode():
        latents = model.encoder(torch.from_numpy(audio)[None, None])[0].T.numpy()
    return package_codes(model, audio, codebooks), latents


@pytest.fixture(scope="module")
def official_sizes(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Path:
    """A codec of the official 24 kHz sizes, which has no weights to be had offline: every convolution of the encoder
    scaled to put out unit variance on real music, codebooks drawn from the latents' residuals."""
    audio = np.concatenate([load_clip(clips / name) for name in TRACKS])[: 20 * 24_000]
    sizes = CodecSizes(codebooks=8)

    def scale(module: SConv1d, _: object, output: torch.Tensor) -> torch.Tensor:
        mean, deviation = output.mean(dim=(0, 2)), output.std()
        bias = module.conv.conv.bias
        module.conv.conv.weight_g /= deviation
        bias.copy_((bias - mean) / deviation)
        return (output - mean[:, None]) / deviation

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = build_codec(sizes).eval()
        hooks = [part.register_forward_hook(scale) for part in model.encoder.modules() if isinstance(part, SConv1d)]
        rest = model.encoder(torch.from_numpy(audio)[None, None])[0].T
        for hook in hooks:
            hook.remove()
        for layer in model.quantizer.vq.layers:
            entries = rest[torch.randperm(len(rest))[: sizes.codebook_size]]
            layer._codebook.embed.copy_(entries + 0.1 * rest.std() * torch.randn_like(entries))
            layer._codebook.inited.fill_(1)
            rest = rest - layer._codebook.embed[torch.cdist(rest, layer._codebook.embed).argmin(dim=1)]
    folder = tmp_path_factory.mktemp("codec") / "official_sizes"
    save_folder(model, sizes, folder)
    return folder


def test_the_codec_of_these_tests_uses_its_codes(tiny_codec: Path, clips: Path):
    codes = codes_of(make_teacher(tiny_codec), load_clip(clips / "singularity-music/coherence.opus"))
    assert min(len(np.unique(level)) for level in codes) > 8


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weights", ["tiny", "foundry-small"])
def test_codes_of_whole_tracks_are_those_of_the_package(backend: str, weights: str, tiny_codec: Path, clips: Path):
    # The tiny codec's last layer scales its latents up, and with them their rounding, to 6e-5.
    weights, codebooks, near_tie = (str(tiny_codec), 4, 1e-3) if weights == "tiny" else (weights, 8, NEAR_TIE)
    entries, teacher = codebooks_of(load_codec(weights)).numpy(), make_teacher(weights, codebooks, backend=backend)
    reports = []
    for clip in TRACKS:
        audio, (expected, latents) = load_clip(clips / clip), reference(weights, codebooks, clip)
        codes = codes_of(teacher, audio)
        assert codes.dtype == np.uint16 and codes.shape == expected.shape == (codebooks, len(audio) // 320)
        reports.append(compare_codes(codes, expected, latents, entries, near_tie))
    total = sum(reports[1:], reports[0])
    assert total.equal_share >= 0.999, total
    assert total.near_ties == total.differing_frames, total


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_codes_at_the_official_sizes_are_those_of_the_package(backend: str, official_sizes: Path, clips: Path):
    names = "wesnoth-1.16-music/battle-epic.ogg", TRACKS[1]
    codes = codes_of(
        make_teacher(official_sizes, 8, backend=backend), np.concatenate([load_clip(clips / name) for name in names])
    )
    expected, latents = reference(str(official_sizes), 8, *names)
    assert min(len(np.unique(level)) for level in expected) > 300
    report = compare_codes(codes, expected, latents, codebooks_of(load_codec(str(official_sizes))).numpy(), NEAR_TIE)
    assert report.equal_share >= 0.999 and report.near_ties == report.differing_frames, report


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.one_of(st.integers(1, 16), st.integers(17, 700)), seed=st.integers(0, 9))
def test_tracks_of_any_length(backend: str, tiny_codec: Path, frames: int, seed: int):
    audio, model = noise(frames / 75, seed=seed), load_codec(str(tiny_codec))
    codes, expected = codes_of(make_teacher(tiny_codec, backend=backend), audio), package_codes(model, audio, 4)
    assert codes.shape == (4, frames)
    report = agreement(codes, expected, model, audio)
    assert report.near_ties == report.differing_frames <= 1, report


@pytest.mark.parametrize("backend", BACKENDS)
def test_codes_do_not_depend_on_the_blocks_that_come_in(backend: str, tiny_codec: Path, clips: Path):
    audio, teacher = load_clip(clips / TRACKS[1]), make_teacher(tiny_codec, backend=backend)
    expected = codes_of(teacher, audio)

    @settings(max_examples=25)
    @given(st.sets(st.integers(1, len(audio) // 320 - 1), max_size=40))
    def check(cuts: set[int]) -> None:
        np.testing.assert_array_equal(codes_of(teacher, audio, sorted(cuts)), expected)

    check()
    np.testing.assert_array_equal(codes_of(teacher, audio, range(1, len(audio) // 320)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("window", "chunk"), [(75, 75), (10, 20), (60, 600), (33, 990)])
def test_codes_do_not_depend_on_the_chunk_but_for_near_ties(
    backend: str, window: int, chunk: int, clips: Path, monkeypatch: pytest.MonkeyPatch
):
    audio = load_clip(clips / TRACKS[2])
    expected = codes_of(make_teacher("foundry-small", 8, backend=backend), audio)
    monkeypatch.setitem(encodec_encoder.WINDOW_FRAMES, "cpu", window)
    monkeypatch.setattr(encodec_encoder, "CHUNK_FRAMES", chunk)
    report = agreement(
        codes_of(make_teacher("foundry-small", 8, backend=backend), audio), expected, load_codec("foundry-small"), audio
    )
    assert report.equal_share >= 0.999 and report.near_ties == report.differing_frames, report


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_codes_do_not_depend_on_the_number_of_threads_but_for_near_ties(backend: str, clips: Path):
    """Every labeller has one thread; a user's own process may have more."""
    audio = load_clip(clips / TRACKS[3])[: 5 * 24_000]
    expected = codes_of(make_teacher("foundry-small", 8, backend=backend), audio)
    torch.set_num_threads(2)
    try:
        codes = codes_of(make_teacher("foundry-small", 8, backend=backend), audio)
    finally:
        torch.set_num_threads(1)
    report = agreement(codes, expected, load_codec("foundry-small"), audio)
    assert report.equal_share >= 0.999 and report.near_ties == report.differing_frames, report


def write_codes(weights: Path, backend: str, out: Path) -> None:
    torch.set_num_threads(1)
    out.write_bytes(codes_of(make_teacher(weights, backend=backend), noise(5)).tobytes())


@pytest.mark.process
@pytest.mark.parametrize("backend", BACKENDS)
def test_another_process_gives_the_same_bytes(backend: str, tiny_codec: Path, tmp_path: Path):
    assert Forked(write_codes, tiny_codec, backend, tmp_path / "there").wait(timeout=120) == 0
    write_codes(tiny_codec, backend, tmp_path / "here")
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_comes_later_does_not_change_codes(backend: str, tiny_codec: Path):
    audio, teacher = noise(12), make_teacher(tiny_codec, backend=backend)
    whole = codes_of(teacher, audio)
    for frames in (7, 8, 300, 307, 308, 500):
        np.testing.assert_array_equal(codes_of(teacher, audio[: 320 * frames]), whole[:, :frames])
    other = audio.copy()
    other[6 * 24_000 :] = noise(6, seed=5)
    changed = codes_of(teacher, other)
    np.testing.assert_array_equal(changed[:, :450], whole[:, :450])
    assert (changed[:, 451:] != whole[:, 451:]).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_codes_do_not_depend_on_the_tracks_beside(backend: str, tiny_codec: Path, monkeypatch: pytest.MonkeyPatch):
    """Shorter than the start, ending with a chunk or just after it, more tracks than slots, a slot that stays empty."""
    monkeypatch.setitem(encodec_encoder.BATCH_SLOTS, "cpu", 3)
    teacher = make_teacher(tiny_codec, backend=backend)
    start = teacher.encoder.start_frames
    tracks = [noise(frames / 75, seed=frames) for frames in (1, start, start + 1, start + 300, start + 301, 700, 940)]
    alone = [codes_of(teacher, audio) for audio in tracks]

    @settings(max_examples=8)
    @given(st.permutations(range(len(tracks))), st.integers(1, len(tracks)))
    def check(order: list[int], count: int) -> None:
        chosen = order[:count]
        together = teacher.label_tracks(
            [np.split(tracks[number], [320])[: len(tracks[number]) // 320] for number in chosen]
        )
        for number, codes in zip(chosen, together):
            np.testing.assert_array_equal(np.concatenate(list(codes), axis=1), alone[number])

    check()


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_codes_do_not_depend_on_the_number_of_slots_but_for_near_ties(
    backend: str, clips: Path, monkeypatch: pytest.MonkeyPatch
):
    tracks = [load_clip(clips / name) for name in TRACKS[:3]]
    expected = [codes_of(make_teacher("foundry-small", 8, backend=backend), audio) for audio in tracks]
    monkeypatch.setitem(encodec_encoder.BATCH_SLOTS, "cpu", 2)
    found = make_teacher("foundry-small", 8, backend=backend).label_tracks([audio] for audio in tracks)
    for audio, wanted, codes in zip(tracks, expected, found):
        report = agreement(np.concatenate(list(codes), axis=1), wanted, load_codec("foundry-small"), audio)
        assert report.equal_share >= 0.999 and report.near_ties == report.differing_frames, report


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_codes_of_a_cpu_whatever_is_beside(clips: Path):
    tracks = [load_clip(clips / name) for name in TRACKS]
    config = EncodecTeacherConfig(kind="encodec", weights="foundry-small", codebooks=8)
    (teacher,) = build_teachers([config], "cuda")
    together = [
        np.concatenate(list(codes), axis=1)
        for _, codes in zip(tracks, teacher.label_tracks([[audio] for audio in tracks]))
    ]
    for audio, codes in zip(tracks, together):
        np.testing.assert_array_equal(codes_of(teacher, audio), codes)
        report = agreement(codes, codes_of(make_teacher("foundry-small", 8), audio), load_codec("foundry-small"), audio)
        assert report.equal_share >= 0.999 and report.near_ties == report.differing_frames, report


def test_two_tracks_may_be_labelled_in_turn(tiny_codec: Path):
    """The state belongs to the track, not to the teacher."""
    teacher = make_teacher(tiny_codec)
    first, second = noise(12), noise(12, seed=1)
    pairs = list(zip(teacher.label([first]), teacher.label([second]), strict=True))
    np.testing.assert_array_equal(np.concatenate([codes for codes, _ in pairs], axis=1), codes_of(teacher, first))
    np.testing.assert_array_equal(np.concatenate([codes for _, codes in pairs], axis=1), codes_of(teacher, second))


def test_a_track_without_end_is_labelled_as_it_comes(tiny_codec: Path):
    """So memory is that of a chunk: what has been taken is never more than a chunk ahead of what was given."""
    taken = given_back = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        for seed in itertools.count():
            taken += 30
            yield noise(30 / 75, seed=seed % 7)

    for codes in itertools.islice(make_teacher(tiny_codec).label(endless()), 20):
        given_back += codes.shape[1]
        assert taken - given_back <= 2 * encodec_encoder.CHUNK_FRAMES
    assert given_back > 5000


def test_fewer_codebooks_are_the_first_ones(tiny_codec: Path):
    audio = noise(1)
    all_four, two = make_teacher(tiny_codec, 4), make_teacher(tiny_codec, 2)
    np.testing.assert_array_equal(codes_of(two, audio), codes_of(all_four, audio)[:2])
    assert two.spec.fingerprint != all_four.spec.fingerprint and two.spec.size == 2


def test_convolutions_reach_back_as_far_as_claimed_and_no_further(tiny_codec: Path):
    encoder = make_teacher(tiny_codec).encoder
    convolutions, reach = encoder.padded_convolutions, encoder.left_context
    frames = -(-reach // 320) + 3
    audio = torch.from_numpy(noise(frames / 75))[None, None]
    before = audio.clone()
    last = 320 * (frames - 1)
    with torch.inference_mode():
        before[..., : last - reach] = 0
        same = convolutions(audio)[..., -1] - convolutions(before)[..., -1]
        before[..., : last - 320] = 0
        other = convolutions(audio)[..., -1] - convolutions(before)[..., -1]
    assert same.abs().max() < 1e-6 < other.abs().max()


def cpu_has_bf16(backend: str) -> bool:
    if backend == "torch":
        return True
    from mert_foundry.pipeline.teachers.codec.openvino_backend import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.mark.parametrize("backend", BACKENDS)
def test_bf16_changes_few_coarse_codes_and_the_fingerprint(backend: str, clips: Path):
    if not cpu_has_bf16(backend):
        with pytest.raises(ValueError, match="bf16: this CPU's OpenVINO would compute in f32"):
            make_teacher("foundry-small", 8, backend=backend, precision="bf16")
        return
    audio = load_clip(clips / TRACKS[5])
    exact, rough = (make_teacher("foundry-small", 8, backend=backend, precision=name) for name in ("fp32", "bf16"))
    equal = (codes_of(rough, audio) == codes_of(exact, audio)).mean(axis=1)
    assert 0.95 < equal[0] and 0.5 < equal[7] < 1
    assert rough.spec.fingerprint != exact.spec.fingerprint
    assert rough.spec.teacher["precision"] == "bf16" and rough.spec.teacher["lstm_precision"] == "fp32"


def test_tf32_is_another_teacher_and_for_a_gpu_alone(tiny_codec: Path):
    teacher = make_teacher(tiny_codec, precision="tf32")
    assert teacher.spec.fingerprint != make_teacher(tiny_codec).spec.fingerprint
    with pytest.raises(ValueError, match="tf32.*GPU.*cpu"):
        codes_of(teacher, noise(1))
    with pytest.raises(ValueError, match="openvino.*tf32"):
        make_teacher(tiny_codec, precision="tf32", backend="openvino")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tf32_on_a_gpu_is_nearer_to_fp32_than_bf16(clips: Path):
    """And what it lets cuDNN do is over when the codes are there."""
    audio, codes = load_clip(clips / TRACKS[5]), {}
    for precision in ("fp32", "bf16", "tf32"):
        config = EncodecTeacherConfig(kind="encodec", weights="foundry-small", codebooks=8, precision=precision)
        codes[precision] = codes_of(build_teachers([config], "cuda")[0], audio)
    assert not torch.backends.cudnn.allow_tf32
    equal = {precision: (codes[precision] == codes["fp32"]).all(axis=0).mean() for precision in ("tf32", "bf16")}
    assert equal["bf16"] < equal["tf32"] < 1


@needs_openvino
def test_the_record_can_tell_the_backend_and_the_fingerprint_does_not(tiny_codec: Path):
    import openvino

    plain, fast = make_teacher(tiny_codec), make_teacher(tiny_codec, backend="openvino", name="acoustic")
    assert plain.backend == {"codes": f"torch {torch.__version__} fp32"}
    assert fast.backend == {"acoustic": f"openvino {openvino.__version__.split('-')[0]} fp32"}
    assert plain.spec.fingerprint == fast.spec.fingerprint


def test_fingerprints_of_published_shards_stay_valid():
    """A change here makes every shard labelled with the small codec stale."""
    fingerprint = make_teacher("foundry-small", 8).spec.fingerprint
    assert fingerprint == "5045357c827b5d9b361b1501642bd1c79325d9326d2b83d04186933c70724671"


def test_openvino_that_is_not_installed_is_refused_by_name(tiny_codec: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "mert_foundry.pipeline.teachers.codec.openvino_backend", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match=r"backend openvino.*mert-foundry\[openvino\]"):
        make_teacher(tiny_codec, backend="openvino")


def test_openvino_on_a_gpu_is_refused(tiny_codec: Path):
    with pytest.raises(ValueError, match="openvino.*CPU.*cuda"):
        EncodecEncoder(load_codec(str(tiny_codec)).encoder, torch.device("cuda"), backend="openvino")


@pytest.mark.process
@needs_openvino
def test_openvino_does_not_report_its_use():
    script = (
        "import sys; import mert_foundry.pipeline.teachers.codec.openvino_backend as own; print(own.VERSION,"
        " sys.modules['openvino_telemetry'])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.split()[1] == "None"


def test_fingerprint_is_of_weights_and_settings_not_of_the_path(tiny_codec: Path, other_codec: Path, tmp_path: Path):
    shutil.copytree(tiny_codec, tmp_path / "copy")
    fingerprints = {
        name: make_teacher(path).spec.fingerprint
        for name, path in {"here": tiny_codec, "copy": tmp_path / "copy", "other": other_codec}.items()
    }
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
    assert (spec.name, spec.kind, spec.dtype, spec.frame_rate, spec.size, spec.codebook_size) == (
        "codes",
        "discrete",
        "uint16",
        75,
        4,
        64,
    )


def test_a_saved_codec_is_the_packages_own(tiny_codec: Path):
    """The file's names are those of `encodec.EncodecModel`, so the package can load it without this project."""
    from safetensors.torch import load_file

    official = set(EncodecModel.encodec_model_24khz(pretrained=False).state_dict())
    saved = set(load_file(tiny_codec / "codec.safetensors"))
    levels = {
        name
        for name in official
        if name.startswith("quantizer.vq.layers.") and name.split(".")[3] not in ("0", "1", "2", "3")
    }
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
    """With random weights under a hash of their own: the 24 kHz model, its first 8 codebooks, as the
    package has them.
    """
    import hashlib

    torch.manual_seed(0)
    model = EncodecModel.encodec_model_24khz(pretrained=False).eval()
    for layer in model.quantizer.vq.layers:
        layer._codebook.embed.copy_(torch.randn_like(layer._codebook.embed) * 0.05)
        layer._codebook.inited.fill_(1)
    torch.save(model.state_dict(), tmp_path / "made.th")
    digest = hashlib.sha256((tmp_path / "made.th").read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(codec, "OFFICIAL_FILE", f"encodec_24khz-{digest}.th")
    teacher = make_teacher(tmp_path / "made.th", codebooks=8)
    assert (teacher.spec.size, teacher.spec.codebook_size) == (8, 1024)
    audio = noise(320 / 75)
    model.set_target_bandwidth(6.0)
    with torch.inference_mode():
        expected = model.encode(torch.from_numpy(audio)[None, None])[0][0][0].numpy()
    assert (codes_of(teacher, audio) == expected).all(axis=0).mean() >= 0.99


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
