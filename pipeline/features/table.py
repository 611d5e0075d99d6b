"""A table of clips as input: CSV or JSON lines with a path, a stretch and any columns of the user's, one row a clip."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

from fsspec import AbstractFileSystem
from pydantic import Field, JsonValue

from mert_foundry.pipeline.features.file_tracks import stored_samples
from mert_foundry.pipeline.features.plan import ClipPlace, SourceTrack
from mert_foundry.pipeline.frames import SAMPLE_RATE
from mert_foundry.pipeline.manifest.placement import track_key
from mert_foundry.pipeline.manifest.rows import Track
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.documents import Document
from mert_foundry.pipeline.storage.tables import parse_csv, parse_json_lines

PLACE = ("path", "start", "end")
# What a store has by these names itself.
OWNED = frozenset("key seconds offset length dropped layer features mean std deviation dim track frame parts".split())
NAME = re.compile(r"(?!\.|__)[^/\\\x00-\x1f]+")  # of a folder in the store
MOST_INT = 2**63  # what int64 cannot hold
THREADS = 16  # that wait for an object store


class ClipTable(Document):
    """A table, read."""

    root: str = Field(description="Folder that its paths are relative to")
    clips: list[ClipPlace] = Field(description="The stretch of each row, in order")
    columns: dict[str, list[JsonValue]] = Field(description="The other columns, a value a row; null where it has none")


def read_table(location: str, root: str | None = None) -> ClipTable:
    """Read a table; `root` is what its paths are relative to, by default the folder it lies in. No file is opened.

    Raises:
        FileNotFoundError: there is no such table, or none of its files is there.
        ValueError: naming the table, the line and what is wrong with it.
    """
    try:
        text = files.read_bytes(location).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{location}: not UTF-8: {error}") from error
    # An empty cell of a CSV is a text, but no start and no end.
    parse = parse_csv if location.lower().endswith(".csv") else parse_json_lines
    lines: list[tuple[int, Mapping[str, JsonValue]]] = list(parse(location, text))
    if not lines:
        raise ValueError(f"{location}: no row in it")
    names = list(dict.fromkeys(name for _, line in lines for name in line))
    if "path" not in names:
        raise ValueError(f"{location}: no column path; its columns are {', '.join(names)}")
    if near := [name for name in names if name not in PLACE and name.strip().lower() in PLACE]:
        raise ValueError(f"{location}: a column is called {near[0]!r}; {near[0].strip().lower()!r} is needed")
    if taken := [name for name in names if name in OWNED]:
        raise ValueError(f"{location}: a column {taken[0]!r} cannot be kept, the feature store has one of its own")
    if wrong := [name for name in names if not NAME.fullmatch(name)]:
        raise ValueError(
            f"{location}: a column cannot be called {wrong[0]!r}, it becomes a folder of the feature store"
        )
    root = root or location.rpartition("/")[0] or "."
    clips = [_read_clip(f"{location} line {number}", line) for number, line in lines]
    return ClipTable(
        root=root,
        clips=_with_stamps(root, clips),
        columns={name: [line.get(name) for _, line in lines] for name in names if name not in PLACE},
    )


def list_clips(table: ClipTable) -> list[SourceTrack]:
    """The tracks of a table, a row each, in order. Keys are made of path and stretch; a repeated one gets a number."""
    keys, seen = [], Counter[str]()
    whole = Counter(clip.path for clip in table.clips)
    for clip in table.clips:
        key = track_key(clip.path)
        if whole[clip.path] > 1 or clip.start or clip.end is not None:
            key += f"-{_milliseconds(clip.start)}-{_milliseconds(clip.end)}"
        seen[key] += 1
        keys.append(key if seen[key] == 1 else f"{key}-{seen[key]}")
    splits, groups = (_texts(table, name) for name in ("split", "group"))
    return [
        SourceTrack(key=key, num_samples=_samples(clip), split=split, group=group, place=clip)
        for key, clip, split, group in zip(keys, table.clips, splits, groups)
    ]


def with_lengths(table: ClipTable, rows: list[Track], rejected: Mapping[str, str]) -> ClipTable:
    """The table with the lengths of files that were decoded, 0 for those that are of no use."""
    samples = {row.path: stored_samples(row) for row in rows} | dict.fromkeys(rejected, 0)
    clips = [clip.model_copy(update={"file_samples": samples.get(clip.path)}) for clip in table.clips]
    return table.model_copy(update={"clips": clips})


def clip_columns(table: ClipTable) -> dict[str, list]:
    """Columns for the track table of a store: path, start, end (NaN: the end of the file), and the user's."""
    own = {name: values for name, values in table.columns.items() if name not in ("split", "group")}
    return {
        "path": [clip.path for clip in table.clips],
        "start": [clip.start for clip in table.clips],
        "end": [math.nan if clip.end is None else clip.end for clip in table.clips],
        **{name: _one_kind(values) for name, values in own.items()},
    }


