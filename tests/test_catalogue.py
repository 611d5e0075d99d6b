"""Which shards are finished, and the index, from few requests: the same as from all records, whatever changed in
between.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import many_shards
import numpy as np
import pytest
from loopback_store import LoopbackStore
from shard_fixtures import CODES, CQT, SPECS, index_shards, make_track, write_examples

from mert_foundry.pipeline.shards.catalogue import read_catalogue
from mert_foundry.pipeline.shards.record import load_record
from mert_foundry.pipeline.shards.record_sums import add_sums, parse_sums, summarise_record
from mert_foundry.pipeline.shards.set_statistics import sum_records
from mert_foundry.pipeline.storage.folder_kinds import FolderError

NAMES = [f"{split}-{number:06d}" for split in ("train", "valid") for number in range(20)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty shards of one track each; read only."""
    folder = tmp_path_factory.mktemp("shards")
    for number, name in enumerate(NAMES):
        write_examples(folder, name, make_track(f"t{number}", 20 + number, 7))
    return folder


@pytest.fixture
def shards(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "shards"))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackStore]:
    """An S3 store that counts requests; the environment points to it."""
    import s3fs

    store = LoopbackStore()
    with store.serving() as address:
        for name, value in {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield store
        s3fs.S3FileSystem.clear_instance_cache()


def known(folder: object) -> dict[str, str]:
    """What a new reader knows of the finished shards: name to digest of the record."""
    catalogue = read_catalogue(str(folder))
    return {name: found[0].record_sha256 for name in NAMES if (found := catalogue.find(name))}


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read from now on."""
    from mert_foundry.pipeline.storage import files

    read, read_bytes = [], files.read_bytes

    def counted(location: str) -> bytes:
        read.append(location.rpartition("/")[2])
        return read_bytes(location)

    monkeypatch.setattr(files, "read_bytes", counted)
    return read


@pytest.mark.s3
def test_state_and_index_of_an_object_store_take_few_requests(made: Path, store: LoopbackStore):
    for path in made.iterdir():
        store.add(f"shards/{path.name}", path.stat().st_size, path.read_bytes())
    folder = "s3://bucket/shards"
    first = read_catalogue(folder)
    assert store.requests["get"] == len(NAMES)
    first.publish()
    store.requests.clear()
    assert known(folder) == known(made) and store.requests["get"] == 1
    assert store.requests.total() <= 6
    store.requests.clear()
    assert index_shards(folder, NAMES) == index_shards(made, NAMES)
    assert store.requests["get"] == 1 and store.requests["put"] == 1


@pytest.mark.s3
def test_the_measured_set_is_one_that_labelling_would_write(store: LoopbackStore):
    """Of `many_shards.py`: its documents say what its records say."""
    count, folder = 12, "s3://bucket/shards"
    many_shards.fill(store, count, with_documents=True)
    tasks = many_shards.make_tasks(count)
    assert many_shards.find_state(folder, tasks) == 0
    digest = many_shards.make_index(folder, tasks)
    assert store.requests["get"] == 2  # the document, twice
    for key in [key for key in store.names() if "/.records/" in key or key.endswith("index.json")]:
        del store.sizes[key], store.contents[key]
    store.add("shards/other.txt", 0, b"")  # which sorts the names again
    assert many_shards.make_index(folder, tasks) == digest and store.requests["get"] == 2 + count


def test_the_index_is_that_of_the_records_in_whatever_order_they_came(shards: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mert_foundry.pipeline.shards.catalogue.MOST_SHARDS", 7)
    expected = index_shards(shards, NAMES).to_bytes()
    order = random.Random(0).sample(NAMES, len(NAMES))
    for start in range(0, len(order), 11):  # as a job that is stopped now and then
        catalogue = read_catalogue(str(shards))
        catalogue.forget(order[start:])
        for name in order[start : start + 11]:
            catalogue.add(summarise_record(load_record(str(shards), name)))
        catalogue.publish()
    documents = [parse_sums(path.name, path.read_bytes()) for path in (shards / ".records").iterdir()]
    assert sorted(state.name for sums in documents for state in sums.shards) == sorted(NAMES)
    assert max(len(sums.shards) for sums in documents) <= 7
    read = count_reads(monkeypatch)
    assert index_shards(shards, NAMES).to_bytes() == expected
    assert not [name for name in read if name.startswith(("train", "valid"))]
    few = NAMES[3:30]
    shutil.copytree(shards, shards.parent / "alone", ignore=shutil.ignore_patterns(".records"))
    assert index_shards(shards, few) == index_shards(shards.parent / "alone", few)


def test_sums_are_those_of_the_records_added_one_by_one_to_the_last_bit(tmp_path: Path):
    rng = np.random.default_rng(0)
    records = []
    for number in range(30):
        track = make_track(f"t{number}", 50)
        values = (rng.standard_normal((50, 4)) * 10.0 ** rng.integers(-3, 3)).astype(np.float16)
        object.__setattr__(track[0], "targets", {**track[0].targets, "cqt": values})
        records.append(write_examples(tmp_path, f"train-{number:06d}", track))
    naive, _ = sum_records(SPECS, records)
    kept = [parse_sums("", summarise_record(record).to_bytes()) for record in records]
    assert add_sums(sums.shards[0].sums[CQT.name] for sums in kept) == naive[CQT.name]
    assert sum(sums.counts[CODES.name] for sums in kept).tolist() == naive[CODES.name].counts


def replace_record(folder: Path, name: str) -> None:
    """Another record of the same size."""
    path = folder / f"{name}.json"
    text = path.read_text()
    digest = json.loads(text)["sha256"]
    path.write_text(text.replace(digest, digest[::-1]))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a record is gone": lambda folder: (folder / "train-000003.json").unlink(),
    "a record is longer": lambda folder: (folder / "train-000003.json").open("a").write(" "),
    "a document is damaged": lambda folder: next((folder / ".records").iterdir()).write_bytes(b"{}"),
    "a document is cut": lambda folder: next((folder / ".records").iterdir()).write_bytes(b""),
    "a copy of a document": lambda folder: shutil.copy(next((folder / ".records").iterdir()), folder / ".records" / f"{0:016}.json"),  # noqa: E501
    "no document": lambda folder: shutil.rmtree(folder / ".records"),
    "a new shard": lambda folder: write_examples(folder, "train-000003", make_track("other", 90)),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_read_again(shards: Path, change: str):
    read_catalogue(str(shards)).publish()
    CHANGES[change](shards)
    shutil.copytree(shards, shards.parent / "alone", ignore=shutil.ignore_patterns(".records"))
    assert known(shards) == known(shards.parent / "alone")
    catalogue = read_catalogue(str(shards))
    catalogue.publish()
    assert len(list((shards / ".records").iterdir())) == 1
    there = [name for name in NAMES if catalogue.find(name)]
    assert index_shards(shards, there) == index_shards(shards.parent / "alone", there)


def test_shards_about_to_change_are_taken_out_before(made: Path, shards: Path):
    """So a record of the same size that replaces one is not taken for it."""
    read_catalogue(str(shards)).publish()
    catalogue = read_catalogue(str(shards))
    catalogue.forget(NAMES[:2])
    assert not list((shards / ".records").iterdir()) and catalogue.find(NAMES[0]) is None
    catalogue.publish()
    replace_record(shards, NAMES[0])
    digest = hashlib.sha256((shards / f"{NAMES[0]}.json").read_bytes()).hexdigest()
    assert known(shards) == known(made) | {NAMES[0]: digest} and digest != known(made)[NAMES[0]]


def test_documents_that_cannot_be_written_are_written_later_each_shard_once(
    shards: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mert_foundry.pipeline.shards.catalogue.MOST_SHARDS", 16)
    catalogue = read_catalogue(str(shards))
    full = shards / ".records"
    full.touch()  # in the place of the folder
    with pytest.raises(OSError):
        catalogue.publish()
    full.unlink()
    catalogue.publish()
    catalogue.publish()
    assert sum(len(sums.shards) for sums in read_catalogue(str(shards)).documents.values()) == len(NAMES)
    assert len(list(full.iterdir())) == 3


def test_a_file_of_others_among_records_is_named(shards: Path):
    read_catalogue(str(shards)).publish()
    (shards / "train-000099.json").write_text("[1]")
    with pytest.raises(FolderError, match=r"train-000099\.json was not written by mert label: it is no JSON object"):
        read_catalogue(str(shards))
