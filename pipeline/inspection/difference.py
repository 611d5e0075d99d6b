"""What differs between two of a kind: settings and fingerprints, and rows that were added, removed or changed.

From the first to the second: `added` is in the second alone.
"""

from collections.abc import Mapping
from itertools import chain

from pydantic import Field, JsonValue

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
    both = sorted(set(first_rows) & set(second_rows))
    changed = [change for key in both if (change := row_change(key, first_rows[key], second_rows[key]))]
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


def row_change(key: str, left: Mapping[str, JsonValue], right: Mapping[str, JsonValue]) -> RowChange | None:
    """What differs between the contents of a row, by name; None when nothing does."""
    what = [name for name in dict.fromkeys(chain(left, right)) if left.get(name) != right.get(name)]
    worded = [_worded(name, left.get(name), right.get(name)) for name in what]
    return RowChange(key=key, what=worded) if what else None


def compare_settings(first: Mapping[str, JsonValue], second: Mapping[str, JsonValue]) -> list[SettingChange]:
    """Flattened settings that differ, in the order of the first, then of the second."""
    left, right = flatten(first), flatten(second)
    return [
        SettingChange(key=key, first=left.get(key), second=right.get(key))
        for key in dict.fromkeys(chain(left, right))
        if left.get(key) != right.get(key)
    ]


def flatten(value: JsonValue | Mapping[str, JsonValue], name: str = "") -> dict[str, JsonValue]:
    """Nested mappings as dotted keys; lists stay whole."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {
        key: leaf
        for part, inner in value.items()
        for key, leaf in flatten(inner, f"{name}.{part}" if name else part).items()
    }


def _worded(name: str, first: JsonValue, second: JsonValue) -> str:
    """How a value changed: `split train -> valid` for a short text, `loss 5.1 -> 4.9` for a measure, else its name."""
    if first is None or second is None:
        return f"{name.removeprefix('relabelled ')} {'added' if first is None else 'removed'}"
    if isinstance(first, float) and isinstance(second, float):
        return f"{name} {first:.5g} -> {second:.5g}"
    if isinstance(first, str) and isinstance(second, str) and len(first) + len(second) < 60:
        return f"{name} {first} -> {second}"
    return name
