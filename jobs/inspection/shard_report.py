"""The page of `mert inspect SHARD_FOLDER --html`: summary, plots, and examples to hear and to see."""

import random
import shlex
from argparse import Namespace
from typing import Any

import numpy as np

from mert_foundry.jobs.command.text import human_bytes, number
from mert_foundry.jobs.inspection.example_view import add_examples
from mert_foundry.jobs.inspection.report_page import (
    ReportPage,
    histogram_plot,
    pitch_axis,
    reason_plot,
)
from mert_foundry.jobs.inspection.shard_view import rejected_by, teacher_name
from mert_foundry.pipeline.inspection.example_media import (
    loudness,
)
from mert_foundry.pipeline.inspection.examples import Place, find_examples, read_audio
from mert_foundry.pipeline.inspection.shard_summary import (
    ShardSet,
    ShardSummary,
    TargetSummary,
    load_shard_set,
    summarise_shard_set,
)
from mert_foundry.pipeline.shards.statistics import DiscreteSummary

EXAMPLES = 6
LOUDNESS_EXAMPLES = 60
MOST_RANKS = 80
MOST_DROPS = 100  # rows of a table


def report(options: Namespace) -> bytes:
    """The page of --html. Raises as reading index, records and examples does, and ValueError for an unknown key."""
    folder = options.locations[0]
    shard_set = load_shard_set(folder)
    summary = summarise_shard_set(shard_set, rejected_by(options.manifest, shard_set.index))
    page = ReportPage(
        kind="shard set",
        title=folder.rstrip("/"),
        command=f"mert inspect {shlex.quote(folder)} --html {shlex.quote(options.html)}",
    )
    places = examples_to_show(shard_set, options)
    add_overview(page, summary)
    add_lengths(page, shard_set, summary, options.seed or 0)
    for target in summary.targets:
        add_target(page, shard_set, target)
    add_losses(page, summary)
    add_examples(page, shard_set, places, options, track_paths(options.manifest))
    return page.render()


def track_paths(manifest_folder: str | None) -> dict[str, str]:
    """Track key to path, from a manifest; empty when none is named."""
    if manifest_folder is None:
        return {}
    from mert_foundry.pipeline.manifest.rows import load_manifest

    return {track.key: track.path for track in load_manifest(manifest_folder).tracks}


def examples_to_show(shard_set: ShardSet, options: Namespace) -> list[Place]:
    """The examples of --keys, or --examples drawn by --seed."""
    if options.keys:
        return find_examples(shard_set.folder, shard_set.index.shardlist, options.keys.split(","))
    return draw(shard_set, EXAMPLES if options.examples is None else options.examples, options.seed or 0)


def draw(shard_set: ShardSet, count: int, seed: int) -> list[Place]:
    """`count` examples of the records read, the same for the same seed, in the order of the set."""
    shards = {entry.name: entry for entry in shard_set.index.shardlist}
    everything = [Place(shards[record.name], entry) for record in shard_set.records for entry in record.members]
    chosen = random.Random(seed).sample(range(len(everything)), min(count, len(everything)))
    return [everything[number] for number in sorted(chosen)]


def add_overview(page: ReportPage, summary: ShardSummary) -> None:
    """Totals, splits, targets, and what the set was made from."""
    section = page.section("Overview")
    splits = summary.splits.values()
    section.figures(
        (f"{sum(split.hours for split in splits):.3g} h", "audio"),
        (f"{sum(split.examples for split in splits):,}", "examples"),
        (f"{summary.tracks:,}{'' if summary.records == summary.records_read else '+'}", "tracks"),
        (f"{summary.records:,}", "shards"),
        (human_bytes(sum(split.bytes for split in splits)), "on disk"),
        (f"{sum(summary.dropped.values()):,}", "segments dropped"),
    )
    rows = [
        (
            name,
            split.shards,
            f"{split.examples:,}",
            f"{split.hours:.3f}",
            human_bytes(split.bytes),
            f"{split.bytes_per_second / 1000:.1f}",
        )
        for name, split in summary.splits.items()
    ]
    section.table("Splits", ("split", "shards", "examples", "hours", "bytes", "kB a second"), rows, "tnnnnn")
    rows = [
        (
            target.name,
            target.kind,
            target.dtype,
            target.frame_rate,
            f"{target.size} × {target.codebook_size}" if target.codebook_size else f"{target.size} bins",
            teacher_name(target),
            target.fingerprint[:16],
        )
        for target in summary.targets
    ]
    header = ("target", "kind", "dtype", "frames a second", "size", "teacher", "fingerprint")
    section.table("Targets", header, rows, "tttnttt")
    section.facts(
        ("segments", f"{summary.segment_seconds:g} s, {summary.audio_member} at {summary.sample_rate} Hz"),
        ("frames", f"{summary.hop} samples"),
        ("index", summary.index_sha256),
        ("manifest", summary.manifest_sha256),
    )


