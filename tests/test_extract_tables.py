"""`mert extract` of a table: a row a line, labels joined by row or path, files decoded once, scans that are kept."""

import csv
import gzip
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import zarr
from audio_files import noise, tone, write_audio
from folders import visible
from tiny_model import tiny_encoder

from mert_foundry.jobs import extract as command
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.extraction.run import ExtractionError, extract
from mert_foundry.jobs.extraction.settings import ExtractConfig
from mert_foundry.model.encoder import MertEncoder
from mert_foundry.model.interop.export import export_model
from mert_foundry.model.interop.load import load_encoder
from mert_foundry.model.interop.stored_model import StoredModel
from mert_foundry.pipeline.features import file_scan
from mert_foundry.pipeline.manifest.examine import Examined
from mert_foundry.pipeline.manifest.rows import Reject

pytestmark = pytest.mark.filterwarnings("ignore:.*not part in the Zarr format 3 specification.*:UserWarning")
HOP, REACH, RATE = 320, 400, 24_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "export"
    config = tiny_encoder()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = {name: tensor + 0.05 for name, tensor in MertEncoder(config).state_dict().items()}
    export_model(folder, StoredModel(config, weights, RATE), {})
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Files of several lengths at 24 kHz, one of them broken."""
    root = tmp_path / "corpus"
    for number, seconds in enumerate([1.0, 1.7, 2.4]):
        write_audio(root / f"{number}.wav", 0.5 * tone(220 * (number + 1), seconds) + noise(seconds, seed=number))
    (root / "broken.wav").write_bytes(b"RIFF and then nothing of use")
    return root


def write_table(path: Path, rows: Iterable[dict]) -> Path:
    rows = list(rows)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def config(model: Path | str, table: Path, out: Path, **more: object) -> ExtractConfig:
    return ExtractConfig(**{"model": str(model), "input": str(table), "out": str(out), "dtype": "float32", **more})


def states_of(model: Path, path: Path, start: float = 0.0, end: float | None = None) -> np.ndarray:
    """Hidden states `[frames, layers, dim]` of a stretch that is cut out by hand."""
    samples = soundfile.read(path, dtype="int16")[0]
    samples = samples[: len(samples) // HOP * HOP][round(start * RATE) : None if end is None else round(end * RATE)]
    samples = samples[: len(samples) // HOP * HOP] / np.float32(32768)
    encoder, _ = load_encoder(model)
    with torch.no_grad():
        return torch.stack(encoder(torch.from_numpy(samples)[None]).hidden_states, dim=2)[0].numpy()


ROWS = [
    {"path": "2.wav", "start": 1.0, "end": 2.0, "label": "late"},
    {"path": "0.wav", "start": "", "end": "", "label": "whole"},
    {"path": "2.wav", "start": 0.25, "end": 0.9, "label": "early"},
    {"path": "2.wav", "start": 1.0, "end": 2.0, "label": "late, again"},
    {"path": "1.wav", "start": 1.1, "end": "", "label": "to the end"},
]


def expected_rows(model: Path, corpus: Path) -> list[np.ndarray]:
    return [
        states_of(model, corpus / row["path"], float(row["start"] or 0), float(row["end"]) if row["end"] else None)
        for row in ROWS
    ]


def test_rows_are_the_lines_of_the_table_with_their_labels(model, corpus, tmp_path):
    table = write_table(corpus / "clips.csv", ROWS)
    out = extract(config(model, table, tmp_path / "out", pooling="mean_std", storage={"part_tracks": 2}))
    store = zarr.open_group(out, mode="r")
    expected = expected_rows(model, corpus)
    np.testing.assert_allclose(store["mean"][:], [states.mean(0) for states in expected], atol=1e-5)
    np.testing.assert_allclose(store["std"][:], [states.std(0) for states in expected], atol=1e-5)
    assert store["label"][:].tolist() == [row["label"] for row in ROWS]
    assert store["path"][:].tolist() == [row["path"] for row in ROWS]
    assert store["length"][:].tolist() == [len(states) for states in expected]
    assert store["start"][:].tolist() == [float(row["start"] or 0) for row in ROWS]
    np.testing.assert_allclose(store["seconds"][:], [1.0, 1.0, 0.64, 1.0, 0.6 - 0.6 % (1 / 75)], atol=1 / 75)
    assert len(set(store["key"][:])) == len(ROWS) and set(store["dropped"][:]) == {""}
    assert not (Path(out) / "parts" / file_scan.CACHE).exists()  # nothing was decoded beforehand


def test_xarray_reads_the_columns(model, corpus, tmp_path):
    import xarray

    lines = [
        {"path": "0.wav", "class": 3, "tempo": 98.5, "note": "größer\ud800"},
        {"path": "1.wav", "class": 4, "tempo": 120},
    ]
    (corpus / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = extract(config(model, corpus / "clips.jsonl", tmp_path / "out", pooling="mean"))
    features = xarray.open_zarr(out)
    assert {"path", "class", "tempo", "note"} < set(features.coords)
    assert features["class"].values.tolist() == [3, 4] and features.note.values.tolist() == ["größer\\ud800", ""]
    assert features["mean"].where(features.path == "1.wav", drop=True).sizes["track"] == 1


@pytest.mark.process
def test_every_frame_of_stretches_with_and_without_an_end(model, corpus, tmp_path):
    table = write_table(corpus / "clips.csv", ROWS)
    out = extract(config(model, table, tmp_path / "out", storage={"part_seconds": 1.0, "chunk_seconds": 0.5}))
    store = zarr.open_group(out, mode="r")
    for offset, length, states in zip(store["offset"][:], store["length"][:], expected_rows(model, corpus)):
        np.testing.assert_allclose(store["features"][offset : offset + length], states, atol=2e-5)


def test_a_file_that_ends_too_early_gives_the_frames_it_has(model, corpus, tmp_path, say):
    rows = [
        {"path": "0.wav", "start": 0.5, "end": 3.0},
        {"path": "1.wav", "start": 0, "end": 1.0},
        {"path": "0.wav", "start": 2.0, "end": 3.0},
    ]
    table = write_table(corpus / "clips.csv", rows)
    store = zarr.open_group(extract(config(model, table, tmp_path / "frames")), mode="r")
    short, whole = (
        states_of(model, corpus / row["path"], float(row["start"]), min(float(row["end"]), 1.0)) for row in rows[:2]
    )
    assert store["length"][:].tolist() == [len(short), len(whole), 0] and store["seconds"][0] < 0.51
    for place, states in enumerate((short, whole)):
        offset = store["offset"][place]
        np.testing.assert_allclose(store["features"][offset : offset + len(states)], states, atol=2e-5)
    assert np.isnan(store["features"][len(short) : store["offset"][1]]).all()
    assert [reason[:9] for reason in store["dropped"][:]] == ["", "", "too_short"]
    assert say(tmp_path / "frames", "--json")[0] == 0
    pooled = zarr.open_group(extract(config(model, table, tmp_path / "pooled", pooling="mean")), mode="r")
    np.testing.assert_allclose(pooled["mean"][:2], [short.mean(0), whole.mean(0)], atol=1e-5)
    assert np.isnan(pooled["mean"][2]).all() and pooled["dropped"][:][2].startswith("too_short")


def test_files_that_cannot_be_read_are_rows_of_nan_with_their_reason(model, corpus, tmp_path):
    rows = [{"path": name} for name in ("0.wav", "broken.wav", "gone.wav", "1.wav")]
    store = zarr.open_group(
        extract(config(model, write_table(corpus / "c.csv", rows), tmp_path / "out", pooling="mean")), mode="r"
    )
    assert np.isnan(store["mean"][:]).all(axis=(1, 2)).tolist() == [False, True, True, False]
    reasons = store["dropped"][:].tolist()
    assert reasons[0] == reasons[3] == "" and reasons[1] and reasons[2] == "unreadable: gone.wav: no such file"


@pytest.mark.process
def test_files_that_cannot_be_read_have_no_frames(model, corpus, tmp_path):
    rows = [{"path": name} for name in ("broken.wav", "0.wav", "gone.wav")]
    out = extract(config(model, write_table(corpus / "c.csv", rows), tmp_path / "out"))
    store = zarr.open_group(out, mode="r")
    assert store["length"][:].tolist() == [0, 74, 0] and all(store["dropped"][:][[0, 2]])
    np.testing.assert_allclose(store["features"][:], states_of(model, corpus / "0.wav"), atol=2e-5)


def test_a_model_of_another_rate_gets_the_same_stretch(corpus, tmp_path):
    config_16k = tiny_encoder()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        export_model(tmp_path / "m", StoredModel(config_16k, MertEncoder(config_16k).state_dict(), 16_000), {})
    table = write_table(
        corpus / "clips.csv", [{"path": "2.wav", "start": 0.5, "end": 1.5}, {"path": "0.wav", "end": 9}]
    )
    store = zarr.open_group(extract(config(tmp_path / "m", table, tmp_path / "out", pooling="mean")), mode="r")
    assert store["length"][:].tolist() == [49, 49] and np.isfinite(store["mean"][:]).all()


def test_other_labels_change_the_track_table_alone(model, corpus, tmp_path):
    settings = config(model, corpus / "clips.csv", tmp_path / "out", pooling="mean")
    write_table(corpus / "clips.csv", ROWS)
    extract(settings)
    before = visible(tmp_path / "out")
    extract(settings)
    assert visible(tmp_path / "out") == before
    write_table(corpus / "clips.csv", [{**row, "label": "new", "fold": "3"} for row in ROWS])
    extract(settings)
    store = zarr.open_group(tmp_path / "out", mode="r")
    assert set(store["label"][:]) == {"new"} and set(store["fold"][:]) == {"3"}
    after = visible(tmp_path / "out")
    assert {name for name in before if after[name] != before[name]} == {"zarr.json", "label/c/0"}


def test_other_clips_are_another_input(model, corpus, tmp_path):
    settings = config(model, corpus / "clips.csv", tmp_path / "out", pooling="mean")
    write_table(corpus / "clips.csv", ROWS)
    extract(settings)
    for rows in (ROWS[::-1], ROWS[:3]):
        write_table(corpus / "clips.csv", rows)
        with pytest.raises(ValueError, match="made with input.track.*overwrite=true"):
            extract(settings)
    write_table(corpus / "clips.csv", ROWS)
    write_audio(corpus / "0.wav", noise(1.3, seed=9))
    with pytest.raises(ValueError, match="input.tracks_sha256"):
        extract(settings)


def test_features_that_do_not_fit_fail_their_part_and_say_so(corpus, tmp_path):
    encoder = tiny_encoder(norm="pre")
    weights = MertEncoder(encoder).state_dict()
    weights["projection.linear.bias"] = torch.full_like(weights["projection.linear.bias"], 1e5)
    export_model(tmp_path / "m", StoredModel(encoder, weights, RATE), {})
    table = write_table(corpus / "clips.csv", [{"path": "0.wav"}])
    with pytest.raises(ExtractionError, match="1 of 1 parts could not be made: part 0: .*float16 ends at 65504"):
        extract(config(tmp_path / "m", table, tmp_path / "out", pooling="mean", dtype="float16"))


def test_a_store_goes_on_with_parts_of_the_size_it_was_begun_with(model, corpus, tmp_path):
    table = write_table(corpus / "clips.csv", ROWS)
    extract(config(model, table, tmp_path / "out", pooling="mean", storage={"part_tracks": 2}))
    before = visible(tmp_path / "out")
    (tmp_path / "out" / "parts" / "000001.json").unlink()
    extract(config(model, table, tmp_path / "out", pooling="mean"))
    assert visible(tmp_path / "out") == before
    with pytest.raises(ValueError, match="settings.chunk_rows 2, now it is 3"):
        extract(config(model, table, tmp_path / "out", pooling="mean", storage={"part_tracks": 3}))


@pytest.mark.process
def test_processes_write_the_same_bytes(model, corpus, tmp_path):
    table = write_table(corpus / "clips.csv", ROWS)
    settings = {"pooling": "mean_std", "storage": {"part_tracks": 2}}
    alone = extract(config(model, table, tmp_path / "one", **settings))
    several = extract(config(model, table, tmp_path / "two", **settings), processes=2)
    assert visible(Path(alone)) == visible(Path(several))


@pytest.mark.process
def test_the_command_reads_a_table_and_shows_what_was_dropped(model, corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    table = write_table(tmp_path / "clips.csv", [{"path": "0.wav", "label": "x"}, {"path": "broken.wav", "label": "y"}])
    arguments = [f"model={model}", f"input={table}", f"input_root={corpus}", f"out={tmp_path / 'out'}", "pooling=mean"]
    assert run(command.main, arguments, command.__doc__, command.CONFIG) == 0
    said = capsys.readouterr()
    assert "plan: 2 tracks, hours are not known yet, in 1 parts; 1 to do" in said.out
    assert "dropped: broken-" in said.err
    assert zarr.open_group(tmp_path / "out", mode="r")["label"][:].tolist() == ["x", "y"]


def test_baselines_are_extracted_as_models_are(corpus, tmp_path, say):
    import torchaudio

    table = write_table(corpus / "clips.csv", [{"path": "0.wav"}, {"path": "1.wav"}])
    out = extract(config("mfcc", table, tmp_path / "mfcc", pooling="mean", windows={"seconds": 60}))
    store = zarr.open_group(out, mode="r")
    assert store["mean"].shape == (2, 1, 20) and store["layer"][:].tolist() == [0]
    assert store.attrs["model"]["baseline"] == "mfcc" and store.attrs["frame_rate"] == 75.0
    transform = torchaudio.transforms.MFCC(
        RATE, 20, melkwargs={"n_fft": 2048, "hop_length": HOP, "n_mels": 128, "pad_mode": "constant"}
    )
    transform.amplitude_to_DB.top_db = None
    samples = soundfile.read(corpus / "1.wav", dtype="int16")[0]
    samples = torch.from_numpy(samples[: len(samples) // HOP * HOP] / np.float32(32768))
    expected = transform(samples)[:, : len(samples) // HOP].mean(dim=1)
    np.testing.assert_allclose(store["mean"][1, 0], expected, atol=1e-3)
    assert say(tmp_path / "mfcc")[0] == 0
    with pytest.raises(ValueError, match="model.baseline 'mfcc', now it is 'log_mel'"):
        extract(config("log_mel", table, tmp_path / "mfcc", pooling="mean", windows={"seconds": 60}))


def test_an_untrained_encoder_is_extracted_by_config_and_seed(corpus, tmp_path):
    (tmp_path / "tiny.yaml").write_text(json.dumps({"encoder": tiny_encoder().model_dump(mode="json")}))
    table = write_table(corpus / "clips.csv", [{"path": "0.wav"}])
    for seed in (0, 1):
        extract(config(f"random:{tmp_path / 'tiny.yaml'}@{seed}", table, tmp_path / f"{seed}", pooling="mean"))
    first, second = (zarr.open_group(tmp_path / f"{seed}", mode="r") for seed in (0, 1))
    assert first.attrs["model"]["seed"] == 0 and first["mean"].shape == second["mean"].shape == (1, 3, 16)
    assert np.abs(first["mean"][:] - second["mean"][:]).max() > 0.1


def test_a_manifests_columns_stand_in_the_table(model, corpus, tmp_path):
    from mert_foundry.pipeline.manifest.scan import ManifestConfig, scan, write_manifest

    (corpus / "broken.wav").unlink()
    made = ManifestConfig(root=str(corpus), out=str(tmp_path / "manifest"), splits={"valid": 0.5}, min_seconds=0.1)
    rows = scan(made)
    write_manifest(made, rows)
    store = zarr.open_group(extract(config(model, tmp_path / "manifest", tmp_path / "out", pooling="mean")), mode="r")
    by_path = {row.path: row for row in rows}
    for path, split, group, rate, format_, loudness in zip(
        *(store[name][:] for name in ("path", "split", "group", "sample_rate", "format", "loudness_lufs"))
    ):
        row = by_path[path]
        assert (split, group, rate, format_, loudness) == (row.split, row.group, 24_000, row.format, row.loudness_lufs)


def test_the_readme_joins_labels_by_path(model, corpus, tmp_path):
    readme = (Path(__file__).parent.parent / "pipeline" / "features" / "README.md").read_text()
    (block,) = [block.split("```")[0] for block in readme.split("```python\n")[1:] if "pooled.zarr" in block]
    path = block.split('labels = {"')[1].split('"')[0]
    assert (Path(__file__).parent / "data" / "music" / path).is_file()
    out = extract(config(model, write_table(corpus / "clips.csv", ROWS), tmp_path / "out", pooling="mean"))
    names: dict = {}
    exec(block.replace("runs/mine/pooled.zarr", out).replace(path, "2.wav"), names)
    assert names["targets"] == ["calm"] * 3
    np.testing.assert_array_equal(names["features"], zarr.open_group(out, mode="r")["mean"][:][[0, 2, 3]])


def counting(calls: list[str]):
    def examine_all(examine, paths, workers):
        for path in paths:
            calls.append(path)
            yield examine(path)

    return examine_all


def test_a_scan_decodes_what_is_new_or_has_other_bytes(corpus, tmp_path):
    cache = str(tmp_path / "store" / "parts" / file_scan.CACHE)
    calls: list[str] = []
    first = file_scan.scan_files(str(corpus), 1, cache, examine_all=counting(calls))
    assert sorted(calls) == ["0.wav", "1.wav", "2.wav", "broken.wav"] and [r.path for r in first[1]] == ["broken.wav"]
    calls.clear()
    assert file_scan.scan_files(str(corpus), 1, cache, examine_all=counting(calls)) == first and not calls
    os.utime(corpus / "1.wav", ns=(1, 1))
    shutil.copy(corpus / "0.wav", corpus / "new.wav")
    shutil.copy(corpus / "1.wav", corpus / "0.wav")
    (corpus / "2.wav").unlink()
    again = file_scan.scan_files(str(corpus), 1, cache, examine_all=counting(calls))
    assert sorted(calls) == ["0.wav", "new.wav"]
    before, now = ({track.path: track.sha256 for track in tracks} for tracks, _ in (first, again))
    assert now == {"0.wav": before["1.wav"], "1.wav": before["1.wav"], "new.wav": before["0.wav"]}


@pytest.mark.parametrize(
    "damage", [b"", b"torn", gzip.compress(b'{"audio_version": 0}\n', mtime=0)], ids=["cut", "torn", "another version"]
)
def test_a_damaged_scan_is_made_again(corpus, tmp_path, damage):
    cache = tmp_path / "scan.jsonl.gz"
    first = file_scan.scan_files(str(corpus), 1, str(cache))
    cache.write_bytes(damage or cache.read_bytes()[:-20])
    calls: list[str] = []
    assert file_scan.scan_files(str(corpus), 1, str(cache), examine_all=counting(calls)) == first and calls


def test_an_interrupted_scan_goes_on(corpus, tmp_path):
    cache, calls = str(tmp_path / "scan.jsonl.gz"), []

    def interrupted(examine, paths, workers):
        yield examine(paths[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        file_scan.scan_files(str(corpus), 1, cache, examine_all=interrupted)
    file_scan.scan_files(str(corpus), 1, cache, examine_all=counting(calls))
    assert "0.wav" not in calls and len(calls) == 3


def test_what_could_not_be_written_is_written_the_next_time(tmp_path):
    (tmp_path / "store").write_text("no folder")
    location = str(tmp_path / "store" / file_scan.CACHE)
    known = file_scan.ScanFile(location, {})
    reject = Reject(path="a.wav", reason="unreadable", detail="no audio")
    known.add("stamp", Examined(reject, is_lasting=True))
    with pytest.raises(OSError):
        known.publish()
    (tmp_path / "store").unlink()
    known.publish()
    assert file_scan.ScanFile(location, {}).find("a.wav", "stamp") == reject


@pytest.mark.process
def test_a_resumed_store_of_a_folder_scans_nothing(model, corpus, tmp_path, capsys):
    settings = config(model, corpus, tmp_path / "out", pooling="mean")
    extract(settings)
    before = visible(tmp_path / "out")
    (tmp_path / "out" / "parts" / "000000.json").unlink()
    capsys.readouterr()
    extract(settings)
    scanned = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("scan:"))
    assert scanned.startswith("scan: 0.000 h") and visible(tmp_path / "out") == before
