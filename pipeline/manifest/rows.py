"""The rows of a manifest folder, read without any decoder."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import yaml
from msgspec import Meta
from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.folder_kinds import MANIFEST, explain_missing

SCHEMA_VERSION = 1
REST_SPLIT = "train"
BLOCK = 1 << 23  # bytes that are read and parsed at once


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A line of a manifest folder. A corpus has millions, which pydantic would take 5 KB each for.

    Values are checked where a line is parsed, not where a row is made.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A row within a document of pydantic: an instance, which is written as a mapping."""
        return core_schema.is_instance_schema(
            cls, serialization=core_schema.plain_serializer_function_ser_schema(msgspec.structs.asdict)
        )


class Track(Row, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """One row of manifest.jsonl."""

    key: Annotated[str, Meta(description="Stable id made from the path relative to the root")]
    path: Annotated[str, Meta(description="Path relative to the root")]
    bytes: Annotated[int, Meta(description="File size, bytes")]
    sha256: Annotated[str, Meta(description="SHA-256 of the file")]
    audio_sha256: Annotated[str, Meta(description="SHA-256 of rate, channels and decoded PCM rounded to 16 bits")]
    sample_rate: Annotated[int, Meta(description="Hz")]
    channels: Annotated[int, Meta(description="Channels")]
    num_samples: Annotated[int, Meta(description="Decoded samples per channel")]
    seconds: Annotated[float, Meta(description="Decoded length, seconds")]
    header_seconds: Annotated[
        float | None, Meta(description="Length the header claims, seconds; none if it claims none")
    ]
    format: Annotated[str, Meta(description="Container and codec")]
    group: Annotated[str, Meta(description="What must not straddle splits")]
    split: Annotated[str, Meta(description="Split this track belongs to")]
    # Manifests of older versions have none of these.
    peak_dbfs: Annotated[float | None, Meta(description="Highest sample as stored (24 kHz mono), dB full scale")] = None
    loudness_lufs: Annotated[
        float | None,
        Meta(description="Integrated loudness as stored (EBU R 128), LUFS; none where nothing is above -70"),
    ] = None
    clipped_share: Annotated[
        float | None, Meta(description="Share of the mono mix's samples more than 1 dB beyond full scale")
    ] = None
    stream: Annotated[str, Meta(description="Which stream this is where the file has several")] = ""
    notes: Annotated[
        tuple[str, ...],
        Meta(
            description="repaired (Ogg), joined (MP3), or the rate as which the track is resampled when its own has"
            " no filter"
        ),
    ] = ()
    extra: Annotated[
        dict[str, Any] | None,
        Meta(
            description="Columns of the user's own list of files, and tags that were asked for; not there without any"
        ),
    ] = None


Reason = Literal[
    "unreadable",
    "unreachable",
    "truncated",
    "length_mismatch",
    "silent",
    "clipped",
    "too_short",
    "too_long",
    "duplicate",
    "near_duplicate",
    "excluded",
    "not_audio",
]


class Reject(Row, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """One line of rejected.jsonl."""

    path: Annotated[str, Meta(description="Path relative to the root")]
    reason: Annotated[
        Reason,
        Meta(description="Why it is not in the manifest"),
    ]
    detail: Annotated[str, Meta(description="Both values, or what the decoder said")]


AnyStruct = TypeVar("AnyStruct", bound=msgspec.Struct)


class Manifest(BaseModel):
    """A manifest folder, loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str = Field(description="Where the paths start")
    sha256: str = Field(description="SHA-256 of manifest.jsonl")
    tracks: list[Track] = Field(description="Rows, sorted by key")


def first_hours(tracks: Sequence[Track], hours: float) -> list[Track]:
    """Tracks from the first on, until their hours are reached."""
    seconds = 0.0
    for count, track in enumerate(tracks):
        if seconds >= hours * 3600:
            return list(tracks[:count])
        seconds += track.seconds
    return list(tracks)


def count_streams_and_notes(tracks: Iterable[Track]) -> dict:
    """Tracks that are one of several streams of their file, and tracks by note."""
    notes: Counter[str] = Counter()
    streams = 0
    for track in tracks:
        if track.notes:
            notes.update(track.notes)
        streams += track.stream != ""
    return {"one_of_several_streams": streams, "notes": dict(sorted(notes.items()))}


def load_manifest(folder: str) -> Manifest:
    """Read a manifest folder.

    Raises:
        FolderError: the folder is of another kind.
        FileNotFoundError: a file is missing, or the folder.
        ValueError: another schema version, or manifest.jsonl is not the one manifest.yaml was written for.
    """
    summary = read_summary(folder)
    tracks = list(stream_tracks(folder, summary["manifest_sha256"]))
    return Manifest(root=summary["root"], sha256=summary["manifest_sha256"], tracks=tracks)


def stream_tracks(folder: str, sha256: str) -> Iterator[Track]:
    """The rows of a manifest one after the other; `sha256` is what manifest.yaml says of them.

    Raises FileNotFoundError, and at the end of the rows ValueError when they are not those, or a line is no row.
    """
    location, digest = files.join(folder, "manifest.jsonl"), hashlib.sha256()
    fault: ValueError | None = None
    for number, block in read_blocks(location):
        digest.update(block)
        tracks: list[Track] = []
        try:
            tracks = [] if fault else parse_lines(f"{location}: line", number, block, Track)
        except ValueError as error:  # which another digest may explain
            fault = error
        yield from tracks
    if digest.hexdigest() != sha256:
        raise ValueError(f"{location}: SHA-256 {digest.hexdigest()}, manifest.yaml says {sha256}")
    if fault:
        raise fault


def read_summary(folder: str) -> dict:
    """The content of manifest.yaml. Raises as `load_manifest`."""
    try:
        content = files.read_bytes(files.join(folder, "manifest.yaml"))
    except (FileNotFoundError, NotADirectoryError):
        raise explain_missing(folder, MANIFEST) from None
    summary = yaml.safe_load(content)
    if not isinstance(summary, dict) or not {"schema_version", "root", "manifest_sha256"} <= set(summary):
        raise ValueError(f"{folder}/manifest.yaml: not a manifest, it lacks schema_version, root or manifest_sha256")
    if summary["schema_version"] != SCHEMA_VERSION:
        raise ValueError(
            f"{folder}/manifest.yaml: schema version {summary['schema_version']}, this is version {SCHEMA_VERSION}"
        )
    return summary


def check_root(manifest: Manifest, folder: str) -> None:
    """Look whether the audio of the manifest in `folder` is where it says, before any is opened.

    Raises:
        FileNotFoundError: there is no such root, or a local one with none of the tracks; for a relative path the folder
            tried is named.
    """
    filesystem, path = files.open_filesystem(manifest.root)
    if not filesystem.isdir(path):
        fault = f"there is no folder {path}"
    elif (
        files.is_local(manifest.root)
        and manifest.tracks
        and not any(_is_there(path, track) for track in manifest.tracks)
    ):
        fault = f"the folder {path} has none of its {len(manifest.tracks)} tracks"
    else:
        return
    is_relative = "://" not in manifest.root and not os.path.isabs(os.path.expanduser(manifest.root))
    words = "the relative path " if is_relative else ""
    hint = "; run the command in the folder where the manifest was made, or make the manifest with an absolute root"
    raise FileNotFoundError(
        f"manifest {folder} says its audio lies below {words}{manifest.root}; {fault}{hint if is_relative else ''}"
    )


def _is_there(root: str, track: Track) -> bool:
    return os.path.exists(files.join(root, track.path))


def load_rejects(folder: str) -> list[Reject]:
    """The lines of rejected.jsonl. Raises FileNotFoundError, or ValueError naming file and line."""
    return list(read_rows(files.join(folder, "rejected.jsonl"), Reject))


class _Path(msgspec.Struct, gc=False):
    """What is read of a row where only its path is of interest."""

    path: str
    reason: str = ""


def read_paths(folder: str) -> list[str]:
    """Paths of all tracks and rejects of a manifest folder that were there; none where there is no manifest.

    Raises as `read_rows` for a damaged one.
    """
    paths: list[str] = []
    for name in ("manifest.jsonl", "rejected.jsonl"):
        with suppress(FileNotFoundError):
            rows = read_rows(files.join(folder, name), _Path)
            paths += (row.path for row in rows if row.reason != "unreachable")
    return paths


def read_rows(location: str, kind: type[AnyStruct]) -> Iterator[AnyStruct]:
    """Rows of a file of JSON lines. Raises FileNotFoundError, or ValueError naming file and line."""
    for number, block in read_blocks(location):
        yield from parse_lines(f"{location}: line", number, block, kind)


def read_blocks(location: str) -> Iterator[tuple[int, bytes]]:
    """A file in blocks of whole lines, each with the number of its first line, from 1 on; never the whole in memory."""
    filesystem, path = files.open_filesystem(location)
    number, rest = 1, b""
    with filesystem.open(path, "rb", block_size=BLOCK) as file:
        while block := file.read(BLOCK):
            whole, newline, rest = (rest + block).rpartition(b"\n")
            if newline:
                yield number, whole + newline
                number += whole.count(b"\n") + 1
    if rest:
        yield number, rest


def parse_lines(where: str, number: int, block: bytes, kind: type[AnyStruct]) -> list[AnyStruct]:
    """Rows of JSON lines.

    Raises ValueError that begins with `where` and the line's number, of which the first is `number`.
    """
    try:
        rows = msgspec.json.Decoder(kind).decode_lines(block)
    except (
        msgspec.MsgspecError,
        UnicodeDecodeError,
    ):  # also for what Python's own JSON has: infinity, names that are no UTF-8
        rows = []
    if len(rows) == block.count(b"\n") + (block[-1:] not in (b"", b"\n")):  # else there may be two on a line
        return rows
    return [_parse(f"{where} {at}", line, kind) for at, line in enumerate(block.splitlines(), number)]


def _parse(where: str, line: bytes, kind: type[AnyStruct]) -> AnyStruct:
    try:
        return msgspec.convert(json.loads(line), kind)
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise ValueError(f"{where}: {error}") from error


def row_line(row: Row) -> bytes:
    """The line of a row: keys sorted, ASCII."""
    return _ENCODER.encode(row_values(row)).encode() + b"\n"


def row_values(row: Row) -> dict[str, Any]:
    """The values of a row by name; `extra` is not among them where there is none."""
    return {name: value for name, value in msgspec.structs.asdict(row).items() if name != "extra" or value}


_ENCODER = json.JSONEncoder(sort_keys=True)
