"""Whole shards in a local folder: the batches of a stream without it, whatever befalls store, disk and processes."""

import gc
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import fsspec
import pytest
import torch
from audio_files import wait_until
from fault_proxy import FAULTS, LEAST_MET, FaultProxy
from pretrain_run import pretrain_here, read_metrics
from pydantic import ValidationError
from shard_fixtures import SPECS, write_set

from mert_foundry.jobs.command.preflight import locked
from mert_foundry.model.runs.checkpoint import latest_checkpoint
from mert_foundry.pipeline.cache import shard_cache, stall
from mert_foundry.pipeline.cache.cache_folder import CacheFolder, Claim, Needs, NotNow
from mert_foundry.pipeline.cache.object_source import open_source
from mert_foundry.pipeline.cache.shard_uses import ShardUses
from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.storage.documents import json_bytes
from mert_foundry.pipeline.stream.batch_stream import BatchStream, StreamConfig
from mert_foundry.pipeline.stream.sample_order import SampleOrder

SIZES = [3, 4, 5, 2, 6, 3, 4, 5]
EPOCH_BATCHES = sum(SIZES) // 4


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("local")
    write_set(folder, SIZES)
    return str(folder)


@pytest.fixture
def shards(local: str, bucket: str, proxy: FaultProxy) -> str:
    """The set on an S3 server, behind the proxy."""
    import s3fs

    s3fs.S3FileSystem().put(sorted(map(str, Path(local).iterdir())), f"{bucket}/shards/")
    return f"{bucket}/shards"


