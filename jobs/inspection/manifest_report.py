"""The page of `mert inspect MANIFEST_FOLDER --html`: what is there, how long it is, what was left out."""

import shlex
from argparse import Namespace

from mert_foundry.jobs.command.text import human_bytes
from mert_foundry.jobs.inspection.report_page import ReportPage, histogram_plot, reason_plot
from mert_foundry.pipeline.inspection.manifest_summary import (
    ManifestFolder,
    ManifestSummary,
    TrackTotals,
    load_manifest_folder,
    summarise_manifest,
)

MOST_ROWS = 100


def report(options: Namespace) -> bytes:
    """The page of --html. Raises as `load_manifest_folder`."""
    read = load_manifest_folder(options.locations[0])
    summary = summarise_manifest(read)
    page = ReportPage(
        kind="manifest", title=read.folder.rstrip("/"), command=f"mert inspect {shlex.quote(read.folder)} --html"
    )
    section = page.section("Overview")
    splits = summary.splits.values()
    section.figures(
        (f"{sum(split.hours for split in splits):.3g} h", "audio"),
        (f"{sum(split.tracks for split in splits):,}", "tracks"),
        (f"{len(summary.groups):,}", "groups"),
        (human_bytes(sum(split.bytes for split in splits)), "of files"),
        (f"{sum(summary.rejected.values()):,}", "files left out"),
    )
    for title, totals in (
        ("Splits", summary.splits),
        ("Formats", summary.formats),
        ("Rate × channels", summary.sample_rates),
    ):
        section.table(title, ("", "tracks", "hours", "bytes"), rows_of(totals), "tnnn")
    section.facts(
        ("audio below", summary.root),
        ("digest", summary.manifest_sha256),
        *((name.replace("_", " "), value) for name, value in summary.config.items()),
        ("one of several streams", summary.one_of_several_streams),
        *((f"note: {note}", count) for note, count in summary.notes.items()),
    )
    seconds = [track.seconds for track in read.manifest.tracks]
    tracks = page.section("Lengths and groups")
    page.plots(tracks, histogram_plot("Length of tracks", "seconds", "s", "tracks", seconds, summary.track_seconds))
    if plots := level_plots(read, summary):
        page.plots(page.section("Levels"), *plots)
    caption = (
        f"Groups, the one with the most hours first ({min(len(summary.groups), MOST_ROWS)} of {len(summary.groups)})"
    )
    tracks.table(caption, ("group", "tracks", "hours", "bytes"), rows_of(summary.groups)[:MOST_ROWS], "tnnn")
    left_out = page.section("Left out")
    if summary.rejected:
        page.plots(left_out, reason_plot("Files left out", "files", summary.rejected))
        rows = [(reject.path, reject.reason, reject.detail) for reject in summary.rejects[:MOST_ROWS]]
        left_out.table(
            f"Files left out ({len(rows)} of {len(summary.rejects)})", ("path", "reason", "detail"), rows, "ttt"
        )
    else:
        left_out.note("No file was left out.")
    return page.render()


def level_plots(read: ManifestFolder, summary: ManifestSummary) -> list[dict]:
    """Histograms of loudness, peak and clipped share; none of what an older manifest does not have."""
    plots = []
    for name, title, label, unit, quantiles in (
        ("loudness_lufs", "Loudness of tracks", "integrated loudness", "LUFS", summary.loudness_lufs),
        ("peak_dbfs", "Peaks of tracks", "peak as stored", "dBFS", summary.peak_dbfs),
        ("clipped_share", "Clipping", "share of samples beyond full scale", "", summary.clipped_share),
    ):
        values = [value for track in read.manifest.tracks if (value := getattr(track, name)) is not None]
        if values:
            plots.append(histogram_plot(title, label, unit, "tracks", values, quantiles))
    return plots


def rows_of(totals: dict[str, TrackTotals]) -> list[tuple[object, ...]]:
    """Table rows of tracks, hours and bytes."""
    return [(name, each.tracks, f"{each.hours:.3f}", human_bytes(each.bytes)) for name, each in totals.items()]
