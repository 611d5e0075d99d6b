"""What differs between two shard sets: settings, teachers, examples added, removed, relabelled.

They are compared by their records, which hold the CRC-32 of each member, so no tar is opened.
"""

from pydantic import JsonValue

from pipeline.dataset_difference import Difference, compare_settings, difference
from pipeline.shard_index import ShardIndex, load_index
from pipeline.shard_summary import load_records


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
