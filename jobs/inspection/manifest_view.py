"""What `mert inspect` shows of a manifest folder."""

from argparse import Namespace
from collections.abc import Mapping

from mert_foundry.jobs.command.text import human_bytes, number, pairs, table
from mert_foundry.jobs.inspection.difference_view import difference_lines
from mert_foundry.jobs.inspection.shard_view import length_lines, reasons
from mert_foundry.pipeline.inspection.difference import compare_manifests
from mert_foundry.pipeline.inspection.manifest_summary import (
    ManifestSummary,
    TrackTotals,
    load_manifest_folder,
    summarise_manifest,
)

OPTIONS = {"diff", "html"}
MOST_ROWS = 10


def inspect(options: Namespace) -> tuple[dict, list[str]]:
    """The answer for machines and the lines for people."""
    read = load_manifest_folder(options.locations[0])
    if options.diff:
        difference = compare_manifests(read, load_manifest_folder(options.diff))
        return difference.model_dump(mode="json"), difference_lines(difference)
    summary = summarise_manifest(read)
    return summary.model_dump(mode="json"), summary_lines(summary)


def summary_lines(summary: ManifestSummary) -> list[str]:
    """The terminal summary."""
    lines = [f"manifest {summary.location}"]
    lines += pairs(
        [
            ("audio below", summary.root),
            ("digest", summary.manifest_sha256),
            ("settings", ", ".join(f"{name}={value}" for name, value in summary.config.items())),
        ]
    )
    for title, totals in (
        ("split", summary.splits),
        ("format", summary.formats),
        ("rate x channels", summary.sample_rates),
        ("group", summary.groups),
    ):
        lines += ["", *totals_lines(title, totals)]
    lines += ["", *length_lines({"tracks": summary.track_seconds})]
    lines += ["", *level_lines(summary)]
    if summary.one_of_several_streams:
        lines += ["", f"one of several streams taken: {summary.one_of_several_streams} tracks"]
    if summary.notes:
        lines += ["", f"notes: {reasons(summary.notes)}"]
    lines += ["", f"files left out: {reasons(summary.rejected)}"]
    lines += [f"  {reject.path}: {reject.reason}: {reject.detail}" for reject in summary.rejects[:MOST_ROWS]]
    if len(summary.rejects) > MOST_ROWS:
        lines.append(f"  and {len(summary.rejects) - MOST_ROWS} more; --json names all")
    return lines


def level_lines(summary: ManifestSummary) -> list[str]:
    """Quantiles over the tracks: loudness and peak as stored, and clipped share of the mono mix."""
    rows = []
    for name, each, scale in (
        ("loudness, LUFS", summary.loudness_lufs, 1),
        ("peak, dBFS", summary.peak_dbfs, 1),
        ("beyond full scale, %", summary.clipped_share, 100),
    ):
        if each:
            values = (each.minimum, each.percentile_5, each.median, each.mean, each.percentile_95, each.maximum)
            rows.append((name, each.count, *(number(scale * value, 4) for value in values)))
    return table(("levels of tracks", "count", "lowest", "5 %", "median", "mean", "95 %", "highest"), rows)


def totals_lines(title: str, totals: Mapping[str, TrackTotals]) -> list[str]:
    """Tracks, hours and bytes by name, at most ten rows."""
    shown = list(totals.items())[:MOST_ROWS]
    rows = [(name, each.tracks, f"{each.hours:.3f}", human_bytes(each.bytes)) for name, each in shown]
    more = [f"  and {len(totals) - MOST_ROWS} more"] if len(totals) > MOST_ROWS else []
    return table((title, "tracks", "hours", "bytes"), rows) + more
