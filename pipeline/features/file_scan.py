"""Every file of a folder, or of a list, decoded once for its true length; results are kept for the next run.

The cache is a hidden file in the feature store: a header, then a line a file with its size, time of change and result. A
file of the same path, size and time is not decoded again. The cache is no output: it may be deleted at any time.
"""

import json
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import msgspec
from fsspec import AbstractFileSystem

from mert_foundry.pipeline.frames import AUDIO_VERSION
from mert_foundry.pipeline.manifest.examine import ExamineAll, examine, examine_in_threads
from mert_foundry.pipeline.manifest.listing import Listing, list_files
from mert_foundry.pipeline.manifest.rows import Reject, Track
from mert_foundry.pipeline.manifest.settings import ManifestConfig
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.files import open_filesystem

CACHE = ".scan.jsonl"
Stamp = list[Any]  # size in bytes, and the time of change as the file system states it


def scan_files(
    root: str,
    workers: int,
    cache: str,
    paths: list[str] | None = None,
    report: Callable[[float, int], None] = lambda seconds, rejected: None,
    examine_all: ExamineAll = examine_in_threads,
) -> tuple[list[Track], list[Reject]]:
    """Tracks, sorted by key, and files that are no usable audio, by path: of all files below a folder, or of `paths` below it.

    Short, silent and clipped files and duplicates are tracks too, and there are no splits: a manifest decides about these.

    Args:
        workers, examine_all: how the files are spread.
        cache: location of what an earlier scan found; written when there is something new, also when interrupted.
        report: called after each file that is decoded, with its seconds and the number of rejects so far.
    """
    filesystem, path = open_filesystem(root)
    if not filesystem.isdir(path):
        raise FileNotFoundError(f"input {root}: no such folder")
    listing = Listing(dict.fromkeys(paths), []) if paths is not None else list_files(root)
    listed, unlisted = list(listing.stamps), listing.unlisted
    stamps = {name: stamp(filesystem, files.join(path, name)) for name in listed}
    config = _rejecting_nothing(root, workers)
    header = {"audio_version": AUDIO_VERSION, "root": root, "settings": repr(config.recorded())}
    known = _load(cache, header)
    results = {name: known[name][1] for name in listed if stamps[name] and known.get(name, [None])[0] == stamps[name]}
    missing = [name for name in listed if name not in results]
    rejected = len(unlisted)
    try:
        for name, examined in zip(missing, examine_all(partial(examine, config=config), missing, workers)):
            result = results[name] = examined.result
            rejected += isinstance(result, Reject)
            report(result.seconds if isinstance(result, Track) else 0.0, rejected)
    finally:
        if missing and results:
            _save(cache, header, stamps, results)
    return _sorted_apart([*results.values(), *unlisted])


def _sorted_apart(found: list[Track | Reject]) -> tuple[list[Track], list[Reject]]:
    """Tracks by key, and rejects by path."""
    tracks = sorted((result for result in found if isinstance(result, Track)), key=lambda track: track.key)
    return tracks, sorted((result for result in found if isinstance(result, Reject)), key=lambda reject: reject.path)


def _rejecting_nothing(root: str, workers: int) -> ManifestConfig:
    """The settings of a manifest that rejects only files that are no audio."""
    return ManifestConfig(
        root=root,
        out=root,
        workers=workers,
        min_seconds=0.0,
        max_seconds=float("inf"),
        silence_dbfs=float("-inf"),
        max_clipped_share=1.0,
    )


def stamp(filesystem: AbstractFileSystem, path: str) -> Stamp | None:
    """Size and time of change, by which a file counts as the same; None when the file system states no time, or has no such file."""
    try:
        entry = filesystem.info(path)
    except OSError:
        return None
    changed = entry.get("mtime") or entry.get("LastModified") or entry.get("ETag") or entry.get("created")
    return None if changed is None else [entry.get("size"), str(changed)]


def _load(cache: str, header: dict) -> dict[str, tuple[Stamp, Track | Reject]]:
    """Stamps and results by path; none when the cache is not there, is damaged, or has another header."""
    try:
        lines = [json.loads(line) for line in files.read_bytes(cache).splitlines()]
        if not lines or lines[0] != header:
            return {}
        kinds = {"track": Track, "reject": Reject}
        return {
            line["path"]: (line["stamp"], msgspec.convert(line["result"], kinds[line["kind"]])) for line in lines[1:]
        }
    except (OSError, ValueError, KeyError, TypeError, msgspec.MsgspecError):
        return {}


def _save(cache: str, header: dict, stamps: dict[str, Stamp | None], results: dict[str, Track | Reject]) -> None:
    lines: Iterable[dict] = (
        {
            "path": name,
            "stamp": stamps[name],
            "kind": "track" if isinstance(result, Track) else "reject",
            "result": msgspec.structs.asdict(result),
        }
        for name, result in results.items()
        # What could not be reached may be there the next time.
        if stamps[name] and not (isinstance(result, Reject) and result.reason == "unreachable")
    )
    content = b"".join(json.dumps(line).encode() + b"\n" for line in (header, *lines))
    files.publish_bytes(cache, content)
