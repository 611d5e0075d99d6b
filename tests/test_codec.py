"""`mert codec` and its parts: start, codebooks that stay alive, honest judgement, a folder that encodec
itself opens.
"""

import hashlib
import json
import math
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from audio_files import MUSIC, decoded, noise, started_by_fork, tone, wait_until, write_audio
from encodec.model import EncodecModel
from encodec.modules import SEANetDecoder, SEANetEncoder
from encodec.quantization import ResidualVectorQuantizer
from encodec.quantization.core_vq import EuclideanCodebook
from folders import contents, make_manifest
from safetensors.torch import load_file, save_file
from torch import nn

from mert_foundry.jobs import codec as job
from mert_foundry.jobs.command import progress
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.pipeline.fitting import codec_training
from mert_foundry.pipeline.fitting.codec_quality import evaluate_codec, si_sdr
from mert_foundry.pipeline.fitting.codec_state import (
    CodecState,
    TrainingPosition,
    publish_state,
    read_position,
    read_state,
)
from mert_foundry.pipeline.fitting.codec_training import (
    CodecTrainingConfig,
    Crops,
    data_dependent_init,
    revive_dead_codes,
    start_codebooks,
    train_codec,
)
from mert_foundry.pipeline.manifest.rows import load_manifest
from mert_foundry.pipeline.teachers.codec.weights import SHIPPED_CODECS, CodecSizes, build_codec, load_codec

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

RATE = 24_000
SIZES = {"filters": 2, "dimension": 8, "lstm_layers": 1, "codebooks": 3, "codebook_size": 16}
SHIPPED = SHIPPED_CODECS / "foundry-small"


