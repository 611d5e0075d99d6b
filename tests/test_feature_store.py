"""The zarr store by itself: what any reader sees, how little it reads, and what is refused."""

import json
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr
from folders import contents
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import LocalStore, WrapperStore

from mert_foundry.pipeline.features.plan import (
    FilePlace,
    SourceTrack,
    StoreLayout,
    frame_offsets,
    plan_frame_parts,
    plan_track_parts,
)
from mert_foundry.pipeline.features.resume import KIND, description_digest, find_finished, is_complete, prepare_store
from mert_foundry.pipeline.features.store import finish_store, publish_part
from mert_foundry.pipeline.storage import files

pytestmark = pytest.mark.filterwarnings("ignore:.*not part in the Zarr format 3 specification.*:UserWarning")

LAYOUT = StoreLayout(
    arrays=("features",),
    row="frame",
    rows=500,
    layers=(0, 2, 3),
    width=64,
    dtype="float16",
    part_rows=200,
    chunk_rows=50,
)
DESCRIPTION = {
    "kind": KIND,
    "schema_version": 1,
    "frame_rate": 75.0,
    "settings": {"dtype": "float16", "layers": [0, 2, 3]},
}
TABLE = {
    "key": ["first", "zweiter-ü"],
    "seconds": [3.0, 4.0],
    "offset": [0, 220],
    "length": [220, 280],
    "split": ["train", ""],
    "group": ["", "b"],
}


def values() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((500, 3, 64)).astype(np.float16)


def write(
    location: str, order: tuple[int, ...] = (0, 1, 2), finish: bool = True, description: dict = DESCRIPTION
) -> None:
    prepare_store(location, description, overwrite=False)
    digest = description_digest(description)
    for number in order:
        part = values()[200 * number : 200 * (number + 1)]
        publish_part(location, LAYOUT, number, {"features": part}, digest=digest, dropped={}, backend={"device": "cpu"})
    if finish:
        finish_store(location, LAYOUT, description, TABLE, {"first": "changed: once it was another"})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "a.zarr"
    write(str(folder))
    return folder


def test_zarr_reads_what_was_written(store: Path):
    group = zarr.open_group(store, mode="r")
    np.testing.assert_array_equal(group["features"][:], values())
    assert (
        group.metadata.zarr_format == 3
        and group.attrs["complete"]
        and group.attrs["settings"] == DESCRIPTION["settings"]
    )
    assert group["layer"][:].tolist() == [0, 2, 3]
    for name, column in TABLE.items():
        assert group[name][:].tolist() == column
    assert group["dropped"][:].tolist() == ["changed: once it was another", ""]
    assert group.attrs["dropped"] == {"changed": 1}


def test_xarray_knows_dimensions_and_coordinates(store: Path):
    import xarray

    dataset = xarray.open_zarr(store)
    assert dict(dataset.sizes) == {"frame": 500, "layer": 3, "dim": 64, "track": 2}
    assert set(dataset.coords) == {"layer", *TABLE, "dropped"} and list(dataset.data_vars) == ["features"]
    np.testing.assert_array_equal(dataset.features.sel(layer=2).values, values()[:, 1])


class CountingStore(WrapperStore):
    """Counts the bytes that zarr asks for."""

    read = 0

    async def get(self, *arguments, **keywords):
        buffer = await super().get(*arguments, **keywords)
        CountingStore.read += len(buffer) if buffer is not None else 0
        return buffer


@pytest.mark.parametrize(
    ("place", "most"),
    [
        ((slice(220, 500), slice(None)), 1.25),
        ((slice(None), 1), 1.25),
        ((slice(200, 250), 0), 1.25),
        ((slice(None), slice(None)), 1.1),
    ],
    ids=["one track", "one layer", "one chunk", "everything"],
)
def test_only_what_is_asked_for_is_read(store: Path, place: tuple, most: float):
    features = zarr.open_group(CountingStore(LocalStore(store, read_only=True)), mode="r")["features"]
    CountingStore.read = 0
    found = features[place]
    np.testing.assert_array_equal(found, values()[place])
    shard_indices = 3 * (16 * 12 + 4)
    assert 0.8 * found.nbytes < CountingStore.read <= most * found.nbytes + shard_indices


def test_chunks_are_zstd_within_one_shard_a_part(store: Path):
    metadata = json.loads((store / "features" / "zarr.json").read_text())
    (sharding,) = metadata["codecs"]
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [200, 3, 64]
    assert sharding["name"] == "sharding_indexed" and sharding["configuration"]["chunk_shape"] == [50, 1, 64]
    assert [codec["name"] for codec in sharding["configuration"]["codecs"]] == ["bytes", "zstd"]
    assert metadata["dimension_names"] == ["frame", "layer", "dim"]
    assert sorted(path.name for path in (store / "features" / "c").iterdir()) == ["0", "1", "2"]