def _samples(clip: ClipPlace) -> int | None:
    return clip.num_samples(SAMPLE_RATE, clip.file_samples)


def _milliseconds(seconds: float | None) -> str:
    return "end" if seconds is None else f"{round(seconds * 1000):07d}"


def _texts(table: ClipTable, name: str) -> list[str]:
    values = table.columns.get(name) or [""] * len(table.clips)
    return ["" if value is None else str(value) for value in values]


def _one_kind(values: list[JsonValue]) -> list:
    """A column of one type: booleans, integers, floats (NaN for an absent value), else text."""
    kinds = {type(value) for value in values}
    if kinds in ({bool}, {str}) or (kinds == {int} and all(-MOST_INT <= value < MOST_INT for value in values)):  # type: ignore[operator]  # noqa: E501
        return values
    if kinds <= {int, float, type(None)} and kinds != {type(None)}:
        return [math.nan if value is None else float(value) for value in values]  # type: ignore[arg-type]
    return ["" if value is None else value if isinstance(value, str) else json.dumps(value) for value in values]


def _read_clip(where: str, line: Mapping[str, JsonValue]) -> ClipPlace:
    path = line.get("path")
    if not isinstance(path, str) or not path:
        raise ValueError(f"{where}: path is {path!r}, the path of a file is needed")
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "://" in path:
        raise ValueError(f"{where}: path {path!r} leads out of the root; give it relative to input_root")
    start, end = (_seconds(f"{where}: {name}", line.get(name)) for name in ("start", "end"))
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"{where}: end {end} is not after start {start or 0.0}")
    return ClipPlace(path=str(pure), bytes=None, start=start or 0.0, end=end)


def _seconds(where: str, value: JsonValue) -> float | None:
    if value is None or value == "":
        return None
    try:
        seconds = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        seconds = math.nan
    if isinstance(value, bool) or not 0 <= seconds < math.inf:
        raise ValueError(f"{where} is {value!r}, seconds from 0 on are needed")
    return seconds


def _with_stamps(root: str, clips: list[ClipPlace]) -> list[ClipPlace]:
    """The clips with size and time of change of their files.

    Raises FileNotFoundError when none of the files is there.
    """
    paths = list(dict.fromkeys(clip.path for clip in clips))
    filesystem, folder = files.open_filesystem(root)
    with ThreadPoolExecutor(THREADS) as threads:
        found = threads.map(lambda path: _stamp(filesystem, files.join(folder, path)), paths)
        stamps = dict(zip(paths, found))
    if all(size is None for size, _ in stamps.values()):
        raise FileNotFoundError(f"none of the {len(paths)} files of the table is below {root}, as {paths[0]}")
    return [clip.model_copy(update=dict(zip(("bytes", "changed"), stamps[clip.path], strict=True))) for clip in clips]


def _stamp(filesystem: AbstractFileSystem, path: str) -> tuple[int | None, str | None]:
    """Size and time of change of a file as stores have them; none when the file system states no time, or has no such
    file.

    Not the stamp of a scan, which says more than older stores hold.
    """
    try:
        entry = filesystem.info(path)
    except OSError:
        return None, None
    changed = entry.get("mtime") or entry.get("LastModified") or entry.get("ETag") or entry.get("created")
    return (None, None) if changed is None else (entry.get("size"), str(changed))
