"""How far a feature store is: its root, its finished parts, and whether another store or folder is there."""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationError

from mert_foundry.pipeline.features.older_names import present_names
from mert_foundry.pipeline.features.plan import StoreLayout
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.documents import Document, first_difference, json_bytes
from mert_foundry.pipeline.storage.folder_kinds import FEATURES, check_output

SCHEMA_VERSION = 1
KIND = "mert-features"
PARTS = "parts"
ROOT = FEATURES.marker
THREADS = 16  # that wait for an object store
# What the root's attributes say of the state of the store; the others say what it is.
STATE = ("complete", "dropped", "coordinates", "table_sha256", "missing_frames")


class PartRecord(Document):
    """What a finished part wrote."""

    schema_version: Literal[1] = Field(description="Form of this record")
    part: int = Field(ge=0, description="Number of the part")
    store: str = Field(description="SHA-256 of what the store is: `description_digest`")
    files: dict[str, tuple[int, str]] = Field(description="Files by path in the store: bytes, SHA-256")
    dropped: dict[str, str] = Field(description="Tracks that could not be used, by key: reason and detail")
    backend: dict[str, JsonValue] = Field(description="What computed it; never read by this project's code")
    samples: dict[str, int] = Field(
        default={}, description="Samples of tracks whose length was not known, or another one, before they were decoded"
    )


def description_digest(description: Mapping[str, Any]) -> str:
    """SHA-256 of the attributes that say what a store is."""
    return hashlib.sha256(json_bytes(dict(description))).hexdigest()


def refuse_other_folder(location: str) -> None:
    """Raise FolderError or ValueError when something is there that is no feature store; writes nothing."""
    _read_root(location)


def description_as_stored(location: str, description: Mapping[str, Any]) -> dict[str, Any]:
    """The description in the names of the store that is there, if that says the same in older names; else
    `description`.

    Raises as `refuse_other_folder`.
    """
    found = _read_root(location)
    if found is not None and present_names(before := _without_state(found)) == description:
        return before
    return dict(description)


def has_description(location: str, description: Mapping[str, Any]) -> bool:
    """Whether the store that is there has this description, in present or older names."""
    found = _read_root(location)
    return found is not None and present_names(_without_state(found)) == description


def prepare_store(location: str, description: Mapping[str, Any], overwrite: bool) -> None:
    """Make the store, or find that the one that is there can go on. One process at a time.

    Args:
        location: local path or fsspec URL.
        description: the attributes that say what the store is, as JSON has them.
        overwrite: throw away a store made with another description.

    Raises:
        FolderError: a folder of another kind.
        ValueError: without `overwrite`, a store of another description, naming the first key with both values; a
            folder that is no feature store.
    """
    found = _read_root(location)
    if files.is_local(location):
        for leftover in files.local_path(location).rglob(".*.tmp"):  # of killed writers
            leftover.unlink()
    if found is None:
        _publish_root(location, {**description, "complete": False})
        return
    before = _without_state(found)
    difference = first_difference(present_names(before), present_names(description))
    if difference is None:
        return
    if not overwrite:
        raise ValueError(f"{location}: made with {difference}; overwrite=true throws it away")
    # Until its content is removed the store keeps its old description, so that a kill leaves no old parts in a new
    # store.
    _publish_root(location, {**before, "complete": False})
    _remove_content(location)
    _publish_root(location, {**description, "complete": False})


def reopen_store(location: str, description: Mapping[str, Any]) -> None:
    """Mark the store as incomplete before missing parts are computed."""
    _publish_root(location, {**description, "complete": False})


def is_complete(location: str) -> bool:
    """Whether the store is there and finished."""
    found = _read_root(location)
    return found is not None and found["complete"]


def has_table(location: str, digest: str) -> bool:
    """Whether the store is finished with the track table of this digest (`table_digest`)."""
    found = _read_root(location)
    return found is not None and found["complete"] and found.get("table_sha256") == digest


def stored_part_rows(location: str) -> int | None:
    """Rows of a part of the store that is there; None when there is none. Raises as `refuse_other_folder`."""
    found = _read_root(location)
    return None if found is None else found.get("settings", {}).get("part_rows")


def find_finished(location: str, layout: StoreLayout, digest: str) -> dict[int, PartRecord]:
    """Records, by part, of this store (`digest` is its description's) whose files are there in the recorded size."""

    def load(number: int) -> PartRecord | None:
        record = _load_record(location, number)
        return record if record is not None and record.store == digest and _has_files(location, record) else None

    with ThreadPoolExecutor(THREADS) as threads:
        records = threads.map(load, range(layout.num_parts))
        return {record.part: record for record in records if record is not None}


def _publish_root(location: str, attributes: Mapping[str, Any]) -> None:
    content = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    files.publish_bytes(files.join(location, ROOT), json.dumps(content, indent=2).encode())


def _read_root(location: str) -> dict[str, Any] | None:
    """The attributes of the store; None when there is nothing at all. Raises ValueError when it is something else,
    FolderError when that is another kind of folder.
    """
    try:
        content = files.read_bytes(files.join(location, ROOT))
    except FileNotFoundError:
        check_output(location, FEATURES)
        if others := [name for name in _list_entries(location) if name != PARTS and not name.startswith(".")]:
            raise ValueError(
                f"{location}: a folder with {others[0]} in it and no {ROOT}, not a feature store"
            ) from None
        return None
    try:
        attributes = json.loads(content)["attributes"]
        if attributes["kind"] != KIND or attributes["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"{attributes['kind']} of schema version {attributes['schema_version']}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{location}/{ROOT}: not {KIND} of schema version {SCHEMA_VERSION} ({error})") from error
    return attributes


def _without_state(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What the attributes of a store say it is."""
    return {key: value for key, value in attributes.items() if key not in STATE}


def _list_entries(location: str) -> list[str]:
    """Sorted names of files and folders right in a location; none when it does not exist."""
    filesystem, path = files.open_filesystem(location)
    entries = filesystem.ls(path, detail=False) if filesystem.isdir(path) else []
    return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)


def _remove_content(location: str) -> None:
    """Remove all of a store but its root and the folder of records."""
    for name in files.list_names(files.join(location, PARTS)):
        if name.endswith(".json"):
            files.remove(files.join(location, PARTS, name))
    filesystem, path = files.open_filesystem(location)
    for name in _list_entries(location):
        if name not in (ROOT, PARTS):
            filesystem.rm(files.join(path, name), recursive=True)


def record_location(location: str, number: int) -> str:
    """Where the record of a part lies."""
    return files.join(location, PARTS, f"{number:06d}.json")


def _load_record(location: str, number: int) -> PartRecord | None:
    """The record of a part; None when there is none that can be read."""
    try:
        return PartRecord.model_validate_json(files.read_bytes(record_location(location, number)))
    except (FileNotFoundError, ValidationError):
        return None


def _has_files(location: str, record: PartRecord) -> bool:
    try:
        return all(files.size(files.join(location, path)) == size for path, (size, _) in record.files.items())
    except FileNotFoundError:
        return False
