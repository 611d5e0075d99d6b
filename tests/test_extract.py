"""`mert extract`: features as transformers gives them, whatever the batch, the parts, the source of the audio, or
kills.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
import transformers
import zarr
from audio_files import mert_environment, noise, started_by_fork, tone, wait_until, write_audio
from folders import make_manifest, visible
from pretrain_run import finish, pretrain_here
from shard_fixtures import index_shards, make_track, write_examples, write_set
from tiny_model import tiny_encoder
from torchaudio.functional import resample

from mert_foundry.jobs import export, extract
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.extraction.run import hold
from mert_foundry.model.encoder import MertEncoder
from mert_foundry.model.interop.export import export_model
from mert_foundry.model.interop.stored_model import StoredModel
from mert_foundry.pipeline.frames import AUDIO_VERSION
from mert_foundry.pipeline.manifest.decode_track import decode_track
from mert_foundry.pipeline.manifest.rows import load_manifest
from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.shards.record import load_record

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*not part in the Zarr format 3 specification.*:UserWarning", "ignore::DeprecationWarning"
)

HOP, REACH = 320, 400
WINDOW, OVERLAP = 75, 20  # frames, of the settings below
SETTINGS = [
    "windows.seconds=1.0",
    "windows.overlap_seconds=0.2667",
    "storage.chunk_seconds=0.4",
    "storage.part_seconds=2.0",
    "batch_seconds=8",
    "dtype=float32",
]
MANIFEST = {"group_by": "track", "splits": {"valid": 0.3}, "min_seconds": 0.1}
SECONDS = {"a.wav": 0.7, "b.wav": 2.93, "c.flac": 0.7, "d.wav": 1.4, "e.wav": 5.21, "sub/f.wav": 0.7, "sub/g.wav": 1.02}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tracks shorter and longer than a window, three of the same length, and a text; read only."""
    root = tmp_path_factory.mktemp("corpus")
    for number, (name, seconds) in enumerate(SECONDS.items()):
        write_audio(root / name, tone(220 * (number + 1), seconds) + noise(seconds, seed=number))
    (root / "notes.txt").write_text("no audio here")
    return root


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    return make_manifest(corpus, tmp_path_factory.mktemp("manifest"), **MANIFEST)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, corpus: Path, manifest: Path) -> Path:
    """The same tracks in two shards, in segments of 50 frames or less."""
    folder = tmp_path_factory.mktemp("shards")
    tracks = load_manifest(str(manifest)).tracks
    for number in (0, 1):
        examples = []
        for track in tracks[number::2]:
            with decode_track(track, str(corpus)) as audio:
                lengths = [min(50, audio.num_frames - start) for start in range(0, audio.num_frames, 50)]
                for example in make_track(track.key, *lengths):
                    samples = audio.read(example.info.start_sample, example.info.num_samples)
                    examples.append(replace(example, audio=samples))
        write_examples(folder, f"train-{number:06d}", examples)
    index_shards(folder, ["train-000000", "train-000001"])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "export")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: Path, shards: Path) -> Path:
    """The store that one process makes of the shards in one go; read only."""
    out = tmp_path_factory.mktemp("whole") / "features.zarr"
    assert extract_here(model, shards, out) == 0
    return out


def save_model(
    folder: Path, norm: str = "post", seed: int = 0, sample_rate: int = 24_000, normalised: bool = False
) -> Path:
    config = tiny_encoder(norm=norm)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = MertEncoder(config)
        for parameter in encoder.parameters():  # no weight as it was made, so that none could be left out
            parameter.data += 0.05 * torch.randn_like(parameter)
    assert export_model(folder, StoredModel(config, encoder.state_dict(), sample_rate, normalised=normalised), {}) == []
    return folder


def arguments(model: Path, source: Path, out: object, *more: str) -> list[str]:
    return [f"model={model}", f"input={source}", f"out={out}", *SETTINGS, *more]


