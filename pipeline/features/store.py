"""Features of many tracks as one zarr v3 group, written part by part; any zarr reader, and xarray, opens it.

    features  [frame, layer, dim]      every frame of every track, one track after the other; or, when pooled,
    mean      [track, layer, dim]      mean over a track's frames, and on request
    std       [track, layer, dim]      standard deviation over a track's frames (`deviation` in older stores)
    layer     [layer]                  which hidden states
    key, seconds, offset, length, split, group, dropped   [track]   the track table; offset and length in frames
    path and columns of the input's own                   [track]   with them, where the input has them

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
from typing import Any

import numpy as np
import zarr
from pydantic import JsonValue
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from mert_foundry.pipeline.features.plan import StoreLayout
from mert_foundry.pipeline.features.resume import ROOT, SCHEMA_VERSION, PartRecord, record_location
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.documents import json_bytes

ZSTD_LEVEL = 3
TABLE: dict[str, type | str] = {
    "key": str,
    "seconds": "float64",
    "offset": "int64",
    "length": "int64",
    "split": str,
    "group": str,
    "dropped": str,
}


def publish_part(
    location: str,
    layout: StoreLayout,
    number: int,
    arrays: Mapping[str, np.ndarray],
    *,
    digest: str,
    dropped: Mapping[str, str],
    backend: Mapping[str, JsonValue],
    samples: Mapping[str, int] | None = None,
) -> PartRecord:
    """Write the shards of a part, then its record. `arrays` are as `layout.empty_part` gives them, filled.

    `samples`: of tracks whose length was not known, or another one, when the part was planned.
    """
    published: dict[str, tuple[int, str]] = {}
    for path, content in _encode_part(layout, number, arrays):
        files.publish_bytes(files.join(location, path), content)
        published[path] = (len(content), hashlib.sha256(content).hexdigest())
    record = PartRecord(
        schema_version=SCHEMA_VERSION,
        part=number,
        store=digest,
        files=published,
        dropped=dict(dropped),
        backend=dict(backend),
        samples=dict(samples or {}),
    )
    files.publish_bytes(record_location(location, number), json_bytes(record.model_dump(mode="json")))
    return record


def _encode_part(layout: StoreLayout, number: int, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, bytes]]:
    """Path in the store and content of each shard of a part."""
    encoded: dict[str, Any] = {}
    first = number * layout.part_rows
    with _quiet():
        created = _create_arrays(zarr.create_group(MemoryStore(encoded)), layout)
        for name, values in arrays.items():
            created[name][first : first + len(values)] = values
    for path, buffer in sorted(encoded.items()):
        if not path.endswith(ROOT):
            yield path, buffer.to_bytes()


def finish_store(
    location: str,
    layout: StoreLayout,
    description: Mapping[str, Any],
    table: Mapping[str, Sequence],
    dropped: Mapping[str, str],
) -> None:
    """Write track table and array metadata, then the root that says `complete: true`. Every part must be finished.

    Args:
        table: columns of TABLE but `dropped`, and any others, a value a track.
        dropped: tracks that could not be used, by key, as the parts' records have them.
    """
    columns = {**table, "dropped": [dropped.get(key, "") for key in table["key"]]}
    names = [*TABLE, *(name for name in table if name not in TABLE)]
    state = final_state(layout, columns, names)
    encoded: dict[str, Any] = {}
    with _quiet():
        memory = MemoryStore(encoded)
        group = zarr.create_group(memory, attributes={**description, **state})
        _create_arrays(group, layout)
        _create_column(group, "layer", "layer", "int64", layout.layers)
        for name in names:
            _create_column(group, name, "track", TABLE.get(name) or column_kind(columns[name]), columns[name])
        zarr.consolidate_metadata(memory)
    root = json.loads(encoded.pop(ROOT).to_bytes())
    # zarr lists arrays in the order in which its threads come to them.
    arrays = root["consolidated_metadata"]["metadata"]
    root["consolidated_metadata"]["metadata"] = dict(sorted(arrays.items()))
    for path, buffer in sorted(encoded.items()):
        files.publish_bytes(files.join(location, path), buffer.to_bytes())
    files.publish_bytes(files.join(location, ROOT), json.dumps(root, indent=2).encode())


def final_state(layout: StoreLayout, columns: Mapping[str, Sequence], names: Sequence[str]) -> dict[str, Any]:
    """What the root of a finished store says beside its description."""
    reasons = sorted(text.split(":")[0] for text in columns["dropped"] if text)
    state: dict[str, Any] = {
        "complete": True,
        "dropped": {reason: reasons.count(reason) for reason in reasons},
        "coordinates": " ".join(names),  # xarray's: the table belongs to its tracks
        "table_sha256": table_digest(columns),
    }
    missing = layout.rows - sum(columns["length"]) if layout.row == "frame" else 0
    return state | ({"missing_frames": missing} if missing else {})


def table_digest(columns: Mapping[str, Sequence]) -> str:
    """SHA-256 of the columns of a track table but `dropped`, by which a table of other labels is known."""
    own = {name: list(values) for name, values in sorted(columns.items()) if name != "dropped"}
    return hashlib.sha256(json.dumps(own).encode()).hexdigest()


def column_kind(values: Sequence) -> type | str:
    """How a column of values of one type is stored."""
    first = values[0] if values else ""
    kinds: dict[type, type | str] = {bool: "bool", int: "int64", float: "float64", str: str}
    return kinds[type(first)]


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
        name,
        shape=(len(values),),
        chunks=(len(values),),
        dtype=kind,
        compressors=[ZstdCodec(level=ZSTD_LEVEL)],
        dimension_names=(dimension,),
        config={"write_empty_chunks": True},
    )
    column[:] = np.array([_unicode(value) for value in values], object) if kind is str else np.array(values, kind)


def _unicode(text: str) -> str:
    """Text that UTF-8 can hold: bytes of a file name that are none, such as Latin-1's, and halves of
    pairs, as escapes.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Text columns and consolidated metadata are conventions of zarr v3 that its core text does not have yet."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*not part in the Zarr format 3 specification.*", UserWarning)
        yield
