"""`mert bench loader`: every loader gives the same bits, and the report says what it should."""

import json
import subprocess
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import forked_module

from mert_foundry.jobs.benchmarks import loader_benchmark
from mert_foundry.jobs.benchmarks.loader_examples import make_examples, write_arrays, write_shards
from mert_foundry.jobs.benchmarks.loader_peers import ARRAYS, PEERS, write_arrow, write_litdata
from mert_foundry.jobs.benchmarks.loader_store import running_store
from mert_foundry.jobs.benchmarks.loader_store_variant import WAYS, StoreSettings, environment, upload
from mert_foundry.jobs.benchmarks.loader_store_variant import measure as measure_store
from mert_foundry.jobs.benchmarks.loader_variant import (
    OURS,
    OURS_BY_VISITS,
    LoaderSettings,
    measure,
    open_loader,
    per_cpu_second,
)
from mert_foundry.jobs.command.line import run
from mert_foundry.pipeline.stream.crops import random_crop

COUNT, LENGTH, FRAMES = 8, 60, 20


@pytest.fixture(scope="module", params=["uint8", "float16"])
def folder(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("loaders")
    examples = make_examples(COUNT, LENGTH, request.param)
    for member in ("flac", "pcm.npy"):
        write_shards(folder / member, examples, request.param, member)
    write_arrays(folder / "arrays", examples)
    return folder


def settings(folder: Path, loader: str, member: str) -> LoaderSettings:
    return LoaderSettings(loader=loader, folder=folder, audio_member=member, frames=FRAMES, batch=4, seconds=0.05)


def one_epoch(folder: Path, loader: str, member: str) -> dict[str, dict[str, torch.Tensor]]:
    """Row by example key."""
    rows = {}
    batches = open_loader(settings(folder, loader, member))
    for batch in islice(batches, COUNT // 4):
        for row, key in enumerate(batch["key"]):
            rows[key] = {name: batch[name][row].clone() for name in ("audio", "codes", "cqt")}
    batches.close()
    return rows


def assert_crops(folder: Path, rows: dict[str, dict[str, torch.Tensor]]) -> None:
    """Every row is the crop that seed and key say, of the files as NumPy reads them."""
    for key, row in rows.items():
        start, count = random_crop(0, 0, key, LENGTH, FRAMES)
        whole = {name: np.load(folder / "arrays" / f"{key}.{name}.npy") for name in row}
        np.testing.assert_array_equal(row["audio"].numpy(), whole["audio"][320 * start : 320 * (start + count)])
        np.testing.assert_array_equal(row["codes"].numpy(), whole["codes"][:, start : start + count])
        np.testing.assert_array_equal(row["cqt"].numpy(), whole["cqt"][start : start + count])
        assert row["cqt"].numpy().dtype == whole["cqt"].dtype


@pytest.mark.parametrize("member", ["flac", "pcm.npy"])
@pytest.mark.parametrize("loader", [OURS, ARRAYS])
def test_a_loader_gives_the_crops_of_the_files(folder, loader, member):
    rows = one_epoch(folder, loader, member)
    assert len(rows) == COUNT
    assert_crops(folder, rows)


@pytest.mark.process
@pytest.mark.slow
def test_peers_give_the_same_crops(folder):
    for package in ("datasets", "litdata"):
        pytest.importorskip(package)
    keys = sorted(path.stem for path in (folder / "arrays").glob("*.flac"))
    write_arrow(folder, keys)
    write_litdata(folder, keys)
    for loader in (name for name in PEERS if "workers" not in name):
        for member in ("flac", "pcm.npy"):
            rows = one_epoch(folder, loader, member)
            # webdataset mixes epochs in its buffer, so not every example need come.
            assert rows and (len(rows) == COUNT or loader.startswith("webdataset")), loader
            assert_crops(folder, rows)


def test_figures_of_both_forms(folder):
    figures = measure(settings(folder, OURS, "pcm.npy"))
    assert set(figures) == {"stored", "converted"}
    for form in figures.values():
        assert form["audio_seconds_per_cpu_second"] > 0
        assert 2.9 < form["read_calls_per_example"] < 100
        assert form["bytes_read_per_audio_second"] > 2 * 24_000


def test_a_time_that_ends_before_the_first_batch_measures_one(folder):
    figures = measure(settings(folder, OURS, "pcm.npy").model_copy(update={"seconds": 1e-9}))
    assert all(form["audio_seconds_per_cpu_second"] > 0 for form in figures.values())


def test_a_clock_that_did_not_move_is_said_and_not_divided_by():
    with pytest.raises(RuntimeError, match="^CPU time of 4 examples is not known: 0 s; measure for longer$"):
        per_cpu_second(0.0, 1.0, 4)


@pytest.mark.process
@pytest.mark.slow
def test_the_report_compares_ours_with_the_best(capsys, monkeypatch):
    monkeypatch.setattr(subprocess, "run", forked_module)
    arguments = ["--examples", "8", "--batch", "4", "--seconds", "0.2", "--rounds", "1", "--json"]
    assert run(loader_benchmark.main, arguments, loader_benchmark.__doc__) == 0
    report = json.loads(capsys.readouterr().out)
    for audio in ("PCM", "FLAC"):
        rows = report["loaders"][audio]
        assert list(rows) == [OURS, OURS_BY_VISITS, ARRAYS, f"{ARRAYS}, 2 workers"]
        rates = {name: row["stored"]["audio_seconds_per_cpu_second"] for name, row in rows.items()}
        best = max(rates[ARRAYS], rates[f"{ARRAYS}, 2 workers"])
        assert report["ours_to_best_peer"][audio]["stored"] == pytest.approx(rates[OURS] / best)
    assert "ours to the best of the others" in loader_benchmark.as_table(report)


@pytest.mark.process
@pytest.mark.s3
@pytest.mark.slow
def test_the_store_is_asked_for_each_shard_once_and_no_more_once_it_is_here(tmp_path, monkeypatch):
    for package in ("moto", "s3fs", "obstore"):
        pytest.importorskip(package)
    for name in environment(""):
        monkeypatch.setenv(name, "")  # to be as before at the end
    write_shards(tmp_path / "flac", make_examples(COUNT, LENGTH, "uint8"), "uint8", "flac")
    with running_store(0.01) as address:
        upload([tmp_path / "flac"], address)
        values = {"folder": tmp_path, "address": address, "audio_member": "flac", "frames": FRAMES, "batch": 4}
        found = {way: measure_store(StoreSettings(way=way, batches=COUNT // 4, **values)) for way in WAYS}
    requests = {way: figures["requests_per_audio_second"] for way, figures in found.items()}
    audio = COUNT * FRAMES / 75
    assert requests["local folder"] == requests["store, cache filled"] == 0
    assert 3 <= requests["store, cache empty"] * audio <= 4  # of the tar its size and a range, and the record
    assert requests["store, no cache"] * audio >= 3 * COUNT
    shard, record = ((tmp_path / "flac" / f"train-000000.{suffix}").stat().st_size for suffix in ("tar", "json"))
    assert found["store, cache empty"]["bytes_to_those_of_the_shards"] == pytest.approx(1 + record / shard)
    assert all(figures["audio_seconds_per_cpu_second"] > 0 for figures in found.values())
    report = {"settings": {"latency": 10.0}, "store": {"FLAC": found}}
    assert "store, cache filled" in "\n".join(loader_benchmark.describe_store(report))


def test_bad_options_are_named(capsys):
    assert run(loader_benchmark.main, ["--rounds", "0"], "") == 2
    assert "--rounds is 0, it must be above 0" in capsys.readouterr().err
    assert run(loader_benchmark.main, ["--examples", "3"], "") == 2
    assert "--examples is 3, a batch takes 16" in capsys.readouterr().err