def test_bytes_do_not_depend_on_the_order_of_parts_or_the_file_system(store: Path, tmp_path: Path):
    write(str(tmp_path / "b.zarr"), (2, 0, 1))
    assert contents(tmp_path / "b.zarr") == contents(store)
    write("memory://feature-store/c.zarr", (1, 2, 0))
    memory = fsspec.filesystem("memory")
    found = {
        path.removeprefix("/feature-store/c.zarr/"): memory.cat(path) for path in memory.find("/feature-store/c.zarr")
    }
    assert found == contents(store)


def test_arrays_appear_with_the_last_step_and_a_torn_part_is_missing(tmp_path: Path):
    location = str(tmp_path / "a.zarr")
    digest = description_digest(DESCRIPTION)
    write(location, (0, 1), finish=False)
    assert list(zarr.open_group(location, mode="r").array_keys()) == [] and not is_complete(location)
    assert list(find_finished(location, LAYOUT, digest)) == [0, 1]
    assert find_finished(location, LAYOUT, "another") == {}
    (tmp_path / "a.zarr" / "features" / "c" / "0" / "0" / "0").write_bytes(b"torn")
    assert list(find_finished(location, LAYOUT, digest)) == [1]
    (tmp_path / "a.zarr" / "parts" / "000001.json").write_text('{"part": 1')
    assert find_finished(location, LAYOUT, digest) == {}


def test_rows_without_features_are_nan_and_take_no_space(tmp_path: Path):
    location = str(tmp_path / "a.zarr")
    prepare_store(location, DESCRIPTION, overwrite=False)
    digest = description_digest(DESCRIPTION)
    for number, rows in enumerate((200, 200, 100)):
        record = publish_part(location, LAYOUT, number, LAYOUT.empty_part(rows), digest=digest, dropped={}, backend={})
        assert record.files == {}
    assert len(find_finished(location, LAYOUT, digest)) == 3
    finish_store(location, LAYOUT, DESCRIPTION, TABLE, {})
    assert np.isnan(zarr.open_group(location, mode="r")["features"][:]).all()


def test_another_description_is_refused_until_told(store: Path, tmp_path: Path):
    location = str(tmp_path / "a.zarr")
    write(location)
    before = contents(tmp_path / "a.zarr")
    prepare_store(location, DESCRIPTION, overwrite=True)  # the same store: there is nothing to replace
    assert contents(tmp_path / "a.zarr") == before == contents(store)
    other = DESCRIPTION | {"settings": {"dtype": "float32", "layers": [0, 2, 3]}}
    with pytest.raises(ValueError, match="settings.dtype 'float16', now it is 'float32'; overwrite=true") as error:
        prepare_store(location, other, overwrite=False)
    assert location in str(error.value) and contents(tmp_path / "a.zarr") == before
    prepare_store(location, other, overwrite=True)
    assert list(contents(tmp_path / "a.zarr")) == ["zarr.json"] and not is_complete(location)
    assert find_finished(location, LAYOUT, description_digest(other)) == {}


@pytest.mark.parametrize(
    "content", ['{"zarr_format": 3, "attributes": {}}', "no json", '{"attributes": {"kind": "x", "schema_version": 1}}']
)
def test_a_folder_that_is_no_feature_store_is_left_alone(tmp_path: Path, content: str):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="notes.txt in it and no zarr.json"):
        prepare_store(str(tmp_path), DESCRIPTION, overwrite=True)
    (tmp_path / "zarr.json").write_text(content)
    with pytest.raises(ValueError, match="not mert-features"):
        prepare_store(str(tmp_path), DESCRIPTION, overwrite=True)
    assert set(contents(tmp_path)) == {"notes.txt", "zarr.json"} and not files.exists(str(tmp_path / "parts"))


def source_track(number: int) -> SourceTrack:
    return SourceTrack(key=f"t{number:03d}", num_samples=320, split="", group="", place=FilePlace(row={}))


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=12), part_rows=st.integers(1, 60))
def test_parts_hold_every_frame_once_and_in_place(lengths: list[int], part_rows: int):
    tracks = [source_track(number) for number in range(len(lengths))]
    offsets = frame_offsets(lengths)
    rows = []
    for part in plan_frame_parts(tracks, lengths, part_rows, 75.0):
        assert part.rows <= part_rows and part.seconds == pytest.approx(part.rows / 75)
        for span in part.spans:
            track = tracks.index(span.track)
            first = part.number * part_rows + span.row
            assert first == offsets[track] + span.start and span.stop <= lengths[track]
            rows.extend(range(first, first + span.stop - span.start))
    assert rows == list(range(sum(lengths)))


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=12), part_rows=st.integers(1, 5))
def test_pooled_parts_hold_every_track_once(lengths: list[int], part_rows: int):
    tracks = [source_track(number) for number in range(len(lengths))]
    parts = plan_track_parts(tracks, lengths, part_rows, 75.0)
    rows = [part.number * part_rows + span.row for part in parts for span in part.spans]
    assert rows == list(range(len(tracks))) and sum(part.rows for part in parts) == len(tracks)
    assert [(span.start, span.stop) for part in parts for span in part.spans] == [(0, length) for length in lengths]