def extract_here(model: Path, source: Path, out: object, *more: str, ranks: str = "1") -> int:
    """The command in this process, as torchrun's only rank; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", "0")
        patch.setenv("WORLD_SIZE", ranks)
        return run(extract.main, arguments(model, source, out, *more), extract.__doc__, extract.CONFIG)


def load(out: Path) -> dict[str, np.ndarray]:
    """Features `[frames, layers, dim]` by key."""
    store = zarr.open_group(out, mode="r")
    rows = zip(store["key"][:], store["offset"][:], store["length"][:])
    features = store["features"][:]
    assert len(features) == sum(store["length"][:])
    return {key: features[offset : offset + length] for key, offset, length in rows}


def audio_of(corpus: Path, manifest: Path) -> dict[str, torch.Tensor]:
    """float32 `[1, T]` of every track as the shards hold it, by key."""
    found = {}
    for track in load_manifest(str(manifest)).tracks:
        with decode_track(track, str(corpus)) as audio:
            found[track.key] = torch.from_numpy(audio.read(0, audio.num_frames * HOP) / np.float32(32768))[None]
    return found


def hidden_states(folder: Path, audio: torch.Tensor) -> np.ndarray:
    """What transformers gives for one row: `[frames, layers, dim]`."""
    hubert = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return torch.stack(hubert(audio, output_hidden_states=True).hidden_states, dim=2)[0].numpy()


def windowed(folder: Path, audio: torch.Tensor) -> np.ndarray:
    """As `hidden_states`, window by window, each frame from the window that the store's attributes name."""
    frames = (audio.shape[1] - REACH) // HOP + 1
    if frames <= WINDOW:
        return hidden_states(folder, audio)
    starts = [start for start in range(0, frames, WINDOW - OVERLAP) if start < frames - WINDOW] + [frames - WINDOW]
    states = [hidden_states(folder, audio[:, start * HOP : (start + WINDOW - 1) * HOP + REACH]) for start in starts]
    found = []
    for frame in range(frames):
        window = sum(frame >= (start + WINDOW + following) // 2 for start, following in zip(starts, starts[1:]))
        found.append(states[window][frame - starts[window]])
    return np.stack(found)


def test_features_are_those_of_transformers_with_the_seams_that_are_stated(corpus, manifest, model, whole):
    found = load(whole)
    expected = {key: windowed(model, audio) for key, audio in audio_of(corpus, manifest).items()}
    assert sorted(expected) == list(found) and len(found) == len(SECONDS)
    for key, states in expected.items():
        np.testing.assert_allclose(found[key], states, atol=2e-5, rtol=1e-5, err_msg=key)


def test_table_and_attributes_tell_what_is_there(corpus, manifest, whole):
    store = zarr.open_group(whole, mode="r")
    lengths = {key: audio.shape[1] for key, audio in audio_of(corpus, manifest).items()}
    assert store["seconds"][:].tolist() == [samples / 24_000 for samples in lengths.values()]
    assert store["length"][:].tolist() == [(samples - REACH) // HOP + 1 for samples in lengths.values()]
    assert set(store["split"][:]) == {"train"} and set(store["dropped"][:]) == {""}
    attributes = dict(store.attrs)
    assert (attributes["frame_rate"], attributes["hop"], attributes["samples_of_a_frame"]) == (75.0, HOP, REACH)
    assert attributes["settings"]["window_frames"] == WINDOW and attributes["settings"]["overlap_frames"] == OVERLAP
    assert attributes["settings"]["precision"] == "fp32" and len(attributes["model"]["fingerprint"]) == 64


@pytest.mark.parametrize(
    "change",
    [
        "batch_seconds=0.01",
        "batch_seconds=2.2",
        "storage.part_seconds=60",
        "storage.part_seconds=0.001",
        "decode_threads=1",
    ],
)
def test_neither_batch_nor_part_changes_a_track(model, shards, whole, tmp_path, change):
    assert extract_here(model, shards, tmp_path / "out", change) == 0
    found, expected = load(tmp_path / "out"), load(whole)
    for key in expected:
        np.testing.assert_allclose(found[key], expected[key], atol=1e-5, rtol=1e-5)


@pytest.mark.process
def test_a_track_alone_has_the_same_features_to_the_bit(model, corpus, tmp_path):
    """Windows go through the encoder one by one here, so that not even the rounding differs."""
    (tmp_path / "alone").mkdir()
    shutil.copy(corpus / "c.flac", tmp_path / "alone" / "c.flac")
    assert extract_here(model, corpus, tmp_path / "all.zarr", "batch_seconds=0.01", "storage.part_seconds=60") == 0
    assert (
        extract_here(model, tmp_path / "alone", tmp_path / "one.zarr", "batch_seconds=0.01", "storage.part_seconds=60")
        == 0
    )
    ((key, found),) = load(tmp_path / "one.zarr").items()
    np.testing.assert_array_equal(found, load(tmp_path / "all.zarr")[key])


@pytest.mark.process
def test_shards_manifest_and_folder_give_the_same_features(model, corpus, manifest, whole, tmp_path, capsys):
    for source in (manifest, corpus):
        assert extract_here(model, source, tmp_path / f"{source.name}.zarr") == 0
        found, expected = load(tmp_path / f"{source.name}.zarr"), load(whole)
        assert list(found) == list(expected)
        for key in expected:
            np.testing.assert_array_equal(found[key], expected[key])
    assert "rejected: notes.txt: not_audio" in capsys.readouterr().err
    store = zarr.open_group(tmp_path / f"{corpus.name}.zarr", mode="r")
    assert list(store.attrs["input"]["rejected"]) == ["notes.txt"] and set(store["split"][:]) == {""}
    # Samples that are made here, and not read from shards, are those of one version.
    assert store.attrs["settings"]["audio_version"] == AUDIO_VERSION
    assert "audio_version" not in zarr.open_group(whole, mode="r").attrs["settings"]
    table = zarr.open_group(tmp_path / f"{manifest.name}.zarr", mode="r")
    tracks = {track.key: track for track in load_manifest(str(manifest)).tracks}
    for key, split, group in zip(table["key"][:], table["split"][:], table["group"][:]):
        assert (split, group) == (tracks[key].split, tracks[key].group)


def test_chosen_layers_and_half_precision(model, shards, whole, tmp_path):
    assert extract_here(model, shards, tmp_path / "out", "layers=[1]", "dtype=float16") == 0
    store = zarr.open_group(tmp_path / "out", mode="r")
    assert store["features"].dtype == np.float16 and store["layer"][:].tolist() == [1]
    expected = zarr.open_group(whole, mode="r")["features"][:, 1]
    np.testing.assert_allclose(store["features"][:, 0], expected, atol=2e-3)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_pooled_features_are_mean_and_deviation_over_frames(shards, tmp_path, norm):
    import xarray

    model = save_model(tmp_path / "model", norm)
    assert extract_here(model, shards, tmp_path / "frames.zarr") == 0
    assert extract_here(model, shards, tmp_path / "pooled.zarr", "pooling=mean_std", "storage.part_tracks=3") == 0
    assert extract_here(model, shards, tmp_path / "mean.zarr", "pooling=mean", "storage.part_tracks=2") == 0
    pooled = xarray.open_zarr(tmp_path / "pooled.zarr")
    assert pooled["mean"].dims == ("track", "layer", "dim") and pooled["mean"].shape == (len(SECONDS), 3, 16)
    frames = load(tmp_path / "frames.zarr")
    assert pooled.key.values.tolist() == list(frames)
    np.testing.assert_allclose(pooled["mean"], [states.mean(0) for states in frames.values()], atol=1e-5)
    np.testing.assert_allclose(pooled["std"], [states.std(0) for states in frames.values()], atol=1e-5)
    mean = zarr.open_group(tmp_path / "mean.zarr", mode="r")
    assert "std" not in mean
    np.testing.assert_allclose(mean["mean"][:], pooled["mean"], atol=1e-5)


def test_a_model_of_another_rate_and_scale_gets_what_it_was_trained_on(corpus, manifest, shards, tmp_path):
    model = save_model(tmp_path / "model", sample_rate=16_000, normalised=True)
    for source in (shards, manifest):
        assert extract_here(model, source, tmp_path / f"{source.name}.zarr", "windows.seconds=30") == 0
    found, again = load(tmp_path / f"{shards.name}.zarr"), load(tmp_path / f"{manifest.name}.zarr")
    attributes = zarr.open_group(tmp_path / f"{shards.name}.zarr", mode="r").attrs
    assert attributes["frame_rate"] == 50.0 and attributes["settings"]["audio_version"] == AUDIO_VERSION
    extractor = transformers.AutoFeatureExtractor.from_pretrained(model)
    for key, audio in audio_of(corpus, manifest).items():
        audio = resample(audio, 24_000, 16_000)
        audio = audio[:, : audio.shape[1] // HOP * HOP]
        inputs = extractor(audio[0].numpy(), sampling_rate=16_000, return_tensors="pt")
        expected = hidden_states(model, inputs.input_values)
        np.testing.assert_allclose(found[key], expected, atol=2e-3)  # audio is rounded to 16 bits on the way
        np.testing.assert_array_equal(found[key], again[key])


def test_a_checkpoint_and_its_export_are_the_same_model(shards, tmp_path):
    write_set(tmp_path / "trained_on", [4], valid_sizes=[2])
    assert pretrain_here(tmp_path / "trained_on", tmp_path / "run", "trainer.schedule.total_steps=5") == 0
    assert run(export.main, [str(tmp_path / "run"), str(tmp_path / "export")], "") == 0
    for source in ("run", "export", "run/checkpoints/step_5"):
        assert extract_here(tmp_path / source, shards, tmp_path / "features.zarr") == 0
    assert extract_here(tmp_path / "export", shards, tmp_path / "other.zarr") == 0
    assert visible(tmp_path / "other.zarr") == visible(tmp_path / "features.zarr")


def test_a_rerun_does_nothing_and_a_lost_or_torn_part_is_done_again(model, shards, whole, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    parts = sorted((out / "features" / "c").iterdir())
    assert len(parts) >= 4
    times = {path: path.stat().st_mtime_ns for path in out.rglob("[!.]*") if path.is_file()}
    assert extract_here(model, shards, out) == 0
    assert "0 to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in times} == times

    shutil.rmtree(parts[0])
    os.truncate(next(path for path in parts[1].rglob("*") if path.is_file()), 100)
    (out / "parts" / "000002.json").unlink()
    (out / "parts" / "000003.json").write_text("torn")
    (parts[3] / ".0.1234.tmp").write_text("of a killed writer")
    assert extract_here(model, shards, out) == 0
    assert "4 to do" in capsys.readouterr().out
    assert visible(out) == visible(whole) and not list(out.rglob(".*.tmp"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_rank_without_the_gpu_it_is_to_use_makes_no_store(model, shards, tmp_path, capsys):
    assert extract_here(model, shards, tmp_path / "out", "device=cuda") == 1
    assert capsys.readouterr().err == "error: device cuda: torch finds no CUDA device on this machine\n"
    assert not (tmp_path / "out").exists()


def test_a_store_of_something_else_is_refused_until_told(model, shards, manifest, whole, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    other = save_model(tmp_path / "other", seed=1)
    for source, arguments, words in [
        ((other, shards), [], ["model.fingerprint"]),
        ((model, manifest), [], ["input.kind 'shards'", "'manifest'"]),
        ((model, shards), ["dtype=float16"], ["settings.dtype 'float32'", "'float16'"]),
        ((model, shards), ["windows.overlap_seconds=0.2"], ["settings.overlap_frames 20", "15"]),
        ((model, shards), ["layers=[0,2]"], ["settings.layers [0, 1, 2]", "[0, 2]"]),
    ]:
        assert extract_here(*source, out, *arguments) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert all(word in line for word in [*words, str(out), "overwrite=true"]), line
        assert visible(out) == visible(whole)
    assert extract_here(other, shards, out, "overwrite=true", "storage.part_seconds=60") == 0
    assert extract_here(other, shards, tmp_path / "fresh", "storage.part_seconds=60") == 0
    assert visible(out) == visible(tmp_path / "fresh")


def test_other_audio_of_the_same_length_in_the_shards_is_another_input(model, shards, whole, tmp_path, capsys):
    out, changed = tmp_path / "out", tmp_path / "shards"
    shutil.copytree(whole, out)
    index = load_index(str(shards))
    for entry in index.shardlist:
        record = load_record(str(shards), entry.name)
        lengths = {}
        for member in record.members:
            lengths.setdefault(member.track, []).append(member.num_frames)
        examples = [example for key, frames in lengths.items() for example in make_track(key, *frames)]
        write_examples(changed, entry.name, examples)
    index_shards(changed, [entry.name for entry in index.shardlist])
    assert extract_here(model, changed, out) == 1
    assert "input.tracks_sha256" in capsys.readouterr().err and visible(out) == visible(whole)


@pytest.mark.process
def test_tracks_without_a_frame_are_named(model, tmp_path, capsys):
    write_audio(tmp_path / "audio" / "short.wav", noise(0.01, seed=0))
    write_audio(tmp_path / "audio" / "long.wav", noise(1, seed=1))
    assert extract_here(model, tmp_path / "audio", tmp_path / "out") == 0
    assert "too short for a frame" in capsys.readouterr().err
    assert [key.split("-")[0] for key in load(tmp_path / "out")] == ["long"]


def test_a_changed_track_is_nan_with_its_reason_and_a_missing_one_fails_its_parts(
    corpus, model, whole, tmp_path, capsys
):
    import xarray

    root, out = tmp_path / "corpus", tmp_path / "out"
    shutil.copytree(corpus, root)
    manifest = make_manifest(root, tmp_path / "manifest", **MANIFEST)
    write_audio(root / "b.wav", noise(2.93, seed=77))
    (root / "e.wav").rename(tmp_path / "aside")
    keys = {track.path: track.key for track in load_manifest(str(manifest)).tracks}
    assert extract_here(model, manifest, out) == 1
    messages = capsys.readouterr().err
    assert "e.wav" in messages and "parts are missing" in messages and "Traceback" not in messages
    assert list(zarr.open_group(out, mode="r").array_keys()) == []

    (tmp_path / "aside").rename(root / "e.wav")
    assert extract_here(model, manifest, out) == 0
    assert f"dropped: {keys['b.wav']}: changed" in capsys.readouterr().err
    found, expected = load(out), load(whole)
    assert np.isnan(found[keys["b.wav"]]).all()
    for key in set(keys.values()) - {keys["b.wav"]}:
        np.testing.assert_allclose(found[key], expected[key], atol=1e-5)
    store = zarr.open_group(out, mode="r")
    assert {key for key, reason in zip(store["key"][:], store["dropped"][:]) if reason.startswith("changed: ")} == {
        keys["b.wav"]
    }
    assert store.attrs["dropped"] == {"changed": 1}
    assert extract_here(model, manifest, tmp_path / "pooled", "pooling=mean") == 0
    pooled = xarray.open_zarr(tmp_path / "pooled")
    assert np.isnan(pooled["mean"]).all(["layer", "dim"]).values.tolist() == (pooled.dropped != "").values.tolist()


def test_a_remote_store_has_the_same_bytes(model, shards, whole):
    assert extract_here(model, shards, "memory://extract-test/features.zarr") == 0
    memory = fsspec.filesystem("memory")
    prefix = "/extract-test/features.zarr/"
    assert {path.removeprefix(prefix): memory.cat(path) for path in memory.find(prefix)} == visible(whole)


@pytest.mark.s3
@pytest.mark.slow
def test_shards_and_store_on_s3(bucket, model, shards, whole):
    import s3fs

    s3 = s3fs.S3FileSystem()
    s3.put(str(shards) + "/", f"{bucket}/shards/", recursive=True)
    assert extract_here(model, f"{bucket}/shards", f"{bucket}/features.zarr") == 0
    found = {path.split("features.zarr/")[1]: s3.cat_file(path) for path in s3.find(f"{bucket}/features.zarr")}
    assert found == visible(whole)
    remote = zarr.open_group(f"{bucket}/features.zarr", mode="r")
    np.testing.assert_array_equal(remote["features"][:, 1], zarr.open_group(whole, mode="r")["features"][:, 1])


def test_mistakes_end_in_one_line(model, shards, corpus, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    for source, more, code, words in [
        ((model, shards), ["layers=[3]"], 1, ["layers [3]", "0 to 2", str(model)]),
        ((model, shards), ["layers=[]"], 1, ["layers []"]),
        ((corpus, shards), [], 1, [str(corpus)]),
        ((model, tmp_path / "nowhere"), [], 1, [str(tmp_path / "nowhere"), "no such folder"]),
        ((model, tmp_path / "empty"), [], 1, ["no track with a frame"]),
        ((model, shards), ["window.seconds=3"], 2, ["'window'", "'windows'"]),
        ((model, shards), ["windows.overlap_seconds=3"], 2, ["overlap_seconds 3.0 must be less than seconds 1.0"]),
        ((model, shards), ["pooling=max"], 2, ["pooling", "mean_std"]),
    ]:
        assert extract_here(*source, out, *more) == code
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("scan:")]
        assert len(lines) == 1 and all(word in lines[0] for word in words), lines
    assert not out.exists()


def test_another_place_is_refused_before_any_work_and_left_as_it_was(model, shards, tmp_path, capsys):
    foreign = tmp_path / "foreign"
    (foreign / "below").mkdir(parents=True)
    (foreign / "below" / "thesis.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for out, code, words in [
        (foreign, 1, "a folder with below in it and no zarr.json, not a feature store"),
        (foreign / "below" / "thesis.txt", 2, "thesis.txt: Not a directory"),
        (foreign / "below" / "thesis.txt" / "deep" / "features.zarr", 2, "thesis.txt: Not a directory"),
        ("/proc/features.zarr", 2, "nothing can be written in /proc"),
        ("", 2, "out: String should have at least 1 character"),
    ]:
        # Neither the model nor the input is there: what is told first is the place.
        assert extract_here(tmp_path / "no-model", tmp_path / "no-input", out) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line and str(out) in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_store_in_the_folder_of_audio_is_refused(model, corpus, tmp_path, capsys):
    (tmp_path / "way").mkdir()
    for out in (corpus / "sub" / "features.zarr", tmp_path / "way" / ".." / ".." / corpus.name / "f.zarr"):
        assert extract_here(model, corpus, out) == 1
        assert f"out {out} lies in input {corpus}" in capsys.readouterr().err and not out.exists()


@pytest.mark.process
def test_file_names_that_are_no_utf_8_or_would_steer_a_terminal(model, tmp_path, capsys):
    audio = tmp_path / "audio"
    write_audio(audio / "a.wav", noise(0.5, seed=0))
    (audio / "a.wav").rename(os.fsdecode(os.fsencode(audio) + b"/\xfcber\n.wav"))
    (audio / "red\x1b[31m\n.txt").write_text("no audio here")
    assert extract_here(model, audio, tmp_path / "out") == 0
    assert r"rejected: red\x1b[31m\n.txt: not_audio" in capsys.readouterr().err.splitlines()[1]
    assert zarr.open_group(tmp_path / "out", mode="r")["group"][:].tolist() == ["\\xfcber\n.wav"]


@pytest.mark.process
def test_the_scan_of_a_folder_tells_all_of_it_on_a_terminal_too(model, corpus, tmp_path, capsys, monkeypatch):
    assert extract_here(model, corpus, tmp_path / "plain.zarr") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("scan:")]
    assert f"scan: {sum(SECONDS.values()) / 3600:.3f} h" in line
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert extract_here(model, corpus, tmp_path / "bar.zarr") == 0
    assert "1 rejected" in capsys.readouterr().err


@pytest.mark.process
def test_values_beyond_float16_are_an_error(corpus, tmp_path, capsys):
    config = tiny_encoder(norm="pre")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = MertEncoder(config).state_dict()
    weights["projection.linear.bias"] = torch.full_like(weights["projection.linear.bias"], 1e5)
    export_model(tmp_path / "model", StoredModel(config, weights, 24_000), {})
    assert extract_here(tmp_path / "model", corpus, tmp_path / "out", "dtype=float16") == 1
    assert "float16 ends at 65504" in capsys.readouterr().err
    assert extract_here(tmp_path / "model", corpus, tmp_path / "out32") == 0


@pytest.mark.process
def test_shards_need_neither_ray_nor_decoders_of_files(model, shards, tmp_path):
    program = (
        "import sys; from mert_foundry.jobs.extract import main; code = main(sys.argv[1:]);"
        "found = {'ray', 'av', 'torchaudio', 'encodec', 'transformers'} & set(sys.modules); sys.exit(code or (repr(found) if found else 0))"  # noqa: E501
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments(model, shards, tmp_path / "out")],
        env=mert_environment() | {"RANK": "0", "WORLD_SIZE": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.process
@pytest.mark.slow
def test_two_ray_workers_write_the_same_bytes(model, shards, whole, ray_address, tmp_path, capsys):
    settings = arguments(model, shards, tmp_path / "out", "actors=2", f"address={ray_address}")
    assert run(extract.main, settings, extract.__doc__, extract.CONFIG) == 0
    output = capsys.readouterr()
    assert visible(tmp_path / "out") == visible(whole) and "x real time" in output.out + output.err


@pytest.mark.process
@pytest.mark.slow
def test_two_ranks_write_the_same_bytes(model, shards, whole, tmp_path):
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "mert_foundry.jobs.extract",
    ]
    log = tmp_path / "log"
    with open(log, "w") as file:
        process = subprocess.Popen(
            [*torchrun, *arguments(model, shards, tmp_path / "out")],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=mert_environment() | {"GLOO_SOCKET_IFNAME": "lo"},
        )
    code, text = finish(process), log.read_text()
    assert code == 0, text
    assert visible(tmp_path / "out") == visible(whole)
    parts, seconds = int(re.search(r"plan: .* in (\d+) parts", text)[1]), sum(SECONDS.values())
    # The progress is that of one rank, and says so.
    shown = re.search(r"extract, rank 0's (\d+) of (\d+) parts: ([\d.]+) of ([\d.]+) h", text)
    assert text.count("plan:") == 1 and (int(shown[1]), int(shown[2])) == (parts // 2, parts)
    assert shown[3] == shown[4] and float(shown[4]) < 0.7 * seconds / 3600


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_at_any_moment_and_run_again_gives_the_same_bytes(model, shards, whole, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    expected = visible(whole)
    moments: list[Callable[[], bool]] = [
        lambda: (out / "zarr.json").exists(),
        lambda: any(out.glob("features/c/*/*/*/.*.tmp")) or any(out.glob("features/c/*/0/0")),
        lambda: len(list(out.glob("parts/*.json"))) >= 3,
    ]
    for moment in moments:
        with started_by_fork(["extract", *arguments(model, shards, out)], log, RANK="0", WORLD_SIZE="1") as process:
            wait_until(process, moment)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        found = visible(out)
        assert all(expected[name] == content for name, content in found.items() if name != "zarr.json")
        assert json.loads(found["zarr.json"])["attributes"]["complete"] is False
        assert "features/zarr.json" not in found
    assert extract_here(model, shards, out) == 0
    assert visible(out) == expected and not list(out.rglob(".*.tmp"))


def test_one_process_at_a_time(model, shards, tmp_path, capsys):
    with hold(str(tmp_path / "out")):
        assert extract_here(model, shards, tmp_path / "out") == 1
    assert "another process is extracting" in capsys.readouterr().err


def test_the_readme_opens_a_store(whole, tmp_path, monkeypatch):
    readme = (Path(__file__).parent.parent / "pipeline" / "features" / "README.md").read_text()
    blocks = [block.split("```")[0] for block in readme.split("```python\n")[1:]]
    blocks = [block for block in blocks if "features.zarr" in block]
    assert len(blocks) == 2
    names: dict = {}
    for block in blocks:
        assert len(block.strip().splitlines()) <= 6
        exec(block.replace("runs/mine/features.zarr", str(whole)), names)
    found = load(whole)
    np.testing.assert_array_equal(names["second"], list(found.values())[1])
    np.testing.assert_array_equal(names["features"].values, np.concatenate(list(found.values()))[:, 2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("tf32", 2e-2), ("bf16", 0.3)])
def test_a_gpu_gives_the_same_features(model, shards, whole, tmp_path, precision, tolerance):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        assert extract_here(model, shards, tmp_path / "out", "device=cuda", f"precision={precision}") == 0
    found, expected = load(tmp_path / "out"), load(whole)
    for key in expected:
        np.testing.assert_allclose(found[key], expected[key], atol=tolerance)
