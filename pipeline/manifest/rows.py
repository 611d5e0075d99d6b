"""The rows of a manifest folder, read without any decoder."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.documents import parse_values
from mert_foundry.pipeline.storage.folder_kinds import MANIFEST, explain_missing

SCHEMA_VERSION = 1
REST_SPLIT = "train"


class Track(BaseModel):
    """One row of manifest.jsonl."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str = Field(description="Stable id made from the path relative to the root")
    path: str = Field(description="Path relative to the root")
    bytes: int = Field(description="File size, bytes")
    sha256: str = Field(description="SHA-256 of the file")
    audio_sha256: str = Field(description="SHA-256 of rate, channels and decoded PCM rounded to 16 bits")
    sample_rate: int = Field(description="Hz")
    channels: int = Field(description="Channels")
    num_samples: int = Field(description="Decoded samples per channel")
    seconds: float = Field(description="Decoded length, seconds")
    header_seconds: float | None = Field(description="Length the header claims, seconds; none if it claims none")
    format: str = Field(description="Container and codec")
    group: str = Field(description="What must not straddle splits")
    split: str = Field(description="Split this track belongs to")
    # Manifests of older versions have none of these.
    peak_dbfs: float | None = Field(default=None, description="Highest sample as stored (24 kHz mono), dB full scale")
    loudness_lufs: float | None = Field(
        default=None, description="Integrated loudness as stored (EBU R 128), LUFS; none where nothing is above -70"
    )
    clipped_share: float | None = Field(
        default=None, description="Share of the mono mix's samples more than 1 dB beyond full scale"
    )
    stream: str = Field(default="", description="Which stream this is where the file has several")
    notes: list[str] = Field(
        default=[],
        description="repaired (Ogg), joined (MP3), or the rate as which the track is resampled when its own has no filter",
    )


class Reject(BaseModel):
    """One line of rejected.jsonl."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="Path relative to the root")
    reason: Literal[
        "unreadable",
        "unreachable",
        "truncated",
        "length_mismatch",
        "silent",
        "clipped",
        "too_short",
        "too_long",
        "duplicate",
        "excluded",
        "not_audio",
    ] = Field(description="Why it is not in the manifest")
    detail: str = Field(description="Both values, or what the decoder said")


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
    notes = Counter(note for track in tracks for note in track.notes)
    return {"one_of_several_streams": sum(track.stream != "" for track in tracks), "notes": dict(sorted(notes.items()))}


def load_manifest(folder: str) -> Manifest:
    """Read a manifest folder.

    Raises:
        FolderError: the folder is of another kind.
        FileNotFoundError: a file is missing, or the folder.
        ValueError: another schema version, or manifest.jsonl is not the one manifest.yaml was written for.
    """
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
    rows = files.read_bytes(files.join(folder, "manifest.jsonl"))
    digest = hashlib.sha256(rows).hexdigest()
    if digest != summary["manifest_sha256"]:
        raise ValueError(f"{folder}/manifest.jsonl: SHA-256 {digest}, manifest.yaml says {summary['manifest_sha256']}")
    tracks = [Track(**json.loads(line)) for line in rows.splitlines()]
    return Manifest(root=summary["root"], sha256=digest, tracks=tracks)


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
    location = files.join(folder, "rejected.jsonl")
    rejects = []
    for number, line in enumerate(files.read_bytes(location).splitlines(), 1):
        try:
            values = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{location}: line {number}: {error}") from error
        rejects.append(parse_values(f"{location}: line {number}", values, Reject))
    return rejects
