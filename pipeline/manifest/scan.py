"""Scan a corpus: one row a track with content hashes and its true length, one line a reject with a reason.

The files written are a pure function of the corpus, the settings and the seed: not of worker count, listing
order, clock or host, nor of where the corpus lies or what was known of it before.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import yaml

from mert_foundry.pipeline.manifest.examine import (
    ExamineAll,
    Examined,
    Examiner,
    examine_in_threads,
    judge,
    read_sha256,
    result_version,
)
from mert_foundry.pipeline.manifest.file_list import FileListRow, read_file_list
from mert_foundry.pipeline.manifest.known_files import KnownFiles
from mert_foundry.pipeline.manifest.listing import FoundFiles, check_apart, check_folder, list_files, stamp_files
from mert_foundry.pipeline.manifest.placement import place
from mert_foundry.pipeline.manifest.rows import (
    REST_SPLIT,
    SCHEMA_VERSION,
    Reject,
    Row,
    Track,
    count_streams_and_notes,
    row_line,
)
from mert_foundry.pipeline.manifest.scan_parts import ScanParts
from mert_foundry.pipeline.manifest.settings import ManifestConfig
from mert_foundry.pipeline.storage import files


@dataclass(frozen=True)
class ScanProgress:
    """Where a scan stands: files known before, files decoded of those to decode, seconds of audio decoded, rejects so
    far.
    """

    known: int
    decoded: int
    to_decode: int
    seconds: float
    rejected: int


def scan(
    config: ManifestConfig,
    report: Callable[[ScanProgress], None] = lambda progress: None,
    examine_all: ExamineAll = examine_in_threads,
    parts: ScanParts | None = None,
) -> list[Track | Reject]:
    """A row or a reject for every file under the root, in the order of their paths, duplicates resolved.

    Args:
        report: called when it is known what is to decode, and after each file that is decoded.
        examine_all: how the files are spread.
        parts: what earlier scans found, which is not decoded again; what is found is added. Without, all files are
            decoded.

    Raises as `check_folders`, and OSError when the root cannot be listed.
    """
    check_folders(config)
    listed = read_file_list(config) if config.files else {}
    if config.files:
        found = stamp_files(config.root, listed, config.patience)
    else:
        found = list_files(config.root, config.patience)
    outcomes = find_or_examine(config, found, report, examine_all, parts)
    results = [*found.unlisted, *(_place(result, config, listed) for result in outcomes)]
    if parts is not None:
        parts.finish()
    return list(_without_duplicates(sorted(results, key=lambda result: result.path)))


def check_machine(config: ManifestConfig, version: dict) -> None:
    """Check that a machine of a cluster finds what the one finds that began the scan; `version` is `result_version`
    there.

    Raises:
        FileNotFoundError: this machine does not see the root.
        ValueError: its decoders or their libraries are others.
    """
    check_folder(config.root, config.patience)
    for name, value in result_version(config).items():
        if value != version.get(name):
            raise ValueError(f"{name} is {value} on a node, and {version.get(name)} where the scan was started")


def check_folders(config: ManifestConfig) -> None:
    """Look at the folders before any work.

    Raises:
        FileNotFoundError: there is no such root.
        OSError: the storage of the root does not answer.
        ValueError: the output lies in the root.
    """
    check_folder(config.root, config.patience)
    check_apart(config.out, config.root)


def find_or_examine(
    config: ManifestConfig,
    found: FoundFiles,
    report: Callable[[ScanProgress], None],
    examine_all: ExamineAll,
    known: KnownFiles | None,
) -> Iterator[Track | Reject]:
    """The result of every file that was found below the root, those that are known first; what is examined is added to
    `known`.
    """
    before = _find_known(config, found, known) if known else {}
    yield from before.values()
    missing = [path for path in found.stamps if path not in before]
    rejected = len(found.unlisted) + sum(isinstance(result, Reject) for result in before.values())
    seconds = 0.0
    report(ScanProgress(len(before), 0, len(missing), seconds, rejected))
    examined = examine_all(Examiner(config), missing, config.workers or os.cpu_count() or 1)
    try:
        for decoded, one in enumerate(examined, 1):
            result = judge(one.result, config)
            rejected += isinstance(result, Reject)
            seconds += one.seconds
            report(ScanProgress(len(before), decoded, len(missing), seconds, rejected))
            if known:
                known.add(found.stamps[one.result.path], one)
            yield result
    finally:
        if known:  # what was decoded before an interrupt or an error
            known.publish()


def _find_known(config: ManifestConfig, found: FoundFiles, known: KnownFiles) -> dict[str, Track | Reject]:
    """Results of files that are known by their stamp or their bytes, by path."""
    by_stamp = {path: result for path, stamp in found.stamps.items() if (result := known.find(path, stamp))}
    others = [path for path in found.stamps if path not in by_stamp]
    results = by_stamp | _find_by_bytes(config, found, others, known)
    return {path: judge(result, config) for path, result in results.items()}


def _find_by_bytes(
    config: ManifestConfig, found: FoundFiles, paths: list[str], known: KnownFiles
) -> dict[str, Track | Reject]:
    """Results of files that look changed, or lie elsewhere now, and hold the bytes they held; these are read, not
    decoded.
    """
    as_before = {path: before for path in paths if (before := known.find_bytes(path))}
    same: dict[str, Track | Reject] = {}
    threads = ThreadPoolExecutor(config.workers or os.cpu_count() or 1)
    try:
        for path, sha256 in zip(as_before, threads.map(partial(read_sha256, config=config), as_before)):
            digest, result = as_before[path]
            if sha256 == digest:
                same[path] = result
                if found.stamps[path]:
                    known.add(found.stamps[path], Examined(result, is_lasting=True, sha256=digest))
    finally:
        threads.shutdown(cancel_futures=True)
        known.publish()
    return same


def _place(result: Track | Reject, config: ManifestConfig, listed: Mapping[str, FileListRow]) -> Track | Reject:
    """A track in the group and split that the list gives it, or the settings; its tags beside the list's columns, which
    count before them.
    """
    if isinstance(result, Reject):
        return result
    own = listed.get(result.path)
    if own is None:
        return place(result, config)
    extra = {**(own.extra or {})}
    extra |= {tag: text for tag, text in (result.extra or {}).items() if extra.get(tag) in (None, "")}
    return msgspec.structs.replace(result, group=own.group, split=own.split, extra=extra or None)


def find_removed(before: Iterable[str], results: Iterable[Track | Reject]) -> list[str]:
    """Paths of an earlier manifest that are no longer there, nor below a folder that could not be listed now."""
    paths = {result.path for result in results}
    unreachable = tuple(
        f"{result.path}/" for result in results if isinstance(result, Reject) and result.reason == "unreachable"
    )
    return sorted(path for path in before if path not in paths and not path.startswith(unreachable))


def _without_duplicates(results: list[Track | Reject]) -> Iterator[Track | Reject]:
    """Keep one of the tracks with the same decoded audio: the first in path order, one in train before others.

    So a copy that is added in a folder of another split takes nothing that was trained on into it.
    """
    first: dict[str, str] = {}
    tracks = (result for result in results if isinstance(result, Track))
    for track in sorted(tracks, key=lambda track: (track.split != REST_SPLIT, track.path)):
        first.setdefault(track.audio_sha256, track.path)
    for result in results:
        if isinstance(result, Track) and first[result.audio_sha256] != result.path:
            result = Reject(path=result.path, reason="duplicate", detail=f"same audio as {first[result.audio_sha256]}")
        yield result


def tracks_and_rejects(results: Iterable[Track | Reject]) -> tuple[list[Track], list[Reject]]:
    """Tracks by key, and rejects by path."""
    results = list(results)
    tracks = sorted((result for result in results if isinstance(result, Track)), key=lambda track: track.key)
    return tracks, sorted((result for result in results if isinstance(result, Reject)), key=lambda reject: reject.path)


def write_manifest(config: ManifestConfig, results: list[Track | Reject]) -> dict:
    """Publish the three files, manifest.yaml last; returns its content."""
    tracks, rejects = tracks_and_rejects(results)
    with files.publishing(files.join(config.out, "manifest.jsonl")) as temporary:
        digest = _write_lines(temporary, tracks)
    with files.publishing(files.join(config.out, "rejected.jsonl")) as temporary:
        _write_lines(temporary, rejects)
    summary = {
        "schema_version": SCHEMA_VERSION,
        "root": config.root,
        "config": config.recorded(),
        "manifest_sha256": digest,
        "splits": _totals(tracks, [REST_SPLIT, *config.splits]),
        "rejected": dict(sorted(Counter(reject.reason for reject in rejects).items())),
        **count_streams_and_notes(tracks),
    }
    files.publish_bytes(files.join(config.out, "manifest.yaml"), yaml.safe_dump(summary, sort_keys=True).encode())
    return summary


def _write_lines(path: Path, rows: Iterable[Row]) -> str:
    """Write rows as JSON lines; returns the SHA-256 of the file."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for row in rows:
            line = row_line(row)
            digest.update(line)
            file.write(line)
    return digest.hexdigest()


def _totals(tracks: list[Track], splits: list[str]) -> dict:
    seconds: dict[str, list[float]] = defaultdict(list)
    for track in tracks:
        seconds[track.split].append(track.seconds)
    return {split: {"tracks": len(seconds[split]), "hours": round(sum(seconds[split]) / 3600, 6)} for split in splits}