@pytest.fixture
def memory(local: str) -> Iterator[str]:
    """The set in a store without a server."""
    store = fsspec.filesystem("memory")
    for path in Path(local).iterdir():
        store.pipe_file(f"/shards/{path.name}", path.read_bytes())
    yield "memory://shards"
    store.rm("/shards", recursive=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def plain(**changes: object) -> StreamConfig:
    sizes = {"batch_size": 4, "crop_samples": 6400, "threads": 2, "prefetch": 1, "patience": 60.0, "shuffle_window": 2}
    return StreamConfig(**sizes | changes)


def cached(folder: Path, limit: int | str = "1GB", **changes: object) -> StreamConfig:
    return plain(cache={"folder": str(folder), "bytes": limit}, **changes)


def stream(shards: str, config: StreamConfig, **place: object) -> BatchStream:
    return BatchStream(shards, load_index(shards), "train", config, 0, **place)


def assert_same(found: tuple[dict, dict], expected: tuple[dict, dict]) -> None:
    (batch, position), (wanted, wanted_position) = found, expected
    assert batch["key"] == wanted["key"] and position == wanted_position
    for name in ("audio", "valid", "row", *(spec.name for spec in SPECS)):
        assert torch.equal(batch[name], wanted[name]), name


def tars(folder: Path, suffix: str = "tar") -> list[Path]:
    return sorted(folder.glob(f"*.{suffix}"))


def name_in_store(copy: Path) -> str:
    return "-".join(copy.name.split("-")[:2]) + ".tar"


def count_tars(proxy: FaultProxy) -> dict[str, int]:
    return {name: count for name, count in proxy.fetched.items() if name.endswith(".tar")}


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for offset in range(1000, len(content), 97):
        content[offset] ^= 0xFF
    path.write_bytes(content)


@contextmanager
def watched(folder: Path) -> Iterator[list[int]]:
    """Collects the bytes of all tars in the folder, those being fetched included, again and again."""
    found: list[int] = [0]
    over = threading.Event()

    def measure() -> None:
        while not over.is_set():
            total = 0
            for entry in os.scandir(folder) if folder.exists() else ():
                if entry.name.endswith((".tar", ".kept", ".tmp")):
                    try:
                        total += entry.stat().st_size
                    except FileNotFoundError:
                        pass
            found.append(total)

    thread = threading.Thread(target=measure)
    thread.start()
    yield found
    over.set()
    thread.join()


def smallest_limit(shards: str, config: StreamConfig) -> int:
    order = SampleOrder([entry.nsamples for entry in load_index(shards).shards("train")], 0, config.shuffle_window)
    most = order.most_shards((config.prefetch + 2) * config.batch_size)
    return sum(sorted((entry.filesize for entry in load_index(shards).shards("train")), reverse=True)[:most])


@pytest.mark.s3
@pytest.mark.slow
def test_batches_are_the_same_and_once_all_is_here_the_store_is_not_asked(
    shards: str, local: str, folder: Path, proxy: FaultProxy
):
    with stream(shards, cached(folder, patience=0.0)) as there, stream(local, plain()) as here:
        for found, expected in islice(zip(there, here), EPOCH_BATCHES + 1):
            assert_same(found, expected)
        assert count_tars(proxy) == {f"train-{number:06d}.tar": 1 for number in range(len(SIZES))}
        proxy.strike("500", 600.0)
        for found, expected in islice(zip(there, here), 3 * EPOCH_BATCHES):
            assert_same(found, expected)
        assert not proxy.met
    assert proxy.fetched["train-000003.json"] == 1


def test_a_small_folder_stays_within_its_limit(memory: str, local: str, folder: Path):
    small = {"batch_size": 2, "shuffle_window": 1}
    limit = smallest_limit(memory, plain(**small))
    assert limit < sum(entry.filesize for entry in load_index(memory).shardlist)
    with watched(folder) as used:
        with stream(memory, cached(folder, limit, **small)) as there, stream(local, plain(**small)) as here:
            for found, expected in islice(zip(there, here), 6 * EPOCH_BATCHES):
                assert_same(found, expected)
    assert limit / 2 < max(used) <= limit
    with pytest.raises(ValueError, match=f"stream.cache.bytes is {limit - 1}, but {limit} bytes are needed"):
        stream(memory, cached(folder, limit - 1, **small))


def test_a_stream_goes_on_at_any_position_with_another_world_size(memory: str, local: str, folder: Path):
    with stream(memory, cached(folder)) as first:
        position = [position for _, position in islice(first, 5)][-1]
    kept = tars(folder)
    with (
        stream(memory, cached(folder), rank=0, world_size=2, position=position) as zero,
        stream(memory, cached(folder), rank=1, world_size=2, position=position) as one,
        stream(local, plain(), rank=0, world_size=2, position=position) as local_zero,
        stream(local, plain(), rank=1, world_size=2, position=position) as local_one,
    ):
        for found, other, expected, other_expected in islice(zip(zero, one, local_zero, local_one), EPOCH_BATCHES):
            assert_same(found, expected)
            assert_same(other, other_expected)
    assert kept and set(kept) <= set(tars(folder))


@pytest.mark.s3
@pytest.mark.slow
def test_batches_through_every_outage_are_those_of_an_undisturbed_stream(
    shards: str, local: str, folder: Path, proxy: FaultProxy
):
    index = load_index(shards)
    for fault in FAULTS:
        proxy.strike_briefly(fault)
        with BatchStream(shards, index, "train", cached(folder / fault), 0) as there, stream(local, plain()) as here:
            for found, expected in islice(zip(there, here), EPOCH_BATCHES + 1):
                assert_same(found, expected)
        assert proxy.met >= LEAST_MET[fault], fault
    for fault in ("missing", "forbidden"):
        proxy.strike(fault, 600.0, most=2)
        with stream(shards, cached(folder / fault)) as there:
            next(there)
        assert proxy.met == 2


@pytest.mark.s3
@pytest.mark.slow
def test_whole_shards_are_asked_for_with_the_credentials_and_the_endpoint_of_fsspec(
    shards: str, local: str, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = (Path(local) / "train-000001.tar").read_bytes()

    def fetch() -> Counter[str]:
        proxy.signed.clear()
        source = open_source(f"{shards}/train-000001.tar")
        with open(tmp_path / "copy", "wb+") as file:
            file.truncate(len(whole))
            assert source.size() == len(whole)
            assert source.copy_range(512, 5000, file.fileno()) == 4488
            assert file.read() == bytes(512) + whole[512:5000] + bytes(len(whole) - 5000)
        return proxy.signed

    assert fetch() == {"test": 1}
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"key": "given", "secret": "x", "endpoint_url": proxy.endpoint})
    assert fetch() == {"given": 1}
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": True, "endpoint_url": proxy.endpoint})
    with pytest.raises(PermissionError):  # the bucket is not public
        fetch()
    (tmp_path / "aws").write_text("[default]\naws_access_key_id = profile\naws_secret_access_key = y\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": proxy.endpoint})
    assert fetch() == {"profile": 1}
    monkeypatch.setitem(
        fsspec.config.conf, "s3", {"endpoint_url": proxy.endpoint, "config_kwargs": {"read_timeout": 9}}
    )
    assert fetch() == {"profile": 1}  # by s3fs


