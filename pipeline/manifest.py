"""Scan a corpus once: one row a track with content hashes and its true length, one line a reject with a reason.

The files written are a pure function of the corpus, the settings and the seed: not of worker count, listing
order, clock or host, nor of where the corpus lies.
"""

import hashlib
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import yaml
from fsspec import AbstractFileSystem
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.decode import AudioDigest, DecodeError, check_length, open_audio
from pipeline.storage import join, local_copy, open_filesystem, publish_bytes, read_bytes

SCHEMA_VERSION = 1
REST_SPLIT = "train"


class ManifestConfig(BaseModel):
    """What `mert manifest` needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str = Field(description="Folder or fsspec URL with the audio; scanned with all folders below it")
    out: str = Field(description="Folder or fsspec URL for manifest.jsonl, rejected.jsonl, manifest.yaml")
    seed: int = Field(default=0, description="Seed of the split")
    splits: dict[str, float] = Field(
        default={"valid": 0.05}, description="Share of the groups per split; what is left is train"
    )
    group_by: Literal["folder", "track"] = Field(
        default="folder", description="What must not straddle splits: a folder (a track right under root counts alone)"
    )
    min_seconds: float = Field(default=3.0, ge=0, description="Shorter tracks are rejected, seconds")
    max_seconds: float = Field(default=10_800.0, gt=0, description="Longer tracks are rejected, seconds")
    silence_dbfs: float = Field(default=-60.0, description="Tracks whose peak is below are rejected, dB full scale")
    length_tolerance_seconds: float = Field(
        default=0.2, ge=0, description="A header may differ from the decoded length by this, seconds"
    )
    workers: int = Field(default=0, ge=0, description="Decoding threads; 0: one a core")

    @model_validator(mode="after")
    def _check_splits(self) -> "ManifestConfig":
        for name in self.splits:
            if not re.fullmatch(r"[a-z][a-z0-9]*", name) or name == REST_SPLIT:
                raise ValueError(f"splits: {name!r} is not a split name (lower-case letters and digits; not {REST_SPLIT!r})")
        if any(share < 0 for share in self.splits.values()) or sum(self.splits.values()) >= 1:
            raise ValueError(f"splits: shares {self.splits} must be positive and leave something for {REST_SPLIT!r}")
        return self

    def recorded(self) -> dict:
        """The settings that shape the result, without places and worker count."""
        return self.model_dump(mode="json", exclude={"root", "out", "workers"})


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


class Reject(BaseModel):
    """One line of rejected.jsonl."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="Path relative to the root")
    reason: Literal[
        "unreadable", "truncated", "length_mismatch", "silent", "too_short", "too_long", "duplicate", "not_audio"
    ] = Field(description="Why it is not in the manifest")
    detail: str = Field(description="Both values, or what the decoder said")


class Manifest(BaseModel):
    """A manifest folder, loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str = Field(description="Where the paths start")
    sha256: str = Field(description="SHA-256 of manifest.jsonl")
    tracks: list[Track] = Field(description="Rows, sorted by key")


def track_key(path: str) -> str:
    """Stable id of a track: readable part of its name, and 12 hexadecimal digits of its path's SHA-256.

    No dot and no slash, since WebDataset splits member names at the first dot.
    """
    stem = path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    slug = re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-")[:40].strip("-").lower()
    digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return f"{slug}-{digest}" if slug else digest


def choose_split(group: str, seed: int, splits: dict[str, float]) -> str:
    """The split of a group, from a hash of (seed, group): adding files moves no group."""
    digest = hashlib.sha256(f"{seed}\0{group}".encode("utf-8", "surrogateescape")).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    for name, share in sorted(splits.items()):
        if position < share:
            return name
        position -= share
    return REST_SPLIT


def track_group(path: str, group_by: str) -> str:
    """The parent folder of a track, or the track itself (also for a track right under the root)."""
    return path.rsplit("/", 1)[0] if group_by == "folder" and "/" in path else path


def scan(config: ManifestConfig, report: Callable[[float, int], None] = lambda seconds, rejected: None) -> list[Track | Reject]:
    """Decode every file under the root once; returns a row or a reject for each, duplicates resolved.

    `report` is called after each file with its seconds (0 when rejected) and the number of rejects so far.
    """
    filesystem, root = open_filesystem(config.root)
    if not filesystem.isdir(root):
        raise FileNotFoundError(f"root {config.root}: no such folder")
    root = root.rstrip("/")
    out_filesystem, out = open_filesystem(config.out)
    if out_filesystem == filesystem and f"{out.rstrip('/')}/".startswith(f"{root}/"):
        raise ValueError(f"out {config.out} lies in root {config.root}: the next scan would find its own files")
    paths = sorted(path[len(root) + 1 :] for path in list_files(filesystem, root))
    results: list[Track | Reject] = []
    rejected = 0
    with ThreadPoolExecutor(config.workers or os.cpu_count()) as threads:
        for result in threads.map(lambda path: examine(path, config), paths):
            rejected += isinstance(result, Reject)
            report(result.seconds if isinstance(result, Track) else 0.0, rejected)
            results.append(result)
    return list(_without_duplicates(results))


def list_files(filesystem: AbstractFileSystem, folder: str) -> Iterator[str]:
    """Paths of all files below a folder. Raises OSError when a folder cannot be listed; fsspec's own walk leaves it out."""
    for entry in filesystem.ls(folder, detail=True):
        path = entry["name"].rstrip("/")
        if entry["type"] != "directory":
            yield path
        elif path != folder:
            yield from list_files(filesystem, path)


