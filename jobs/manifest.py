"""Scan a folder (or fsspec URL) of audio into a manifest.

    mert manifest configs/manifest.yaml root=AUDIO_FOLDER out=MANIFEST_FOLDER

Writes manifest.jsonl (one line per track), rejected.jsonl (one line per rejected file, with the reason) and
manifest.yaml (settings, counts and hours). `exclude=DATA` keeps out tracks that hold a test clip of the probe sets in that
folder. Exit code 1 when no track is left, or when the storage
did not give a file: the same command tries again.
"""

import os
import sys
from collections.abc import Iterator
from functools import partial

from mert_foundry.jobs.cluster.worker_processes import map_in_processes
from mert_foundry.jobs.command.config import load_config
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.command.preflight import check_writable
from mert_foundry.jobs.command.progress import Progress
from mert_foundry.jobs.command.text import printable
from mert_foundry.pipeline.manifest.exclusion import ProbeFile, exclude, probe_files
from mert_foundry.pipeline.manifest.rows import REST_SPLIT, Reject, Track
from mert_foundry.pipeline.manifest.scan import ManifestConfig, crashed, scan, write_manifest
from mert_foundry.pipeline.manifest.split_balance import find_better_seed, find_imbalances, wanted_shares
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.folder_kinds import MANIFEST, check_output

CONFIG = ManifestConfig


def main(arguments: list[str]) -> int:
    config = load_config(CONFIG, arguments)
    check_output(config.out, MANIFEST)
    if files.is_local(config.out):
        check_writable(files.local_path(files.join(config.out, "manifest.yaml")))  # now, not after hours of decoding
    probed = probe_files(config.exclude) if config.exclude else []  # also now
    done = 0.0
    with Progress("manifest") as progress:

        def report(seconds: float, rejected: int) -> None:
            nonlocal done
            done += seconds
            progress.update(done, f"{rejected} rejected")

        results = scan(config, report, partial(map_in_processes, crashed=crashed))
    if probed:
        results = leave_out_probe_clips(config, results, probed)
    summary = write_manifest(config, results)
    unreachable = [result for result in results if isinstance(result, Reject) and result.reason == "unreachable"]
    tracks = [result for result in results if isinstance(result, Track)]
    console.finish({"out": config.out, **summary}, summary_lines(config, summary, tracks))
    for reject in unreachable:
        print(printable(f"error: {reject.path}: unreachable: {reject.detail}"), file=sys.stderr)
    if unreachable:
        print(
            f"{len(unreachable)} files or folders could not be reached; run the command again to retry", file=sys.stderr
        )
        return 1
    if not any(split["tracks"] for split in summary["splits"].values()):
        print(f"error: no usable track under {config.root}; {config.out}/rejected.jsonl says why", file=sys.stderr)
        return 1
    return 0


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
        print(printable(f"warning: {path}: its test clips cannot be looked for: {fault}"), file=sys.stderr)
    if exclusion.plain:
        print(
            f"warning: {exclusion.plain} of {exclusion.clips} test clips are too plain for a fingerprint and were looked for by"
            " their hash alone",
            file=sys.stderr,
        )
    return exclusion.results


def summary_lines(config: ManifestConfig, summary: dict, tracks: list[Track]) -> Iterator[str]:
    """Tracks and hours by split, those wanted too, rejects by reason, and a word on splits that are not as wanted."""
    total = sum(totals["hours"] for totals in summary["splits"].values())
    shares = wanted_shares(config)
    for split, totals in summary["splits"].items():
        yield f"{split}: {totals['tracks']} tracks, {totals['hours']:.3f} h ({shares[split] * total:.3f} h wanted)"
        if not totals["tracks"] and (split == REST_SPLIT or config.splits[split] > 0):
            yield f"  warning: split {split!r} is empty; group_by={config.group_by}, group_by=track gives the finest groups"
    yield from imbalance_lines(config, tracks)
    reasons = ", ".join(f"{count} {reason}" for reason, count in summary["rejected"].items())
    yield f"rejected: {reasons or 'none'}"
    if summary["one_of_several_streams"]:
        yield f"one of several streams taken: {summary['one_of_several_streams']} tracks"
    for note, count in summary["notes"].items():
        yield f"{note}: {count} tracks"
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
