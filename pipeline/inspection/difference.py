"""What differs between two of a kind: settings and fingerprints, and rows that were added, removed or changed.

From the first to the second: `added` is in the second alone.
"""

from collections.abc import Mapping
from itertools import chain

from pydantic import Field, JsonValue

from mert_foundry.pipeline.inspection.manifest_summary import ManifestFolder
from mert_foundry.pipeline.manifest.rows import Track
from mert_foundry.pipeline.shards.index import ShardIndex, load_index, load_records
from mert_foundry.pipeline.storage.documents import Document


class SettingChange(Document):
    """One setting, fingerprint or total that differs; null where there is none."""

    key: str = Field(description="Dotted name")
    first: JsonValue = Field(description="Value in the first")
    second: JsonValue = Field(description="Value in the second")


class RowChange(Document):
    """One track or example that is in both and differs."""

    key: str = Field(description="Track key or example key")
    what: list[str] = Field(description="What of it differs")


class Difference(Document):
    """What `mert inspect FIRST --diff SECOND --json` prints."""

    kind: str = Field(description="manifest difference, shards difference or run difference")
    first: str = Field(description="Location of the first")
    second: str = Field(description="Location of the second")
    same: bool = Field(description="Nothing differs")
    settings: list[SettingChange] = Field(description="Settings, fingerprints and totals that differ")
    rows: str = Field(description="What `added`, `removed` and `changed` are")
    added: list[str] = Field(description="Keys in the second alone")
    removed: list[str] = Field(description="Keys in the first alone")
    changed: list[RowChange] = Field(
        description="Keys in both whose content differs; relabelled examples name the target"
    )


def difference(
    kind: str,
    first: str,
    second: str,
    settings: list[SettingChange],
    rows: str,
    first_rows: Mapping[str, Mapping[str, JsonValue]],
    second_rows: Mapping[str, Mapping[str, JsonValue]],
) -> Difference:
    """Compare rows by key, and the content of each by name."""
    changed = []
    for key in sorted(set(first_rows) & set(second_rows)):
        left, right = first_rows[key], second_rows[key]
        what = [name for name in dict.fromkeys(chain(left, right)) if left.get(name) != right.get(name)]
        if what:
            changed.append(RowChange(key=key, what=[_worded(name, left.get(name), right.get(name)) for name in what]))
    added, removed = sorted(set(second_rows) - set(first_rows)), sorted(set(first_rows) - set(second_rows))
    return Difference(
        kind=kind,
        first=first,
        second=second,
        same=not (settings or added or removed or changed),
        settings=settings,
        rows=rows,
        added=added,
        removed=removed,
        changed=changed,
    )


def compare_settings(first: Mapping[str, JsonValue], second: Mapping[str, JsonValue]) -> list[SettingChange]:
    """Flattened settings that differ, in the order of the first, then of the second."""
    left, right = flatten(first), flatten(second)
    return [
        SettingChange(key=key, first=left.get(key), second=right.get(key))
        for key in dict.fromkeys(chain(left, right))
        if left.get(key) != right.get(key)
    ]


def flatten(value: JsonValue, name: str = "") -> dict[str, JsonValue]:
    """Nested mappings as dotted keys; lists stay whole."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {
        key: leaf
        for part, inner in value.items()
        for key, leaf in flatten(inner, f"{name}.{part}" if name else part).items()
    }


def _worded(name: str, first: JsonValue, second: JsonValue) -> str:
    """What became of a value: `split train -> valid` for a short text, `loss 5.1 -> 4.9` for a measure, else its name."""
    if first is None or second is None:
        return f"{name.removeprefix('relabelled ')} {'added' if first is None else 'removed'}"
    if isinstance(first, float) and isinstance(second, float):
        return f"{name} {first:.5g} -> {second:.5g}"
    if isinstance(first, str) and isinstance(second, str) and len(first) + len(second) < 60:
        return f"{name} {first} -> {second}"
    return name


def compare_manifests(first: ManifestFolder, second: ManifestFolder) -> Difference:
    """Tracks by key; rejects by path."""
    settings = compare_settings(_manifest_settings(first), _manifest_settings(second))
    rows = [
        {track.key: _track_content(track) for track in read.manifest.tracks}
        | {f"rejected: {reject.path}": {"reason": reject.reason} for reject in read.rejects}
        for read in (first, second)
    ]
    return difference("manifest difference", first.folder, second.folder, settings, "tracks and rejected files", *rows)


def _manifest_settings(read: ManifestFolder) -> dict[str, JsonValue]:
    splits: dict[str, int] = {}
    for track in read.manifest.tracks:
        splits[track.split] = splits.get(track.split, 0) + 1
    return {"root": read.manifest.root, "config": read.config, "tracks": splits}


def _track_content(track: Track) -> dict[str, JsonValue]:
    return {
        "split": track.split,
        "path": track.path,
        "group": track.group,
        "audio": track.audio_sha256,
        "file": track.sha256,
        "format": track.format,
    }


def compare_shard_sets(first: str, second: str) -> Difference:
    """Examples by key, from the records of all shards. Raises as `load_index` and `load_listed_record`."""
    indexes = [load_index(folder) for folder in (first, second)]
    settings = compare_settings(*map(_index_settings, indexes))
    rows = [_example_rows(folder, index) for folder, index in zip((first, second), indexes, strict=True)]
    return difference("shards difference", first, second, settings, "examples", *rows)


def _index_settings(index: ShardIndex) -> dict[str, JsonValue]:
    return {
        "manifest_sha256": index.manifest_sha256,
        "segment_seconds": index.segment_seconds,
        "audio_member": index.audio_member,
        "targets": {spec.name: spec.model_dump(mode="json", exclude={"name"}) for spec in index.targets},
        "totals": {split: totals.model_dump(exclude={"seconds"}) for split, totals in index.totals.items()},
        "dropped": index.dropped,
    }


def _example_rows(folder: str, index: ShardIndex) -> dict[str, dict[str, JsonValue]]:
    """Key to split, frames, and the CRC-32 of each member but the json, which repeats the rest."""
    rows = {}
    for record in load_records(folder, index.shardlist):
        for entry in record.members:
            content: dict[str, JsonValue] = {"split": record.split, "frames": entry.num_frames}
            for suffix, (_, _, checksum) in entry.members.items():
                if suffix == index.audio_member:
                    content["audio"] = checksum
                elif suffix != "json":
                    content[f"relabelled {suffix.removesuffix('.npy')}"] = checksum
            rows[entry.key] = content
    return rows
