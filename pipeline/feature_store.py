"""Features of many tracks as one zarr v3 group, written part by part; any zarr reader, and xarray, opens it.

    features  [frame, layer, dim]      every frame of every track, one track behind the other; or, when pooled,
    mean      [track, layer, dim]      mean over a track's frames, and on request
    deviation [track, layer, dim]      standard deviation over a track's frames
    layer     [layer]                  which hidden states
    key, seconds, offset, length, split, group, dropped   [track]   the track table; offset and length in frames

A track in `dropped` (it says why; empty otherwise) has rows of NaN. A shard of an array holds one part, all layers; a
chunk within it one layer of some rows: one track, one layer or everything is read without much else. Chunks are
zstd-compressed. Attributes tell model, settings, frame rate and where windows were joined.

Arrays appear when everything is there: until then the root says `complete: false` and holds only attributes, beside
chunks and the records `parts/{part}.json`. A part's record is written last and names its files with their SHA-256.
"""

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import zarr
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from pipeline import storage
from pipeline.folder_kinds import FEATURES, check_output

SCHEMA_VERSION = 1
KIND = "mert-features"
PARTS = "parts"
ROOT = FEATURES.marker
ZSTD_LEVEL = 3
THREADS = 16  # that wait for an object store
# What the root's attributes say of the state of the store; the others say what it is.
STATE = ("complete", "dropped", "coordinates")
TABLE = {"key": str, "seconds": "float64", "offset": "int64", "length": "int64", "split": str, "group": str, "dropped": str}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoreLayout(_Model):
    """Names, shapes and storage of the feature arrays."""

    arrays: tuple[str, ...] = Field(description="Names of the arrays")
    row: Literal["frame", "track"] = Field(description="What a row is")
    rows: int = Field(gt=0, description="Rows in all")
    layers: tuple[int, ...] = Field(description="Hidden states that are kept")
    width: int = Field(gt=0, description="Features of a layer")
    dtype: Literal["float16", "float32"] = Field(description="As stored")
    part_rows: int = Field(gt=0, description="Rows of a part, a multiple of chunk_rows")
    chunk_rows: int = Field(gt=0, description="Rows of a chunk")

    @property
    def num_parts(self) -> int:
        """Parts that the rows make."""
        return -(-self.rows // self.part_rows)

    def empty_part(self, rows: int) -> dict[str, np.ndarray]:
        """Arrays for the rows of a part, all NaN."""
        return {name: np.full((rows, len(self.layers), self.width), np.nan, self.dtype) for name in self.arrays}


class PartRecord(_Model):
    """What a finished part wrote."""

    schema_version: Literal[SCHEMA_VERSION] = Field(description="Form of this record")
    part: int = Field(ge=0, description="Number of the part")
    store: str = Field(description="SHA-256 of what the store is: `description_digest`")
    files: dict[str, tuple[int, str]] = Field(description="Files by place in the store: bytes, SHA-256")
    dropped: dict[str, str] = Field(description="Tracks that could not be used, by key: reason and detail")
    backend: dict[str, JsonValue] = Field(description="What computed it; never read by this project's code")


def description_digest(description: Mapping[str, Any]) -> str:
    """SHA-256 of the attributes that say what a store is."""
    return hashlib.sha256(storage.json_bytes(dict(description))).hexdigest()


def refuse_other_folder(location: str) -> None:
    """Raise FolderError or ValueError when something is there that is no feature store; writes nothing."""
    _read_root(location)


def prepare_store(location: str, description: Mapping[str, Any], replace: bool) -> None:
    """Make the store, or find that what is there goes on as it stands. One process at a time.

    Args:
        location: local path or fsspec URL.
        description: the attributes that say what the store is, as JSON has them.
        replace: throw away a store made with another description.

    Raises:
        FolderError: a folder of another kind.
        ValueError: without `replace`, a store of another description, naming the first key with both values; a
            folder that is no feature store.
    """
    found = _read_root(location)
    if storage.is_local(location):
        for leftover in storage.local_path(location).rglob(".*.tmp"):  # of killed writers
            leftover.unlink()
    if found is None:
        _publish_root(location, {**description, "complete": False})
        return
    before = {key: value for key, value in found.items() if key not in STATE}
    difference = _first_difference(before, dict(description))
    if difference is None:
        return
    if not replace:
        raise ValueError(f"{location}: made with {difference}; replace=true throws it away")
    # While it is being taken apart it still says what it was, so that a kill leaves nothing that looks new.
    _publish_root(location, {**before, "complete": False})
    _remove_content(location)
    _publish_root(location, {**description, "complete": False})


def reopen_store(location: str, description: Mapping[str, Any]) -> None:
    """Say that parts are missing, before they are made again."""
    _publish_root(location, {**description, "complete": False})


def is_complete(location: str) -> bool:
    """Whether the store is there and finished."""
    found = _read_root(location)
    return found is not None and found["complete"]


def find_finished(location: str, layout: StoreLayout, digest: str) -> dict[int, PartRecord]:
    """Records, by part, of this store (`digest` is its description's) whose files are there in the recorded size."""
    def load(number: int) -> PartRecord | None:
        record = _load_record(location, number)
        return record if record is not None and record.store == digest and _has_files(location, record) else None

    with ThreadPoolExecutor(THREADS) as threads:
        records = threads.map(load, range(layout.num_parts))
        return {record.part: record for record in records if record is not None}


def publish_part(
    location: str,
    layout: StoreLayout,
    number: int,
    arrays: Mapping[str, np.ndarray],
    *,
    digest: str,
    dropped: Mapping[str, str],
    backend: Mapping[str, JsonValue],
) -> PartRecord:
    """Write the shards of a part, then its record. `arrays` are as `layout.empty_part` gives them, filled."""
    encoded: dict[str, Any] = {}
    first = number * layout.part_rows
    with _quiet():
        created = _create_arrays(zarr.create_group(MemoryStore(encoded)), layout)
        for name, values in arrays.items():
            created[name][first : first + len(values)] = values
    files = {}
    for place, buffer in sorted(encoded.items()):
        if not place.endswith(ROOT):
            content = buffer.to_bytes()
            storage.publish_bytes(storage.join(location, place), content)
            files[place] = (len(content), hashlib.sha256(content).hexdigest())
    record = PartRecord(
        schema_version=SCHEMA_VERSION, part=number, store=digest, files=files, dropped=dict(dropped), backend=dict(backend)
    )
    storage.publish_bytes(_record_location(location, number), storage.json_bytes(record.model_dump(mode="json")))
    return record


def finish_store(
    location: str, layout: StoreLayout, description: Mapping[str, Any], table: Mapping[str, Sequence], dropped: Mapping[str, str]
) -> None:
    """Write track table and array metadata, then the root that says `complete: true`. Every part must be finished.

    Args:
        table: columns of TABLE but `dropped`, a value a track.
        dropped: tracks that could not be used, by key, as the parts' records have them.
    """
    columns = {**table, "dropped": [dropped.get(key, "") for key in table["key"]]}
    reasons = sorted(text.split(":")[0] for text in columns["dropped"] if text)
    state = {
        "complete": True,
        "dropped": {reason: reasons.count(reason) for reason in reasons},
        "coordinates": " ".join(name for name in TABLE),  # xarray's: the table belongs to its tracks
    }
    encoded: dict[str, Any] = {}
    with _quiet():
        memory = MemoryStore(encoded)
        group = zarr.create_group(memory, attributes={**description, **state})
        _create_arrays(group, layout)
        _create_column(group, "layer", "layer", "int64", layout.layers)
        for name, kind in TABLE.items():
            _create_column(group, name, "track", kind, columns[name])
        zarr.consolidate_metadata(memory)
    root = json.loads(encoded.pop(ROOT).to_bytes())
    # zarr lists arrays in the order in which its threads come to them.
    arrays = root["consolidated_metadata"]["metadata"]
    root["consolidated_metadata"]["metadata"] = dict(sorted(arrays.items()))
    for place, buffer in sorted(encoded.items()):
        storage.publish_bytes(storage.join(location, place), buffer.to_bytes())
    storage.publish_bytes(storage.join(location, ROOT), json.dumps(root, indent=2).encode())


def _create_arrays(group: zarr.Group, layout: StoreLayout) -> dict[str, zarr.Array]:
    columns = (len(layout.layers), layout.width)
    return {
        name: group.create_array(
            name,
            shape=(layout.rows, *columns),
            shards=(layout.part_rows, *columns),
            chunks=(layout.chunk_rows, 1, layout.width),
            dtype=layout.dtype,
            compressors=[ZstdCodec(level=ZSTD_LEVEL)],
            fill_value=float("nan"),
            dimension_names=(layout.row, "layer", "dim"),
        )
        for name in layout.arrays
    }


def _create_column(group: zarr.Group, name: str, dimension: str, kind: type | str, values: Sequence) -> None:
    column = group.create_array(
        name, shape=(len(values),), chunks=(len(values),), dtype=kind, compressors=[ZstdCodec(level=ZSTD_LEVEL)],
        dimension_names=(dimension,), config={"write_empty_chunks": True},
    )
    column[:] = np.array([_unicode(value) for value in values], object) if kind is str else np.array(values, kind)


def _unicode(text: str) -> str:
    """Text that UTF-8 can hold: bytes of a file name that are none, such as Latin-1's, as escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Text columns and consolidated metadata are conventions of zarr v3 that its core text does not have yet."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*not part in the Zarr format 3 specification.*", UserWarning)
        yield


def _publish_root(location: str, attributes: Mapping[str, Any]) -> None:
    content = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    storage.publish_bytes(storage.join(location, ROOT), json.dumps(content, indent=2).encode())


def _read_root(location: str) -> dict[str, Any] | None:
    """The attributes of the store; None when there is nothing at all. Raises ValueError when it is something else,
    FolderError when that is another kind of folder.
    """
    try:
        content = storage.read_bytes(storage.join(location, ROOT))
    except FileNotFoundError:
        check_output(location, FEATURES)
        if others := [name for name in _list_entries(location) if name != PARTS and not name.startswith(".")]:
            raise ValueError(f"{location}: a folder with {others[0]} in it and no {ROOT}, not a feature store") from None
        return None
    try:
        attributes = json.loads(content)["attributes"]
        if attributes["kind"] != KIND or attributes["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"{attributes['kind']} of schema version {attributes['schema_version']}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{location}/{ROOT}: not {KIND} of schema version {SCHEMA_VERSION} ({error})") from error
    return attributes


def _list_entries(location: str) -> list[str]:
    """Sorted names of files and folders right in a location; none when it does not exist."""
    filesystem, path = storage.open_filesystem(location)
    entries = filesystem.ls(path, detail=False) if filesystem.isdir(path) else []
    return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)


def _remove_content(location: str) -> None:
    """Remove all of a store but its root and the folder of records."""
    for name in storage.list_names(storage.join(location, PARTS)):
        if name.endswith(".json"):
            storage.remove(storage.join(location, PARTS, name))
    filesystem, path = storage.open_filesystem(location)
    for name in _list_entries(location):
        if name not in (ROOT, PARTS):
            filesystem.rm(storage.join(path, name), recursive=True)


def _first_difference(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> str | None:
    """`key value, now value` of the first key that differs, dotted; None when all are alike."""
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if inner := _first_difference(old, new, f"{prefix}{key}."):
                return inner
        elif old != new:
            return f"{prefix}{key} {old!r}, now it is {new!r}"
    return None


def _record_location(location: str, number: int) -> str:
    return storage.join(location, PARTS, f"{number:06d}.json")


def _load_record(location: str, number: int) -> PartRecord | None:
    """The record of a part; None when there is none that can be read."""
    try:
        return PartRecord.model_validate_json(storage.read_bytes(_record_location(location, number)))
    except (FileNotFoundError, ValidationError):
        return None


def _has_files(location: str, record: PartRecord) -> bool:
    try:
        return all(storage.size(storage.join(location, place)) == size for place, (size, _) in record.files.items())
    except FileNotFoundError:
        return False