@pytest.mark.s3
@pytest.mark.slow
def test_patience_ends_with_the_name_of_what_was_asked_for(shards: str, folder: Path, proxy: FaultProxy):
    for fault, error in {"missing": FileNotFoundError, "forbidden": PermissionError, "500": OSError}.items():
        proxy.strike(fault, 600.0)
        with stream(shards, cached(folder, patience=0.5)) as there:
            with pytest.raises(error, match=r"^train-\d+\.tar"):
                next(there)
    assert not tars(folder)


READ = """
import hashlib, json, sys
from itertools import islice
from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.stream.batch_stream import BatchStream, StreamConfig
shards, config, rank, count = sys.argv[1], StreamConfig.model_validate_json(sys.argv[2]), *map(int, sys.argv[3:])
print("ready", flush=True)
sys.stdin.readline()
with BatchStream(shards, load_index(shards), "train", config, 0, rank, 2) as stream:
    for batch, _ in islice(stream, count):
        print(json.dumps([batch["key"], hashlib.sha256(batch["audio"].numpy().tobytes()).hexdigest()]), flush=True)
"""


def start_reader(shards: str, config: StreamConfig, rank: int, count: int) -> subprocess.Popen:
    command = [sys.executable, "-c", READ, shards, config.model_dump_json(), str(rank), str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.s3
@pytest.mark.slow
def test_two_processes_fetch_each_shard_once_between_them(shards: str, local: str, folder: Path, proxy: FaultProxy):
    count = 2 * EPOCH_BATCHES
    with start_reader(shards, cached(folder), 1, count) as other:
        assert other.stdout.readline() == "ready\n"
        proxy.fetched.clear()
        other.stdin.write("\n")
        other.stdin.flush()
        with (
            stream(shards, cached(folder), rank=0, world_size=2) as there,
            stream(local, plain(), rank=0, world_size=2) as here,
        ):
            for found, expected in islice(zip(there, here), count):
                assert_same(found, expected)
            lines = [json.loads(line) for line in other.communicate(timeout=60)[0].splitlines()]
    with stream(local, plain(), rank=1, world_size=2) as here:
        expected = [
            [batch["key"], hashlib.sha256(batch["audio"].numpy().tobytes()).hexdigest()]
            for batch, _ in islice(here, count)
        ]
    assert lines == expected and other.returncode == 0
    assert count_tars(proxy) == {f"train-{number:06d}.tar": 1 for number in range(len(SIZES))}
    assert not list(folder.glob(".*.needs")) and not list(folder.glob(".*.tmp"))


@pytest.mark.s3
@pytest.mark.slow
def test_what_a_killed_process_left_is_removed_and_what_it_had_is_verified(
    shards: str, local: str, folder: Path, proxy: FaultProxy
):
    with start_reader(shards, cached(folder), 0, 1000) as reader:
        assert reader.stdout.readline() == "ready\n"
        reader.stdin.write("\n")
        reader.stdin.flush()
        wait_until(reader, lambda: len(tars(folder)) >= 2)
        proxy.strike("stalled", 600.0)
        wait_until(reader, lambda: proxy.met > 0 and any(folder.glob(".*.tmp")))
        reader.send_signal(signal.SIGKILL)
    (left, *_), whole = folder.glob(".*.tmp"), tars(folder)
    damage(whole[0])
    proxy.until = 0.0
    proxy.fetched.clear()
    with stream(shards, cached(folder)) as there, stream(local, plain()) as here:
        assert not left.exists() and len(list(folder.glob(".*.lock"))) == 1
        for found, expected in islice(zip(there, here), EPOCH_BATCHES + 1):
            assert_same(found, expected)
    names = {name_in_store(path) for path in whole}
    assert {name for name in count_tars(proxy) if name in names} == {name_in_store(whole[0])}
    assert not list(folder.glob(".*.tmp")) and not tars(folder, "kept")


def test_a_copy_that_is_damaged_while_it_is_read_is_fetched_anew(
    memory: str, local: str, folder: Path, caplog: pytest.LogCaptureFixture
):
    with stream(memory, cached(folder, threads=1)) as there, stream(local, plain()) as here:
        for found, expected in islice(zip(there, here), EPOCH_BATCHES + 1):
            assert_same(found, expected)
        for path in tars(folder):
            damage(path)
        for found, expected in islice(zip(there, here), EPOCH_BATCHES):
            assert found[0]["key"] == expected[0]["key"]
            assert torch.equal(found[0]["audio"], expected[0]["audio"])
            assert torch.equal(found[0]["codes"], expected[0]["codes"])
    assert "damaged on this disk, fetched anew: SHA-256" in caplog.text
    first = tars(folder)[0]
    assert (Path(local) / name_in_store(first)).read_bytes() == first.read_bytes()


def test_a_copy_that_one_rank_has_healed_is_opened_anew_by_the_others(memory: str, local: str, folder: Path):
    config, both = cached(folder, shuffle_window=8), {"world_size": 2}
    with (
        stream(memory, config, rank=0, **both) as zero,
        stream(memory, config, rank=1, **both) as one,
        stream(local, plain(shuffle_window=8), rank=1, **both) as here,
    ):
        for there in (zero, one, here):
            next(there)
        for path in tars(folder):
            damage(path)
        list(islice(zero, EPOCH_BATCHES))
        for found, expected in islice(zip(one, here), EPOCH_BATCHES):
            assert found[0]["key"] == expected[0]["key"] and torch.equal(found[0]["codes"], expected[0]["codes"])


def test_a_copy_that_has_just_been_fetched_is_not_thrown_away_for_the_damage_of_another(folder: Path):
    shard = f"train-000001-{'0' * 16}-{'0' * 16}"
    here = CacheFolder(folder, 10**6, IDLE)

    def publish() -> None:
        claim = here.claim(shard, 1000, 0, lambda _name, _window: 0.0)
        here.publish(shard, claim.path, b"record")

    publish()
    damaged = here.identity(shard)
    assert here.discard(shard, damaged) and here.identity(shard) is None
    publish()
    assert not here.discard(shard, damaged) and here.tar(shard).exists()
    here.close()


def test_sets_whose_records_alone_differ_share_a_folder(memory: str, local: str, folder: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(local, other)
    index = json.loads((other / "index.json").read_text())
    for entry in index["shardlist"]:
        record = json.loads((other / entry["record"]).read_text())
        record["backend"]["torch"] = "of another machine"
        content = json_bytes(record)
        (other / entry["record"]).write_bytes(content)
        entry["record_sha256"] = hashlib.sha256(content).hexdigest()
    (other / "index.json").write_bytes(json_bytes(index))
    store = fsspec.filesystem("memory")
    for path in other.iterdir():
        store.pipe_file(f"/shards/other/{path.name}", path.read_bytes())
    with stream(memory, cached(folder)) as first, stream(f"{memory}/other", cached(folder)) as second:
        for (batch, _), (same, _) in islice(zip(first, second), EPOCH_BATCHES + 1):
            assert batch["key"] == same["key"] and torch.equal(batch["audio"], same["audio"])
    assert len(tars(folder)) == 2 * len(SIZES)


def test_a_run_folder_may_hold_the_cache(memory: str, folder: Path):
    with locked(folder, "training"), stream(memory, cached(folder)) as there:
        next(there)


def spoil(name: str) -> None:
    """Change a byte of a shard in the store."""
    store = fsspec.filesystem("memory")
    content = bytearray(store.cat_file(f"/shards/{name}"))
    content[len(content) // 2] ^= 1
    store.pipe_file(f"/shards/{name}", bytes(content))


def test_a_shard_that_is_corrupt_in_the_store_ends_the_run(memory: str, folder: Path):
    spoil("train-000004.tar")
    with stream(memory, cached(folder)) as there:
        with pytest.raises(ValueError, match=r"^train-000004.tar: corrupt in the store: SHA-256 \w+, the index says"):
            list(islice(there, EPOCH_BATCHES + 1))


def test_a_shard_or_record_of_another_size_or_set_is_corrupt(memory: str, folder: Path):
    store = fsspec.filesystem("memory")
    whole = store.cat_file("/shards/train-000004.tar")
    store.pipe_file("/shards/train-000004.tar", whole[:-512])
    with stream(memory, cached(folder)) as there:
        with pytest.raises(ValueError, match=rf"the store: {len(whole) - 512} bytes, the index says {len(whole)}"):
            list(islice(there, EPOCH_BATCHES + 1))
    store.pipe_file("/shards/train-000004.tar", whole)
    store.pipe_file("/shards/train-000004.json", store.cat_file("/shards/train-000003.json"))
    with stream(memory, cached(folder)) as there:
        with pytest.raises(ValueError, match=r"the store: train-000004.json: SHA-256 \w+, the index says"):
            list(islice(there, EPOCH_BATCHES + 1))


def test_a_corrupt_shard_is_passed_over_and_the_order_of_the_others_stays(
    memory: str, folder: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING)
    spoil("train-000004.tar")
    index = load_index(memory)
    order = SampleOrder([entry.nsamples for entry in index.shards("train")], 0, 2)
    wanted = [
        (place.epoch, f"train{place.shard}x{place.example}-00000")
        for place in order.take(0, 3 * order.epoch_size)
        if place.shard != 4
    ]
    skip = cached(folder, on_bad_shard="skip")
    found, positions = [], []
    with stream(memory, skip) as there:
        for batch, position in islice(there, 9):
            found += batch["key"]
            positions.append(position)
    assert found == [key for _, key in wanted[: len(found)]]
    assert positions[-1]["bad_shards"] == ["train-000004"] and positions[-1]["epoch"] == 1
    consumed = order.epoch_size * positions[-1]["epoch"] + positions[-1]["offset"]
    assert consumed - len(found) == sum(place.shard == 4 for place in order.take(0, consumed))
    told = [record.getMessage() for record in caplog.records if "passed over" in record.getMessage()]
    assert len(told) == 1 and "with its 6 examples: train-000004.tar" in told[0] and "1 of 8 shards so far" in told[0]

    with (
        stream(memory, skip, rank=0, world_size=2, position=positions[3]) as zero,
        stream(memory, skip, rank=1, world_size=2, position=positions[3]) as one,
    ):
        resumed = [first["key"] + second["key"] for (first, _), (second, _) in islice(zip(zero, one), 5)]
    assert [key for keys in resumed for key in keys] == found[16:36]


def test_a_training_run_has_the_losses_of_one_from_a_disk_and_lists_what_it_passed_over(
    memory: str, local: str, folder: Path, tmp_path: Path
):
    short = ["valid_split=null", "device=cpu", "trainer.schedule.total_steps=8", "trainer.schedule.warmup_steps=2"]
    cache = [f"stream.cache.folder={folder}", "stream.cache.bytes=1GB", "stream.on_bad_shard=skip"]
    assert pretrain_here(Path(local), tmp_path / "disk", *short) == 0
    assert pretrain_here(memory, tmp_path / "store", *short, *cache) == 0
    losses = {name: [record["loss"] for record in read_metrics(tmp_path / name, "train")] for name in ("disk", "store")}
    assert len(losses["disk"]) == 8 and losses["store"] == losses["disk"]
    spoil("train-000004.tar")
    other = [f"stream.cache.folder={folder}2", *cache[1:]]
    assert pretrain_here(memory, tmp_path / "spoiled", *short, *other) == 0
    state = json.loads((latest_checkpoint(tmp_path / "spoiled" / "checkpoints")[0] / "state.json").read_text())
    assert state["position"]["bad_shards"] == ["train-000004"]


def test_several_nodes_may_not_pass_over_shards(
    memory: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Since each of them finds for itself which ones are corrupt."""
    changes = ["valid_split=null", "device=cpu", f"stream.cache.folder={folder}", "stream.cache.bytes=1GB"]
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert pretrain_here(memory, tmp_path / "run", *changes, "stream.on_bad_shard=skip") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "stream.on_bad_shard is skip, which is for one node, but this run has 2" in line
    assert not (tmp_path / "run").exists() and not folder.exists()


def test_a_set_that_is_corrupt_throughout_ends_the_run(memory: str, folder: Path):
    for number in range(len(SIZES)):
        spoil(f"train-{number:06d}.tar")
    with stream(memory, cached(folder, on_bad_shard="skip")) as there:
        with pytest.raises(ValueError, match="all 8 shards with examples are corrupt"):
            next(there)


def test_a_shard_that_finds_no_room_for_long_says_so(memory: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """As when another run uses the same folder."""
    monkeypatch.setattr(shard_cache, "ROOM_PATIENCE", 0.3)
    limit = smallest_limit(memory, plain(batch_size=2, shuffle_window=1))
    config = cached(folder, limit, batch_size=2, shuffle_window=1)
    with stream(memory, config) as first:
        list(islice(first, 10))
        time.sleep(0.5)  # until what fits is there
        needs = Needs(order="another", window=0, in_use=[path.stem for path in tars(folder)])
        other = CacheFolder(folder, limit, needs)
        with pytest.raises(OSError, match="no room for 0 s in the cache: other processes use all of it"):
            list(islice(first, 2 * EPOCH_BATCHES))
        other.close()


IDLE = Needs(order="another", window=0, in_use=[])
CLAIM = """
import sys
from pathlib import Path
from mert_foundry.pipeline.cache.cache_folder import CacheFolder, Needs
folder = CacheFolder(Path(sys.argv[1]), 10**6, Needs(order="another", window=0, in_use=[]))
print(type(folder.claim(sys.argv[2], 1000, 0, lambda name, window: 0.0)).__name__, flush=True)
sys.stdin.readline()
"""


def names_in_order(shards: str, window: int = 2) -> list[str]:
    """The names of all shards in the folder, that needed first to that needed last in the first epoch."""
    entries = load_index(shards).shards("train")
    order = SampleOrder([entry.nsamples for entry in entries], 0, window)
    numbers = dict.fromkeys(place.shard for place in order.take(0, order.epoch_size))
    return [ShardUses(entries, order).name(number) for number in numbers]


@pytest.mark.process
def test_the_claim_of_a_killed_process_passes_to_one_that_was_there_before(memory: str, folder: Path):
    name = names_in_order(memory)[0]
    here = CacheFolder(folder, 10**6, IDLE)
    command = [sys.executable, "-c", CLAIM, str(folder), name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "Claim\n"
        assert here.claim(name, 1000, 0, lambda _name, _window: 0.0) is NotNow.FETCHED
        other.kill()
    assert isinstance(here.claim(name, 1000, 0, lambda _name, _window: 0.0), Claim)
    here.close()


def test_a_process_that_lives_but_writes_nothing_ends_the_wait(
    memory: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(stall, "WARN_AFTER", 0.1)
    monkeypatch.setattr(stall, "SLACK", 0.5)
    other = CacheFolder(folder, 10**9, IDLE)
    claim = other.claim(names_in_order(memory)[0], 1000, 0, lambda _name, _window: 0.0)
    with stream(memory, cached(folder, patience=0.0)) as there:
        with pytest.raises(OSError, match=rf"fetches it to {claim.path}, but has written nothing for 1 s: it may be"):
            next(there)
    other.close()
    assert "waiting for 0 s at most" in caplog.text


def test_threads_outlive_an_error_of_the_disk_that_passes(memory: str, local: str, folder: Path):
    small = {"batch_size": 1, "shuffle_window": 1}
    other = CacheFolder(folder, 10**9, IDLE)  # so that the stream leaves the verdicts as they are
    unreadable = [folder / f"{name}.bad" for name in names_in_order(memory, 1)[1:]]
    for path in unreadable:
        path.mkdir()
    before = set(threading.enumerate())
    with stream(memory, cached(folder, **small)) as there, stream(local, plain(**small)) as here:
        assert_same(next(there), next(here))
        started = set(threading.enumerate()) - before
        time.sleep(3 * shard_cache.POLL)
        assert all(thread.is_alive() for thread in started)
        for path in unreadable:
            path.rmdir()
        for found, expected in islice(zip(there, here), sum(SIZES)):
            assert_same(found, expected)
    other.close()


def test_a_wait_ends_when_no_thread_is_left_or_the_folder_fails(
    memory: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_arguments: object) -> None:
        raise OSError("no such disk")

    monkeypatch.setattr(shard_cache.ShardCache, "_advance", fail)
    with stream(memory, cached(folder)) as there:
        with pytest.raises(OSError, match=r"train-\d+.tar: the cache folder failed: no such disk"):
            next(there)
    monkeypatch.setattr(shard_cache.ShardCache, "_work", lambda _cache: None)
    with stream(memory, cached(folder)) as there:
        with pytest.raises(OSError, match=r"train-\d+.tar: the threads that fetch shards have ended"):
            next(there)


def test_a_stream_that_is_dropped_ends_its_threads_and_its_claim(memory: str, folder: Path):
    before = set(threading.enumerate())
    there = stream(memory, cached(folder))
    next(there)
    started = set(threading.enumerate()) - before
    assert len(started) > 2 and list(folder.glob(".*.needs"))
    del there
    gc.collect()
    for thread in started:
        thread.join(timeout=30)
        assert not thread.is_alive(), thread.name
    assert not list(folder.glob(".*.needs"))


def test_what_does_not_go_together_is_refused(local: str, folder: Path):
    with pytest.raises(ValidationError, match="on_bad_shard: skip needs cache"):
        plain(on_bad_shard="skip")
    with pytest.raises(ValueError, match="shards of this machine are read in place"):
        stream(local, cached(folder, on_bad_shard="skip"))
    with stream(local, cached(folder)) as here:
        next(here)
    assert not folder.exists()
