"""The user's own list of files: which ones to scan, in which group and split they belong, and what else is known of
them.
"""

import posixpath
from dataclasses import dataclass
from typing import Any

from mert_foundry.pipeline.manifest.placement import group_and_split
from mert_foundry.pipeline.manifest.rows import REST_SPLIT
from mert_foundry.pipeline.manifest.settings import ManifestConfig
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.tables import parse_csv, parse_json_lines


@dataclass(frozen=True)
class FileListRow:
    """What the list of files says of one file: its group, its split, and its other columns."""

    group: str
    split: str
    extra: dict[str, Any] | None


def read_file_list(config: ManifestConfig) -> dict[str, FileListRow]:
    """The files of the list that the settings name, by path, sorted.

    Without group or split, these follow from the settings.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: it is no table of that kind, a path stands twice or leads out of the root, a split is not among the
            settings, or a group is in two splits; file and line are named.
    """
    location = config.files
    text = files.read_bytes(location).decode("utf-8-sig", "surrogateescape")
    if location.endswith(".csv"):
        rows = parse_csv(location, text, ("path",))
    elif location.endswith(".jsonl"):
        rows = parse_json_lines(location, text)
    else:
        raise ValueError(f"files {location}: a list ends in .csv or .jsonl")
    listed: dict[str, FileListRow] = {}
    split_of: dict[str, str] = {}
    for number, row in rows:
        where = f"{location} line {number}"
        path = _path(where, row)
        if path in listed:
            raise ValueError(f"{where}: {path} stands twice")
        group, split = group_and_split(path, config, _text(where, row, "group"), _text(where, row, "split"))
        if split not in (REST_SPLIT, *config.splits):
            known = ", ".join((REST_SPLIT, *config.splits))
            raise ValueError(f"{where}: split {split!r} is not among {known}; splits={{{split}: 0}} allows it")
        if split_of.setdefault(group, split) != split:
            raise ValueError(f"{where}: group {group!r} is in split {split} here, and in {split_of[group]} before")
        extra = {name: value for name, value in row.items() if name not in ("path", "group", "split")}
        listed[path] = FileListRow(group, split, extra or None)
    return dict(sorted(listed.items()))


def _path(where: str, row: dict[str, Any]) -> str:
    path = _text(where, row, "path")
    if not path or path != posixpath.normpath(path) or path.startswith(("/", "../")) or path in (".", ".."):
        raise ValueError(f"{where}: path {path!r} is no path below the root")
    return path


def _text(where: str, row: dict[str, Any], name: str) -> str:
    value = row.get(name) or ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name} is {value!r}, a text is needed")
    return value