def examine(path: str, config: ManifestConfig) -> Track | Reject:
    """Decode one file (path relative to the root) and describe it, or say why it is left out."""
    try:
        with local_copy(config.root, path) as local:
            return _describe(path, local, config)
    except DecodeError as error:
        return Reject(path=path, reason=error.reason, detail=error.detail)
    except (FileNotFoundError, PermissionError) as error:
        return Reject(path=path, reason="unreadable", detail=error.strerror or type(error).__name__)


def _describe(path: str, local: Path, config: ManifestConfig) -> Track:
    num_bytes = local.stat().st_size
    if not local.is_file():
        # Reading a pipe or a device could wait for ever; links to folders could go round.
        raise DecodeError("not_audio", "a linked folder" if local.is_dir() else "a pipe, socket or device")
    if num_bytes == 0:
        raise DecodeError("unreadable", "0 bytes")
    file_digest = file_sha256(local)
    with open_audio(local) as audio:
        header = audio.header
        digest = AudioDigest(header)
        for _ in digest.follow(audio.blocks()):
            pass
    num_samples = digest.num_samples
    check_length(header, num_samples, config.length_tolerance_seconds)
    seconds = num_samples / header.sample_rate
    if seconds < config.min_seconds:
        raise DecodeError("too_short", f"{seconds:.3f} s, at least {config.min_seconds} s are asked for")
    if seconds > config.max_seconds:
        raise DecodeError("too_long", f"{seconds:.3f} s, at most {config.max_seconds} s are asked for")
    peak_dbfs = 20 * math.log10(max(digest.peak, 1e-10))
    if peak_dbfs < config.silence_dbfs:
        raise DecodeError("silent", f"peak {peak_dbfs:.1f} dBFS, at least {config.silence_dbfs} dBFS is asked for")
    group = track_group(path, config.group_by)
    return Track(
        key=track_key(path), path=path, bytes=num_bytes, sha256=file_digest, audio_sha256=digest.hexdigest(),
        sample_rate=header.sample_rate, channels=header.channels, num_samples=num_samples,
        seconds=round(seconds, 6),
        header_seconds=None if header.num_samples is None else round(header.num_samples / header.sample_rate, 6),
        format=header.format, group=group, split=choose_split(group, config.seed, config.splits),
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a local file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without_duplicates(results: list[Track | Reject]) -> Iterator[Track | Reject]:
    """Keep one of the tracks with the same decoded audio: the first in path order, one in train before others.

    So a copy that is added in a folder of another split takes nothing that was trained on into it.
    """
    kept: dict[str, str] = {}
    tracks = (result for result in results if isinstance(result, Track))
    for track in sorted(tracks, key=lambda track: (track.split != REST_SPLIT, track.path)):
        kept.setdefault(track.audio_sha256, track.path)
    for result in results:
        if isinstance(result, Track) and kept[result.audio_sha256] != result.path:
            result = Reject(path=result.path, reason="duplicate", detail=f"same audio as {kept[result.audio_sha256]}")
        yield result


def write_manifest(config: ManifestConfig, results: list[Track | Reject]) -> dict:
    """Publish the three files, manifest.yaml last; returns its content."""
    tracks = sorted((result for result in results if isinstance(result, Track)), key=lambda track: track.key)
    rejects = sorted((result for result in results if isinstance(result, Reject)), key=lambda reject: reject.path)
    rows = _json_lines(tracks)
    summary = {
        "schema_version": SCHEMA_VERSION,
        "root": config.root,
        "config": config.recorded(),
        "manifest_sha256": hashlib.sha256(rows).hexdigest(),
        "splits": _totals(tracks, [REST_SPLIT, *config.splits]),
        "rejected": dict(sorted(Counter(reject.reason for reject in rejects).items())),
    }
    publish_bytes(join(config.out, "manifest.jsonl"), rows)
    publish_bytes(join(config.out, "rejected.jsonl"), _json_lines(rejects))
    publish_bytes(join(config.out, "manifest.yaml"), yaml.safe_dump(summary, sort_keys=True).encode())
    return summary


def load_manifest(folder: str) -> Manifest:
    """Read a manifest folder.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another schema version, or manifest.jsonl is not the one manifest.yaml was written for.
    """
    summary = yaml.safe_load(read_bytes(join(folder, "manifest.yaml")))
    if not isinstance(summary, dict) or not {"schema_version", "root", "manifest_sha256"} <= set(summary):
        raise ValueError(f"{folder}/manifest.yaml: not a manifest, it lacks schema_version, root or manifest_sha256")
    if summary["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"{folder}/manifest.yaml: schema version {summary['schema_version']}, this is version {SCHEMA_VERSION}")
    rows = read_bytes(join(folder, "manifest.jsonl"))
    digest = hashlib.sha256(rows).hexdigest()
    if digest != summary["manifest_sha256"]:
        raise ValueError(f"{folder}/manifest.jsonl: SHA-256 {digest}, manifest.yaml says {summary['manifest_sha256']}")
    tracks = [Track(**json.loads(line)) for line in rows.splitlines()]
    return Manifest(root=summary["root"], sha256=digest, tracks=tracks)


def _json_lines(rows: Iterable[BaseModel]) -> bytes:
    return b"".join(json.dumps(row.model_dump(), sort_keys=True, ensure_ascii=True).encode() + b"\n" for row in rows)


def _totals(tracks: list[Track], splits: list[str]) -> dict:
    seconds: dict[str, list[float]] = defaultdict(list)
    for track in tracks:
        seconds[track.split].append(track.seconds)
    return {
        split: {"tracks": len(seconds[split]), "hours": round(sum(seconds[split]) / 3600, 6)} for split in splits
    }