def add_lengths(page: ReportPage, shard_set: ShardSet, summary: ShardSummary, seed: int) -> None:
    """Lengths of tracks and examples, and how loud examples are."""
    section = page.section("Lengths and loudness")
    levels = [
        loudness(read_audio(shard_set.folder, shard_set.index, place))
        for place in draw(shard_set, LOUDNESS_EXAMPLES, seed)
    ]
    heard = [level for level in levels if level is not None]
    silent = f", {len(levels) - len(heard)} silent or too short" if len(heard) < len(levels) else ""
    page.plots(
        section,
        histogram_plot("Length of tracks", "seconds", "s", "tracks", shard_set.track_seconds, summary.track_seconds),
        histogram_plot(
            "Length of examples", "seconds", "s", "examples", shard_set.example_seconds, summary.example_seconds
        ),
        histogram_plot("Loudness of examples", "LUFS (ITU-R BS.1770)", "LUFS", "examples", heard, None)
        | {"hint": f"{len(levels)} examples drawn by seed {seed}{silent}"},
    )
    if summary.records_read < summary.records:
        section.note(f"From {summary.records_read} of {summary.records} records, at even distances.")


def add_target(page: ReportPage, shard_set: ShardSet, target: TargetSummary) -> None:
    """Use of the codebooks, or mean and deviation by bin."""
    section = page.section(f"Target {target.name}")
    if isinstance(target.statistics, DiscreteSummary):
        counts = np.array(shard_set.partials[target.name].counts)
        page.plots(section, usage_plot(target, target.statistics), rank_plot(target, counts))
        return
    spec = next(spec for spec in shard_set.index.targets if spec.name == target.name)
    pitch = pitch_axis(spec)
    x = {"label": "pitch of the bin" if pitch else "bin", "pitch": pitch}
    bins, statistics = list(range(target.size)), target.statistics
    if target.size == 1:
        section.facts(
            ("values", f"{number(statistics.minimum)} to {number(statistics.maximum)}"),
            ("mean", number(statistics.mean[0])),
            ("standard deviation", number(statistics.deviation[0])),
        )
        return
    page.plots(
        section,
        {
            "title": f"{target.name}: mean and deviation by bin",
            "wide": True,
            "kind": "lines",
            "x": x,
            "hint": f"values from {number(statistics.minimum)} to {number(statistics.maximum)}",
            "y": {"label": "value", "zero": True},
            "series": [
                {"label": "mean", "x": bins, "y": statistics.mean},
                {"label": "standard deviation", "x": bins, "y": statistics.deviation},
            ],
        },
    )


def usage_plot(target: TargetSummary, statistics: DiscreteSummary) -> dict[str, Any]:
    """Share of entries in use, and perplexity as a share of the entries, by codebook."""
    lowest, highest = min(statistics.perplexity), max(statistics.perplexity)
    return {
        "title": f"{target.name}: use of each codebook",
        "kind": "bars",
        "hint": f"{target.codebook_size} entries; perplexity {lowest:.0f} to {highest:.0f}",
        "labels": [str(level) for level in range(target.size)],
        "x": {"label": "codebook"},
        "y": {"label": "share of entries", "format": "percent", "most": 1},
        "series": [
            {"label": "entries in use", "values": statistics.usage},
            {
                "label": "perplexity / entries",
                "values": [value / target.codebook_size for value in statistics.perplexity],
            },
        ],
    }


def rank_plot(target: TargetSummary, counts: np.ndarray) -> dict[str, Any]:
    """How often the most frequent, second, ... entry of each codebook is chosen; `counts` `[codebooks, entries]`."""
    ranks = np.unique(np.geomspace(1, counts.shape[1], MOST_RANKS).round().astype(int))
    shares = -np.sort(-counts, axis=1) / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shades = np.linspace(0, 1, len(counts)) if len(counts) > 1 else [0.0]
    return {
        "title": f"{target.name}: how evenly entries are chosen",
        "kind": "lines",
        "hint": "a flat line uses all entries alike",
        "x": {"label": "rank of the entry", "log": True},
        "y": {"label": "share of frames", "log": True, "format": "percent"},
        "series": [
            {
                "label": f"codebook {level}",
                "x": ranks.tolist(),
                "shade": float(shades[level]),
                "y": [share if share > 0 else None for share in shares[level][ranks - 1].tolist()],
            }
            for level in range(len(counts))
        ],
    }


def add_losses(page: ReportPage, summary: ShardSummary) -> None:
    """Segments dropped and files rejected, by reason, and the tracks and segments that were dropped."""
    section = page.section("Left out")
    plots = [reason_plot("Segments dropped by the labellers", "segments", summary.dropped)] if summary.dropped else []
    if summary.rejected:
        plots.append(reason_plot("Files rejected by the manifest", "files", summary.rejected))
    if plots:
        page.plots(section, *plots)
    if not summary.dropped:
        section.note("No segment was dropped.")
    if summary.rejected is None:
        section.note("Name the manifest with --manifest to see which files it rejected.")
    elif not summary.rejected:
        section.note("The manifest rejected no file.")
    if summary.dropped_tracks:
        rows = [(drop.track, drop.reason, drop.segments, drop.detail) for drop in summary.dropped_tracks[:MOST_DROPS]]
        section.table(
            f"Dropped tracks ({len(rows)} of {len(summary.dropped_tracks)})",
            ("track", "reason", "segments", "detail"),
            rows,
            "ttnt",
        )
    if summary.dropped_segments:
        rows = [
            (drop.key, drop.reason, f"{drop.start_sample / drop.sample_rate:.3f}", drop.detail)
            for drop in summary.dropped_segments[:MOST_DROPS]
        ]
        section.table(
            f"Dropped segments of other tracks ({len(rows)} of {len(summary.dropped_segments)})",
            ("segment", "reason", "from, seconds", "detail"),
            rows,
            "ttnt",
        )