@pytest.fixture(autouse=True, scope="module")
def small_and_repeatable():
    """K-means on fewer vectors; one thread, so that sums are the same in every test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec_training, "KMEANS_VECTORS", 600)
        yield
    torch.set_num_threads(threads)


def config(**changes: object) -> CodecTrainingConfig:
    settings = {
        "manifest": "unused", "out": "unused", "sizes": SIZES, "steps": 6, "autoencoder_steps": 2, "batch_size": 2,
        "crop_seconds": 0.5, "warmup_steps": 2, "dead_code_share": 0.1, "validate_every": 6,
    }  # fmt: skip
    return CodecTrainingConfig(**settings | changes)


def to_int16(audio: np.ndarray) -> np.ndarray:
    return np.rint(audio * 32_767).astype(np.int16)


def tones(count: int, seconds: float) -> list[np.ndarray]:
    return [to_int16(tone(200 * 1.5**number, seconds)) for number in range(count)]


def untrained(**sizes: int) -> EncodecModel:
    torch.manual_seed(3)
    return build_codec(CodecSizes(**SIZES | sizes))


# ---- the command


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """Six tracks of 11 s, of which the hash split holds some out, and their manifest."""
    root, out = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("manifest")
    for number in range(6):
        write_audio(root / f"track{number}.flac", tone(150 * 2**number, 11) * 0.8 + noise(11, seed=number) * 0.2)
    make_manifest(root, out, splits={"valid": 0.4}, group_by="track")
    assert {track.split for track in load_manifest(str(out)).tracks} == {"train", "valid"}
    return out


def command(manifest: Path, out: Path, *changes: str) -> list[str]:
    sizes = [f"sizes.{name}={value}" for name, value in SIZES.items()]
    settings = config().model_dump(mode="json", exclude={"manifest", "out", "sizes"})
    return [
        f"manifest={manifest}",
        f"out={out}",
        *sizes,
        *(f"{key}={value}" for key, value in settings.items()),
        *changes,
    ]


@pytest.fixture(scope="module")
def trained(manifest, tmp_path_factory) -> Path:
    """The folder of a codec trained for six steps; read only."""
    out = tmp_path_factory.mktemp("trained") / "codec"
    assert run(job.main, command(manifest, out), job.__doc__) == 0
    return out


@pytest.mark.process
def test_encodec_itself_opens_the_weights_by_its_own_names(trained):
    sizes = yaml.safe_load((trained / "codec.yaml").read_text())
    network = {
        "channels": 1, "dimension": sizes["dimension"], "n_filters": sizes["filters"], "ratios": sizes["ratios"],
        "norm": "weight_norm", "causal": True, "lstm": sizes["lstm_layers"],
    }  # fmt: skip
    quantizer = ResidualVectorQuantizer(sizes["dimension"], sizes["codebooks"], sizes["codebook_size"])
    model = EncodecModel(SEANetEncoder(**network), SEANetDecoder(**network), quantizer, [], RATE, 1)
    model.load_state_dict(load_file(trained / "codec.safetensors"), strict=True)
    model.eval()
    ours = load_codec(str(trained))
    audio = torch.from_numpy(tone(440, 1))[None, None]
    with torch.no_grad():
        codes = [codec.quantizer.encode(codec.encoder(audio), codec.frame_rate) for codec in (model, ours)]
    assert codes[0].shape == (3, 1, 75) and torch.equal(*codes)
    assert not ours.training


@pytest.mark.process
def test_the_card_has_the_figures_of_the_codec(trained, manifest):
    listing = load_manifest(str(manifest))
    held_out = [track for track in listing.tracks if track.split == "valid"]
    audio = [decoded(Path(listing.root) / track.path) for track in held_out]
    figures = evaluate_codec(load_codec(str(trained)), audio)
    card = (trained / "README.md").read_text()
    assert f"| this codec | {figures['si_sdr']} | {figures['log_mel_distance']} |" in card
    for level in range(3):
        assert f"| {level + 1} | {figures['usage'][level]} | {figures['perplexity'][level]} |" in card
    assert all(f"- {track.path}\n" in card for track in held_out)
    assert f"Held out: {11 * len(held_out) / 3600:.2f} h ({len(held_out)} tracks)" in card
    settings = yaml.safe_load((trained / "training.yaml").read_text())
    assert settings["steps"] == 6 and settings["sizes"]["codebooks"] == 3 and "manifest" not in settings
    last = [json.loads(line) for line in (trained / "losses.jsonl").read_text().splitlines()][-1]
    assert last["step"] == 6 and last["held_out"] == figures and last["waveform"] > 0 < last["mel"]


@pytest.fixture
def told_at_once(monkeypatch):
    """Lines of progress at every update, however little time has gone by."""
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)


@pytest.mark.process
def test_progress_tells_audio_trained_on_losses_and_judgements(manifest, tmp_path, capsys, told_at_once):
    changes = ["steps=10", "crop_seconds=0.9", "validate_every=5"]
    assert run(job.main, command(manifest, tmp_path / "out", *changes), job.__doc__) == 0
    output = capsys.readouterr()
    assert output.out.startswith("before training: SI-SDR ") and output.out.endswith(f"\ncodec: {tmp_path / 'out'}\n")
    lines = output.err.splitlines()
    train, valid = ([line for line in lines if line.startswith(f"decode {split}: ")] for split in ("train", "valid"))
    tracks = load_manifest(str(manifest)).tracks
    assert len(train) + len(valid) == len(tracks) + 2  # one a track, and the last word of each
    *steps, last = [line for line in lines if line.startswith("codec: ")]
    assert len(train) + len(valid) + len(steps) + 1 == len(lines)

    # 10 steps of 2 crops of 0.9 s are 18 s, 0.005 h.
    assert [line.split(",")[0] for line in (steps[0], steps[4], last)] == [
        "codec: 0.001 of 0.005 h", "codec: 0.003 of 0.005 h", "codec: 0.005 of 0.005 h"
    ]  # fmt: skip
    records = [json.loads(line) for line in (tmp_path / "out" / "losses.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [5, 10]
    for record, line in zip(records, (steps[4], steps[9]), strict=True):
        assert re.search(r"(x real time, ETA \d+ s|starting), step", line)
        losses = ", ".join(f"{name} {record[name]:.3f}" for name in ("waveform", "mel", "commitment"))
        assert f"step {record['step']}: {losses}, held out: SI-SDR {record['held_out']['si_sdr']} dB" in line
    assert "held out" not in steps[3] and "held out" in steps[6]
    assert re.search(r"x real time, ETA \d+ s, step 10", steps[-1])


@pytest.mark.process
@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_a_quiet_run_says_nothing_and_one_for_machines_one_object(manifest, tmp_path, capsys, told_at_once, option):
    try:
        assert run(job.main, command(manifest, tmp_path / "out", option), job.__doc__) == 0
    finally:
        console.take_options([])
    output = capsys.readouterr()
    if option == "--quiet":
        assert output == ("", "")
    else:
        result = json.loads(output.out)
        assert (
            result["last"]["step"] == 6 and result["last"]["held_out"]["seconds"] == result["untrained"]["seconds"] > 0
        )
        assert "\ncodec: " in output.err and "before training: " in output.err


# ---- stopped and resumed


LONGER = ["steps=60", "autoencoder_steps=10", "validate_every=20", "checkpoint_every=3", "dead_code_share=0.5"]


def checkpoint_step(out: Path) -> int:
    """The step of the checkpoint that is there, however soon the next one replaces it."""
    position = read_position(str(out.with_name(f"{out.name}.training") / "checkpoint.safetensors"))
    return position.step if position else 0


@pytest.mark.process
@pytest.mark.slow
def test_a_killed_training_goes_on_with_the_same_losses_and_weights(manifest, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(codec_training, "KMEANS_VECTORS", 12_000)  # as in a process of its own
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    with started_by_fork(["codec", *command(manifest, killed, *LONGER)], tmp_path / "log") as process:
        wait_until(process, lambda: checkpoint_step(killed) >= 15)  # the codebooks start after 10
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    assert not killed.exists() and 15 <= checkpoint_step(killed) < 60
    code = run(job.main, command(manifest, killed, *LONGER, "learning_rate=0.01"), "")
    assert code == 1 and "was begun with learning_rate 0.001, now it is 0.01" in capsys.readouterr().err
    step = checkpoint_step(killed)

    for out in (killed, undisturbed):
        assert run(job.main, command(manifest, out, *LONGER), "") == 0
    assert f"going on after step {step} of 60\n" in capsys.readouterr().out
    assert contents(killed) == contents(undisturbed)
    assert len((killed / "losses.jsonl").read_text().splitlines()) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "log", "undisturbed"]


def test_training_goes_on_from_every_step_as_if_it_had_never_stopped(tmp_path):
    settings, audio = config(checkpoint_every=1, dead_code_share=0.9), tones(3, 2)
    position = TrainingPosition(step=0, batches=0, settings={}, untrained={}, history=[])

    def go_on(begin: CodecState | None) -> tuple[dict, list, list]:
        losses: list[tuple[int, dict]] = []
        states: list[CodecState] = []
        model = train_codec(
            settings, audio, lambda step, each, model: losses.append((step, each)), begin, states.append
        )
        return model.state_dict(), losses, states

    weights, losses, states = go_on(None)
    assert [state.step for state in states] == [1, 2, 3, 4, 5, 6]
    for state in states:
        at = position.model_copy(update={"step": state.step, "batches": state.batches})
        publish_state(str(tmp_path / "state"), state.tensors, at)
        torch.manual_seed(state.step + 77)  # whatever was drawn in between
        again, rest, later = go_on(read_state(str(tmp_path / "state"), read_position(str(tmp_path / "state"))))
        assert rest == losses[state.step :]
        assert again.keys() == weights.keys() and all(torch.equal(again[name], weights[name]) for name in weights)
        for before, after in zip(states[state.step :], later, strict=True):
            assert all(torch.equal(before.tensors[name], after.tensors[name]) for name in before.tensors)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("sizes.filters=3", "was begun with sizes.filters 2, now it is 3"),
        ("steps=7", "was begun with steps 6, now it is 7"),
        ("manifest", "was begun with manifest_sha256 "),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(manifest, trained, tmp_path, capsys, change, words):
    out = tmp_path / "out"
    (tmp_path / ".partial-out").write_text(
        ""
    )  # in the way of the folder, so that the training is done and its codec is not
    assert run(job.main, command(manifest, out), "") == 1
    before = contents(tmp_path / "out.training")
    if change == "manifest":
        manifest = shutil.copytree(manifest, tmp_path / "manifest")
        (first, *rest), text = (
            (manifest / "manifest.jsonl").read_text().splitlines(keepends=True),
            manifest / "manifest.yaml",
        )
        digests = [hashlib.sha256("".join(lines).encode()).hexdigest() for lines in ([first, *rest], rest)]
        (manifest / "manifest.jsonl").write_text("".join(rest))
        text.write_text(text.read_text().replace(*digests))
    capsys.readouterr()
    assert run(job.main, command(manifest, out, *([] if change == "manifest" else [change])), "") == 1
    assert words in capsys.readouterr().err
    assert contents(tmp_path / "out.training") == before

    (tmp_path / ".partial-out").unlink()
    if change != "manifest":
        assert run(job.main, command(manifest, out), "") == 0
        assert contents(out) == contents(trained)


def test_a_checkpoint_with_a_flipped_bit_is_refused(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    position = TrainingPosition(step=3, batches=4, settings={}, untrained={}, history=[])
    publish_state(str(path), {"model.weight": torch.arange(100.0), "random_state": torch.get_rng_state()}, position)
    assert torch.equal(read_state(str(path), position).tensors["model.weight"], torch.arange(100.0))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert read_position(str(path)) == position
    with pytest.raises(ValueError, match=f"{path}: its tensors have the SHA-256 "):
        read_state(str(path), position)


def test_a_checkpoint_that_is_none_and_files_of_others_are_named(manifest, tmp_path, capsys):
    folder = tmp_path / "out.training"
    folder.mkdir()
    (folder / "checkpoint.safetensors").write_bytes(b"cut off")
    assert run(job.main, command(manifest, tmp_path / "out"), "") == 1
    assert f"{folder}/checkpoint.safetensors: not a checkpoint of mert codec" in capsys.readouterr().err
    save_file({"weight": torch.zeros(3)}, folder / "checkpoint.safetensors")
    assert run(job.main, command(manifest, tmp_path / "out"), "") == 1
    assert "its metadata has no codec_training" in capsys.readouterr().err
    (folder / "diary.txt").write_text("mine")
    assert run(job.main, command(manifest, tmp_path / "out"), "") == 2
    assert f"{folder} has diary.txt, which is not of mert codec" in capsys.readouterr().err


@pytest.mark.process
def test_audio_that_is_not_the_manifests_ends_before_training(manifest, tmp_path, capsys):
    root = shutil.copytree(load_manifest(str(manifest)).root, tmp_path / "corpus")
    moved = shutil.copytree(manifest, tmp_path / "manifest")
    text = moved / "manifest.yaml"
    text.write_text(text.read_text().replace(load_manifest(str(manifest)).root, str(root)))
    track = load_manifest(str(moved)).tracks[0]
    write_audio(root / track.path, tone(700, 11))
    assert run(job.main, command(moved, tmp_path / "out"), "") == 1
    assert f"error: {track.path}: changed: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.process
def test_an_existing_folder_is_refused_at_once(manifest, tmp_path, run_here):
    (tmp_path / "mine").write_text("precious")
    code, _, error = run_here(job, *command(manifest, tmp_path))
    assert code == 1
    assert error == f"error: {tmp_path} exists and is not empty; train into a new folder\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ("crop_seconds=12", 1, "training tracks is as long as a crop of 12.0 s"),
        ("autoencoder_steps=6", 2, "autoencoder_steps 6 is not below steps 6"),
        ("sizes.codebock_size=16", 2, "unknown key 'sizes.codebock_size'; the nearest known key is 'codebook_size'"),
    ],
)
def test_what_cannot_train_ends_before_training(manifest, tmp_path, capsys, change, code, words):
    assert run(job.main, command(manifest, tmp_path / "out", change), job.__doc__) == code
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_no_held_out_music_ends_before_training(tmp_path, capsys):
    for name, splits, seconds in (("none", {}, 11), ("short", {"valid": 0.4}, 5)):
        for number in range(6):
            write_audio(tmp_path / name / f"track{number}.flac", tone(300 + 100 * number, seconds))
        out = tmp_path / f"{name}-manifest"
        make_manifest(tmp_path / name, out, splits=splits, group_by="track")
        assert run(job.main, command(out, tmp_path / "out"), job.__doc__) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("decode ")]
    assert "no track in split 'valid'" in lines[0]
    assert lines[1].endswith("held-out tracks has 10 s with sound to evaluate on") and len(lines) == 2


# ---- the parts


@pytest.mark.slow
def test_a_few_dozen_steps_lower_the_losses():
    seen = []
    settings = config(steps=90, autoencoder_steps=50, learning_rate=5e-3, sizes=SIZES | {"filters": 4}, warmup_steps=10)
    train_codec(settings, tones(4, 3), lambda step, losses, model: seen.append(losses))
    assert len(seen) == 90 and all(losses["commitment"] == 0 for losses in seen[:50])
    assert all(losses["commitment"] > 0 for losses in seen[50:])

    def mean(name: str, steps: slice) -> float:
        return float(np.mean([losses[name] for losses in seen[steps]]))

    for name in ("waveform", "mel"):
        assert mean(name, slice(40, 50)) < 0.8 * mean(name, slice(0, 5))
        assert mean(name, slice(80, 90)) < 0.8 * mean(name, slice(0, 5))  # also through the codebooks


def test_training_is_a_function_of_its_seed():
    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(len(built))
        built.append(train_codec(config(seed=seed), tones(3, 2), lambda *record: None).state_dict())
        return built[-1]

    built: list[dict[str, torch.Tensor]] = []
    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    assert not all(torch.equal(weight, other[name]) for name, weight in first.items())


def codebook_with_a_dead_entry() -> tuple[EuclideanCodebook, torch.Tensor, int]:
    """A codebook of eight entries in training, the vectors it sees, and the one entry no vector is near to."""
    torch.manual_seed(0)
    codebook = EuclideanCodebook(4, 8, threshold_ema_dead_code=0).train()
    centres = 5 * torch.randn(8, 4)
    vectors = (centres[:7, None] + 0.1 * torch.randn(7, 20, 4)).reshape(-1, 4)
    centres[7] = 1_000.0
    codebook.embed.copy_(centres)
    codebook.cluster_size.copy_(torch.tensor([20.0] * 7 + [0.01]))
    codebook.embed_avg.copy_(centres * codebook.cluster_size[:, None])
    codebook(vectors)
    assert not (codebook.quantize(vectors) == 7).any()
    return codebook, vectors, 7


def test_a_dead_entry_is_revived_and_survives_the_next_step():
    codebook, vectors, dead = codebook_with_a_dead_entry()
    before = codebook.embed.clone()
    revive_dead_codes(codebook, vectors, share=0.1)
    revived = codebook.embed[dead].clone()
    assert (vectors == revived).all(1).any()
    assert torch.equal(codebook.embed[:dead], before[:dead])

    codebook(vectors)
    assert (codebook.embed[dead] - revived).norm() < 0.1  # the average goes on from the vector, not from 1000
    assert (codebook.quantize(vectors) == dead).any()
    for _ in range(50):
        codebook(vectors)
        revive_dead_codes(codebook, vectors, share=0.01)
    assert (codebook.quantize(vectors) == dead).any() and (codebook.embed[dead] - revived).norm() < 1


def test_entries_in_use_are_left_alone():
    codebook, vectors, dead = codebook_with_a_dead_entry()
    before = {name: buffer.clone() for name, buffer in codebook.named_buffers()}
    revive_dead_codes(codebook, vectors, share=0.0)
    assert all(torch.equal(buffer, before[name]) for name, buffer in codebook.named_buffers())


def test_codebooks_start_where_the_latents_are_and_each_level_leaves_less():
    settings = config()
    model = untrained(codebooks=4)
    audio = [to_int16(noise(3, seed=number)) for number in range(3)]
    data_dependent_init(model, next(Crops(audio, settings)))
    start_codebooks(model, Crops(audio, settings), settings)
    with torch.no_grad():
        latents = [model.encoder(batch) for batch, _ in zip(Crops(audio, settings), range(8))]
    residual = torch.cat([latent.transpose(1, 2).reshape(-1, 8) for latent in latents])
    errors = [residual.pow(2).mean()]
    for level in model.quantizer.vq.layers:
        codebook = level._codebook
        assert codebook.inited and codebook.embed.isfinite().all()
        used = codebook.cluster_size > 0
        averages = codebook.embed_avg[used] / codebook.cluster_size[used, None]
        assert torch.allclose(averages, codebook.embed[used], atol=1e-5)  # so the next step goes on from the centres
        residual = residual - codebook.embed[codebook.quantize(residual)]
        errors.append(residual.pow(2).mean())
    assert errors[1] < 0.6 * errors[0]
    assert all(after < 0.95 * before for before, after in zip(errors, errors[1:]))


def test_even_activations_have_unit_deviation():
    torch.manual_seed(0)
    audio = torch.from_numpy(np.stack([tone(300, 1), noise(1)]))[:, None]
    deviations = {}
    for name in ("as torch starts them", "evened out"):
        model = untrained(filters=4)
        if name == "evened out":
            data_dependent_init(model, audio)
        seen = []
        for module in model.modules():
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                module.register_forward_hook(
                    lambda module, arguments, output, seen=seen: seen.append(float(output.std()))
                )
        with torch.no_grad():
            model.decoder(model.encoder(audio))
        deviations[name] = seen
    *inner, last = deviations["evened out"]
    assert inner == pytest.approx([1.0] * len(inner), abs=1e-3)
    assert last == pytest.approx(float(audio.std()), rel=1e-3)
    assert min(deviations["as torch starts them"]) < 0.1


@pytest.mark.parametrize("level", [0.01, 0.3, 3.0])
def test_si_sdr_is_that_of_the_correlation(level):
    """With r the correlation of both signals, it is r^2 / (1 - r^2), whatever their scales and means."""
    generator = np.random.default_rng(0)
    reference = generator.standard_normal(5_000)
    estimate = 0.2 * reference + level * generator.standard_normal(5_000) + 0.7
    r = np.corrcoef(reference, estimate)[0, 1]
    expected = 10 * math.log10(r**2 / (1 - r**2))
    assert si_sdr(torch.from_numpy(reference), torch.from_numpy(estimate)).item() == pytest.approx(expected, abs=1e-4)


def test_judgement_equals_a_naive_one(tiny_codec):
    model = load_codec(str(tiny_codec))
    music = to_int16(0.3 * tone(330, 21) + noise(21, seed=5))
    silent, short = np.zeros(10 * RATE, np.int16), to_int16(tone(500, 9.9))
    figures = evaluate_codec(model.train(), [music, silent, short])
    assert model.training  # left as it was found
    model.eval()

    ratios, codes = [], []
    for piece in (music[: 10 * RATE], music[10 * RATE : 20 * RATE], silent):
        audio = torch.from_numpy(piece.astype(np.float32) / 32_768)[None, None]
        with torch.no_grad():
            piece_codes = model.quantizer.encode(model.encoder(audio), model.frame_rate)
            decoded = model.decoder(model.quantizer.decode(piece_codes))
        codes.append(piece_codes[:, 0].numpy())
        if piece.any():
            r = np.corrcoef(audio.flatten(), decoded.flatten()[: 10 * RATE])[0, 1]
            ratios.append(10 * math.log10(r**2 / (1 - r**2)))
    assert figures["seconds"] == 20 and figures["si_sdr"] == pytest.approx(np.mean(ratios), abs=0.01)
    for level, values in enumerate(np.concatenate(codes, axis=1)):
        shares = [float(np.mean(values == code)) for code in set(values.tolist())]
        perplexity = math.prod(share**-share for share in shares)
        assert figures["usage"][level] == len(shares)
        assert figures["perplexity"][level] == pytest.approx(perplexity, abs=0.06)
    assert figures["log_mel_distance"] > 0


def test_a_perfect_codec_has_no_distance(tiny_codec, monkeypatch):
    model = load_codec(str(tiny_codec))
    music = to_int16(tone(330, 10))
    perfect = torch.from_numpy(music.astype(np.float32) / 32_768)[None, None]
    monkeypatch.setattr(model.decoder, "forward", lambda latent: perfect)
    figures = evaluate_codec(model, [music])
    assert figures["log_mel_distance"] == 0 and figures["si_sdr"] > 100


# ---- the codec that ships


@pytest.mark.skipif(
    not (SHIPPED / "codec.safetensors").exists(),
    reason="no codec lies in pipeline/teachers/codec/shipped/foundry-small yet",
)
def test_the_shipped_codec_reconstructs_music():
    assert (SHIPPED / "codec.safetensors").stat().st_size <= 8_000_000
    model = load_codec("foundry-small")
    assert (model.quantizer.n_q, model.quantizer.bins, model.frame_rate, model.sample_rate) == (8, 1024, 75, RATE)
    for clip in ("asc-music/frontiers.mp3", "hyperrogue-music/caribbean.ogg", "singularity-music/media-threat.mp3"):
        figures = evaluate_codec(model, [decoded(MUSIC / clip)])
        assert figures["si_sdr"] > 3, clip
        # Ten seconds have 750 frames, so a level can use at most so many entries.
        assert min(figures["perplexity"]) > 50, (clip, figures)
