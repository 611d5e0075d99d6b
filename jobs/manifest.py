"""Scan a folder (or fsspec URL) of audio into a manifest.

    mert manifest configs/manifest.yaml root=AUDIO_FOLDER out=MANIFEST_FOLDER
    ray job submit -- mert manifest $PWD/configs/manifest.yaml root=s3://BUCKET/audio out=s3://BUCKET/manifest

Writes manifest.jsonl (one line per track), rejected.jsonl (one line per rejected file, with the reason) and
manifest.yaml (settings, counts and hours). `exclude=DATA` keeps out tracks that hold a test clip of the probe sets in
that folder. Exit code 1 when no track is left (a manifest with tracks then stays as it was), or when the storage did
not give a
file: the same command tries again.

Processes of this machine decode, one a core; or Ray, when address= names a cluster or RAY_ADDRESS is set (as in a
submitted job). The same bytes come out.

What is found is kept in OUT/scan while the scan goes on. After a stop or a kill the same command goes on; later it
decodes only files that are new or changed. A file of the same root, path, size, number (inode) and times of change (or
entity tag) is not read. Any other is read, and not decoded when its bytes are those that were under its path before: so
a moved or copied corpus is read once. What was found of files that are gone is kept for when they come back. --recheck
forgets all and decodes all files.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import TypeVar

from mert_foundry.jobs.cluster.worker_processes import map_in_processes
from mert_foundry.jobs.command.config import load_config
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.command.preflight import check_writable, locked
from mert_foundry.jobs.command.progress import Progress
from mert_foundry.jobs.command.text import printable
from mert_foundry.pipeline.manifest.examine import crashed, lost, result_version
from mert_foundry.pipeline.manifest.exclusion import ProbeFile, exclude, probe_files
from mert_foundry.pipeline.manifest.near_duplicates import CLUSTERS_NAME, Cluster, publish_clusters, resolve
from mert_foundry.pipeline.manifest.rows import REST_SPLIT, Reject, Track, read_paths
from mert_foundry.pipeline.manifest.scan import (
    ScanProgress,
    check_folders,
    check_machine,
    find_removed,
    scan,
    write_manifest,
)
from mert_foundry.pipeline.manifest.scan_parts import FOLDER, ScanParts
from mert_foundry.pipeline.manifest.settings import Keep, ManifestConfig
from mert_foundry.pipeline.manifest.sketches import find_sketches, lost_sketch
from mert_foundry.pipeline.manifest.split_balance import find_better_seed, find_imbalances, wanted_shares
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.folder_kinds import MANIFEST, check_output

Item = TypeVar("Item")
Result = TypeVar("Result")
CONFIG = ManifestConfig
RECHECK = "--recheck"
MOST_REMOVED = 20  # files that are named on a terminal


def main(arguments: list[str]) -> int:
    config = load_config(CONFIG, [argument for argument in arguments if argument != RECHECK])
    check_output(config.out, MANIFEST)
    probed = probe_files(config.exclude) if config.exclude else []  # now, not after hours of decoding
    if not files.is_local(config.out):
        return make_manifest(config, probed, RECHECK in arguments)
    out = files.local_path(config.out)
    check_writable(out / "manifest.yaml")
    check_folders(config)  # before the lock, whose file is the first thing written
    with locked(out / FOLDER, "scanning"):
        return make_manifest(config, probed, RECHECK in arguments)


def make_manifest(config: ManifestConfig, probed: list[ProbeFile], recheck: bool) -> int:
    """Scan, publish, and say what was found; returns the exit code."""
    files.sweep_temporary(config.out)
    before = paths_before(config)
    parts = ScanParts(config.out, result_version(config), recheck)
    if parts.stale:
        console.say(f"what was found before is not used: {parts.stale}")
    results, state = scan_with_progress(config, parts)
    removed = find_removed(before, results)
    if probed:
        results = leave_out_probe_clips(config, results, probed)
    clusters: list[Cluster] = []
    if config.near_duplicates:
        results, clusters = resolve_near_duplicates(config, results, config.near_duplicates.keep)
    if not find_tracks(results) and has_tracks(config.out):
        print_unreachable(results)
        say_no_track(config, f"the manifest in {config.out}, which has tracks, stays as it was")
        return 1
    if config.near_duplicates:
        publish_clusters(config.out, clusters)
    else:
        files.remove(files.join(config.out, CLUSTERS_NAME))  # of another corpus than the manifest will be of
    summary = write_manifest(config, results)
    tracks = find_tracks(results)
    document = {"out": config.out, "known": state.known, "decoded": state.decoded, "removed": removed, **summary}
    lines = chain(file_lines(state, removed), cluster_lines(config, clusters), summary_lines(config, summary, tracks))
    console.finish(document, lines)
    return exit_code(config, results)


def find_tracks(results: list[Track | Reject]) -> list[Track]:
    return [result for result in results if isinstance(result, Track)]


def has_tracks(out: str) -> bool:
    """Whether a manifest is there, with a line at least."""
    location = files.join(out, "manifest.jsonl")
    return files.exists(location) and files.size(location) > 0


def paths_before(config: ManifestConfig) -> list[str]:
    """Files of the manifest that is there and will be replaced."""
    try:
        return read_paths(config.out)
    except ValueError as error:
        console.warn(f"warning: {error}; removed files cannot be listed")
        return []


def scan_with_progress(config: ManifestConfig, parts: ScanParts) -> tuple[list[Track | Reject], ScanProgress]:
    """Results of the scan, and where it stood at its end."""
    last: ScanProgress | None = None
    with Progress("manifest") as progress:

        def report(state: ScanProgress) -> None:
            nonlocal last
            last = state
            known = f"{state.known} files known, " if state.known else ""
            progress.update(
                state.seconds, f"{known}{state.decoded} of {state.to_decode} decoded, {state.rejected} rejected"
            )

        results = scan(config, report, lambda work, paths, workers: map_all(config, work, paths, crashed, lost), parts)
    assert last is not None, "a scan reports once at least"
    return results, last


def map_all(
    config: ManifestConfig,
    work: Callable[[Item], Result],
    items: Sequence[Item],
    crashed: Callable[[Item], Result],
    lost: Callable[[Item, str], Result],
) -> Iterator[Result]:
    """Results of work on many items, in any order: by processes of this machine, or by Ray where it is asked for.

    Not by Ray of this machine by default, as `mert label` does: to start it takes longer than to scan a small corpus,
    and its processes do here what those without it do.
    """
    if not (config.address or os.environ.get("RAY_ADDRESS")):
        return map_in_processes(work, items, config.workers or os.cpu_count() or 1, crashed)
    # Ray takes seconds to import, and only a scan on it needs it.
    from mert_foundry.jobs.cluster.ray_map import map_on_ray

    here = config.model_copy(update={"root": files.absolute(config.root)})
    check = partial(check_machine, here, result_version(config))
    return map_on_ray(
        work, items, config.workers, crashed, lost, address=config.address, wait=config.wait_for_nodes, check=check
    )


def exit_code(config: ManifestConfig, results: list[Track | Reject]) -> int:
    """1 when the storage did not give a file or no track is left, and says so."""
    if print_unreachable(results):
        return 1
    if not find_tracks(results):
        say_no_track(config, f"{config.out}/rejected.jsonl says why")
        return 1
    return 0


def say_no_track(config: ManifestConfig, more: str) -> None:
    console.warn(printable(f"error: no usable track under {config.root}; {more}"))


def print_unreachable(results: list[Track | Reject]) -> bool:
    """Say what the storage did not give; whether there was such a file or folder."""
    unreachable = [result for result in results if isinstance(result, Reject) and result.reason == "unreachable"]
    for reject in unreachable:
        console.warn(printable(f"error: {reject.path}: unreachable: {reject.detail}"))
    if unreachable:
        console.warn(f"{len(unreachable)} files or folders could not be reached; run the command again to retry")
    return bool(unreachable)


def file_lines(state: ScanProgress, removed: list[str]) -> Iterator[str]:
    """How many files were known and decoded, and which ones of the manifest of before are gone."""
    if state.known or removed:
        yield f"files: {state.known} known, {state.decoded} decoded, {len(removed)} removed since the last scan"
    for path in removed[:MOST_REMOVED]:
        yield printable(f"  removed: {path}")
    if len(removed) > MOST_REMOVED:
        yield f"  and {len(removed) - MOST_REMOVED} more; --json lists all"


def leave_out_probe_clips(
    config: ManifestConfig, results: list[Track | Reject], files: list[ProbeFile]
) -> list[Track | Reject]:
    """Tracks that hold test clips of probe sets become rejects; says what could not be looked for."""
    done = 0.0
    with Progress("probe clips") as progress:

        def report(seconds: float) -> None:
            nonlocal done
            done += seconds
            progress.update(done, "looked through")

        exclusion = exclude(
            results, config.root, files, map_in_processes, config.workers or os.cpu_count() or 1, report
        )
    for path, fault in exclusion.faults.items():
        console.warn(printable(f"warning: {path}: its test clips cannot be looked for: {fault}"))
    if exclusion.plain:
        console.warn(
            f"warning: {exclusion.plain} of {exclusion.clips} test clips are too plain for a fingerprint and were"
            " looked for by their hash alone"
        )
    return exclusion.results


def resolve_near_duplicates(
    config: ManifestConfig, results: list[Track | Reject], keep: Keep
) -> tuple[list[Track | Reject], list[Cluster]]:
    """Clusters of near duplicates, each in one group, and the results with rejects for those that are dropped."""
    with Progress("fingerprints") as progress:
        sketches = find_sketches(
            config.out,
            config.root,
            find_tracks(results),
            lambda work, tracks, crashed: map_all(config, work, tracks, crashed, lost_sketch),
            progress.update,
        )
    results = [
        sketches.rejects.get(result.audio_sha256, result) if isinstance(result, Track) else result for result in results
    ]
    outcome = resolve(results, sketches.found, keep)
    pairs = [(old, new) for old, new in zip(results, outcome.results) if isinstance(new, Track)]
    moved = [(old, new) for old, new in pairs if isinstance(old, Track) and old.split != new.split]
    for old, new in moved[:MOST_REMOVED]:
        console.warn(printable(f"warning: {new.path} goes from split {old.split} to {new.split}, that of its copies"))
    if len(moved) > MOST_REMOVED:
        console.warn(f"warning: and {len(moved) - MOST_REMOVED} more; {config.out}/{CLUSTERS_NAME} lists them")
    return outcome.results, outcome.clusters


def cluster_lines(config: ManifestConfig, clusters: list[Cluster]) -> Iterator[str]:
    """How many near duplicates were found, and what became of them."""
    if config.near_duplicates:
        copies = [copy for cluster in clusters for copy in cluster.tracks]
        kept = sum(copy.kept for copy in copies)
        yield (
            f"near duplicates: {len(copies)} tracks in {len(clusters)} clusters, {kept} kept;"
            f" {config.out}/{CLUSTERS_NAME}"
        )


def summary_lines(config: ManifestConfig, summary: dict, tracks: list[Track]) -> Iterator[str]:
    """Tracks and hours by split, those wanted too, rejects by reason, and a word on splits that are not as wanted."""
    total = sum(totals["hours"] for totals in summary["splits"].values())
    shares = wanted_shares(config)
    for split, totals in summary["splits"].items():
        yield f"{split}: {totals['tracks']} tracks, {totals['hours']:.3f} h ({shares[split] * total:.3f} h wanted)"
        if not totals["tracks"] and (split == REST_SPLIT or config.splits[split] > 0):
            yield (
                f"  warning: split {split!r} is empty; group_by={config.group_by}, group_by=track gives the finest"
                " groups"
            )
    if not config.files:  # whose splits may be the user's own
        yield from imbalance_lines(config, tracks)
    reasons = ", ".join(f"{count} {reason}" for reason, count in summary["rejected"].items())
    yield f"rejected: {reasons or 'none'}"
    if summary["one_of_several_streams"]:
        yield f"one of several streams taken: {summary['one_of_several_streams']} tracks"
    for note, count in summary["notes"].items():
        yield f"{note}: {count} tracks"
    for tag in config.tags:
        yield f"tag {tag}: {sum(tag in (track.extra or {}) for track in tracks)} of {len(tracks)} tracks"
    yield f"manifest: {config.out}"


def imbalance_lines(config: ManifestConfig, tracks: list[Track]) -> Iterator[str]:
    """Which splits have other hours than wanted, by which group, and what can be done."""
    imbalances = find_imbalances(tracks, config)
    for imbalance in imbalances:
        yield f"warning: {imbalance}"
    better = find_better_seed(tracks, config) if imbalances else None
    if better:
        seed, hours = better
        found = ", ".join(f"{split} {length:.3f} h" for split, length in hours.items())
        yield f"  seed={seed} comes nearer: {found}; another seed moves tracks, so choose it before you train"
    if imbalances and config.group_by == "folder":
        yield "  group_by=track makes small groups, but puts tracks of one folder into several splits"


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__, CONFIG))
