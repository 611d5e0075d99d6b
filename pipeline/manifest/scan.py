"""Scan a corpus once: one row a track with content hashes and its true length, one line a reject with a reason.

The files written are a pure function of the corpus, the settings and the seed: not of worker count, listing
order, clock or host, nor of where the corpus lies.
"""

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from fsspec import AbstractFileSystem
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mert_foundry.pipeline.audio.audio_file import AudioHeader
from mert_foundry.pipeline.audio.blocks import SILENCE_DBFS
from mert_foundry.pipeline.audio.decode import AudioDigest, check_length, decoder_faults, open_audio
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.levels import Levels
from mert_foundry.pipeline.audio.resample import mono_to_int16, to_mono
from mert_foundry.pipeline.frames import nearest_rate
from mert_foundry.pipeline.manifest.rows import REST_SPLIT, SCHEMA_VERSION, Reject, Track, count_streams_and_notes
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.documents import file_sha256


class ManifestConfig(BaseModel):
    """What `mert manifest` needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str = Field(description="Folder or fsspec URL with the audio; scanned with all folders below it")
    out: str = Field(description="Folder or fsspec URL for manifest.jsonl, rejected.jsonl, manifest.yaml")
    seed: int = Field(default=0, description="Seed of the split")
    splits: dict[str, float] = Field(
        default={"valid": 0.05}, description="Share per split, met on average over the groups; what is left is train"
    )
    group_by: Literal["folder", "track"] = Field(
        default="folder", description="What must not straddle splits: a folder (a track right under root counts alone)"
    )
    min_seconds: float = Field(default=3.0, ge=0, description="Shorter tracks are rejected, seconds")
    max_seconds: float = Field(default=10_800.0, gt=0, description="Longer tracks are rejected, seconds")
    silence_dbfs: float = Field(
        default=SILENCE_DBFS,
        description="Tracks whose peak, as stored (24 kHz mono), is below are rejected, dB full scale",
    )
    max_clipped_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Tracks with a larger share of samples more than 1 dB beyond full scale are rejected",
    )
    length_tolerance_seconds: float = Field(
        default=0.2,
        ge=0,
        description="The header of a lossy format may differ from the decoded length by this, seconds",
    )
    exclude: str = Field(
        default="",
        description="Data folder of probe sets, or one task.yaml: tracks that hold one of their test clips are rejected",
    )
    workers: int = Field(default=0, ge=0, description="Decoding processes; 0: one a core")

    @model_validator(mode="after")
    def _check_splits(self) -> "ManifestConfig":
        for name in self.splits:
            if not re.fullmatch(r"[a-z][a-z0-9]*", name) or name == REST_SPLIT:
                raise ValueError(
                    f"splits: {name!r} is not a split name (lower-case letters and digits; not {REST_SPLIT!r})"
                )
        if any(share < 0 for share in self.splits.values()) or sum(self.splits.values()) >= 1:
            raise ValueError(f"splits: shares {self.splits} must be positive and leave something for {REST_SPLIT!r}")
        return self

    def recorded(self) -> dict:
        """The settings that shape the result, without folders and worker count."""
        return self.model_dump(
            mode="json", exclude={"root", "out", "workers"} | ({"exclude"} if not self.exclude else set())
        )


ExamineAll = Callable[[Callable[[str], Track | Reject], list[str], int], Iterable[Track | Reject]]


def examine_in_threads(
    examine: Callable[[str], Track | Reject], paths: list[str], workers: int
) -> Iterator[Track | Reject]:
    """The result of each path, in order. A decoder that crashes takes all of them with it: commands use processes."""
    with ThreadPoolExecutor(workers) as threads:
        yield from threads.map(examine, paths)


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


def scan(
    config: ManifestConfig,
    report: Callable[[float, int], None] = lambda seconds, rejected: None,
    examine_all: ExamineAll = examine_in_threads,
) -> list[Track | Reject]:
    """Decode every file under the root once; returns a row or a reject for each, duplicates resolved.

    `report` is called after each file with its seconds (0 when rejected) and the number of rejects so far.
    """
    filesystem, root = files.open_filesystem(config.root)
    if not filesystem.isdir(root):
        raise FileNotFoundError(f"root {config.root}: no such folder")
    root = root.rstrip("/")
    out_filesystem, out = files.open_filesystem(config.out)
    if out_filesystem == filesystem and f"{out.rstrip('/')}/".startswith(f"{root}/"):
        raise ValueError(f"out {config.out} lies in root {config.root}: the next scan would find its own files")
    return list(_without_duplicates(examine_files(config, report, examine_all)))


def examine_files(
    config: ManifestConfig, report: Callable[[float, int], None], examine_all: ExamineAll
) -> list[Track | Reject]:
    """A row or a reject for every file under the root, in the order of their paths, and for a folder that cannot be listed.

    `report` is called as by `scan`.
    """
    filesystem, root = files.open_filesystem(config.root)
    paths, unlisted = list_files(filesystem, root.rstrip("/"))
    results: list[Track | Reject] = [*unlisted]
    rejected = len(unlisted)
    for result in examine_all(partial(examine, config=config), paths, config.workers or os.cpu_count() or 1):
        rejected += isinstance(result, Reject)
        report(result.seconds if isinstance(result, Track) else 0.0, rejected)
        results.append(result)
    return sorted(results, key=lambda result: result.path)


def list_files(filesystem: AbstractFileSystem, root: str) -> tuple[list[str], list[Reject]]:
    """Paths, relative to the root, of all files below it, sorted, and the folders that could not be listed.

    Raises OSError when the root cannot be listed. (fsspec's own walk leaves out without a word what it cannot list.)
    """
    paths, rejects, waiting = [], [], [root]
    while waiting:
        folder = waiting.pop()
        try:
            entries = filesystem.ls(folder, detail=True)
        except OSError as error:
            if folder == root:
                raise
            # Not the file's own fault: nobody knows how many files are in there.
            rejects.append(
                Reject(path=folder[len(root) + 1 :], reason="unreachable", detail=f"cannot be listed: {_detail(error)}")
            )
            continue
        for entry in entries:
            path = entry["name"].rstrip("/")
            if entry["type"] != "directory":
                paths.append(path[len(root) + 1 :])
            elif path != folder:
                waiting.append(path)
    return sorted(paths), rejects


def examine(path: str, config: ManifestConfig) -> Track | Reject:
    """Decode one file (path relative to the root) and describe it, or say why it is rejected, whatever goes wrong."""
    try:
        with files.local_copy(config.root, path) as local, decoder_faults():
            return _describe(path, local, config)
    except DecodeError as error:
        return Reject(path=path, reason=error.reason, detail=error.detail)
    except Exception as error:  # of the storage, whose libraries have errors of their own
        return _reject(path, error)


def _reject(path: str, error: Exception) -> Reject:
    """What the storage says of a file that it does not give."""
    reason = "unreadable" if files.is_fault_of_file(error) else "unreachable"
    return Reject(path=path, reason=reason, detail=_detail(error))


def _detail(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or f"{type(error).__name__}: {error}").split())


def crashed(path: str) -> Reject:
    """The reject of a file that ended the process which decoded it."""
    return Reject(
        path=path, reason="unreadable", detail="the decoder crashed: its process died, also when it had this file alone"
    )


def _describe(path: str, local: Path, config: ManifestConfig) -> Track:
    num_bytes = _size(local)
    file_digest = file_sha256(local)
    levels = Levels()
    with open_audio(local) as audio:
        header = audio.header
        digest = AudioDigest(header)
        blocks = _not_too_long(digest.follow(audio.blocks()), header, config)
        mix = levels.follow_mix(map(to_mono, blocks))
        for _ in levels.follow_stored(mono_to_int16(mix, header.sample_rate)):
            pass
    check_length(header, digest.num_samples, config.length_tolerance_seconds)
    seconds = digest.num_samples / header.sample_rate
    _check_use(seconds, levels, config)
    group = track_group(path, config.group_by)
    loudness = levels.loudness_lufs()
    return Track(
        key=track_key(path),
        path=path,
        bytes=num_bytes,
        sha256=file_digest,
        audio_sha256=digest.hexdigest(),
        sample_rate=header.sample_rate,
        channels=header.channels,
        num_samples=digest.num_samples,
        seconds=round(seconds, 6),
        header_seconds=None if header.num_samples is None else round(header.num_samples / header.sample_rate, 6),
        format=header.format,
        group=group,
        split=choose_split(group, config.seed, config.splits),
        peak_dbfs=round(levels.peak_dbfs, 2),
        loudness_lufs=None if loudness is None else round(loudness, 1),
        clipped_share=round(levels.clipped_share, 6),
        stream=header.stream,
        notes=_notes(header),
    )


def _size(local: Path) -> int:
    """Bytes of a file. Raises DecodeError when it is none, or empty."""
    num_bytes = local.stat().st_size
    if not local.is_file():
        # Reading a pipe or a device could wait for ever; links to folders could go round.
        raise DecodeError("not_audio", "a linked folder" if local.is_dir() else "a pipe, socket or device")
    if num_bytes == 0:
        raise DecodeError("unreadable", "0 bytes")
    return num_bytes


def _not_too_long(blocks: Iterable[np.ndarray], header: AudioHeader, config: ManifestConfig) -> Iterator[np.ndarray]:
    """Pass blocks `[channels, n]` on. Raises DecodeError `too_long` as soon as that is known: hours need not be decoded."""
    seconds = (header.num_samples or 0) / header.sample_rate
    if seconds > config.max_seconds:
        raise DecodeError("too_long", f"{seconds:.3f} s by its header, at most {config.max_seconds} s are asked for")
    decoded = 0
    for block in blocks:
        decoded += block.shape[1]
        if decoded > config.max_seconds * header.sample_rate:
            raise DecodeError("too_long", f"more than {config.max_seconds} s")
        yield block


def _check_use(seconds: float, levels: Levels, config: ManifestConfig) -> None:
    """Raise DecodeError for a track that is of no use by the settings, with both values."""
    if seconds < config.min_seconds:
        raise DecodeError("too_short", f"{seconds:.3f} s, at least {config.min_seconds} s are asked for")
    if levels.clipped_share > config.max_clipped_share:
        raise DecodeError(
            "clipped",
            f"{levels.clipped_share:.2%} of the samples lie more than 1 dB beyond full scale, at most {config.max_clipped_share:.2%} may",
        )
    if levels.peak_dbfs < config.silence_dbfs:
        raise DecodeError(
            "silent",
            f"peak {levels.peak_dbfs:.1f} dBFS in the mono mix at 24 kHz, at least {config.silence_dbfs} dBFS is asked for",
        )


def _notes(header: AudioHeader) -> list[str]:
    rate = nearest_rate(header.sample_rate)
    return [*header.notes, *([f"resampled as {rate} Hz"] if rate != header.sample_rate else [])]


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
        **count_streams_and_notes(tracks),
    }
    files.publish_bytes(files.join(config.out, "manifest.jsonl"), rows)
    files.publish_bytes(files.join(config.out, "rejected.jsonl"), _json_lines(rejects))
    files.publish_bytes(files.join(config.out, "manifest.yaml"), yaml.safe_dump(summary, sort_keys=True).encode())
    return summary


def _json_lines(rows: Iterable[BaseModel]) -> bytes:
    return b"".join(json.dumps(row.model_dump(), sort_keys=True, ensure_ascii=True).encode() + b"\n" for row in rows)


def _totals(tracks: list[Track], splits: list[str]) -> dict:
    seconds: dict[str, list[float]] = defaultdict(list)
    for track in tracks:
        seconds[track.split].append(track.seconds)
    return {split: {"tracks": len(seconds[split]), "hours": round(sum(seconds[split]) / 3600, 6)} for split in splits}
