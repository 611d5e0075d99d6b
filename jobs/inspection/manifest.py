"""What mert inspect shows of a manifest folder: totals, lengths and levels of its tracks, and rejected files."""

from collections.abc import Iterator, Mapping

from mert_foundry.jobs.command.text import human_bytes
from mert_foundry.jobs.inspection.blocks import (
    histogram_plot,
    reasons_plot,
    reasons_text,
    settings_text,
    spread_table,
)
from mert_foundry.jobs.inspection.difference import difference_view
from mert_foundry.jobs.inspection.options import ManifestOptions
from mert_foundry.jobs.inspection.view import (
    Block,
    Facts,
    Figures,
    HistogramPlot,
    Note,
    OnPage,
    Plots,
    Section,
    Table,
    View,
)
from mert_foundry.pipeline.inspection.manifest_summary import (
    ManifestFolder,
    ManifestSummary,
    TrackTotals,
    compare_manifests,
    load_manifest_folder,
    summarise_manifest,
)


def build_view(options: ManifestOptions) -> View:
    """A view of the manifest, or of how two manifests differ. Raises as `load_manifest_folder`."""
    if options.diff:
        return difference_view(compare_manifests(options.locations[0], options.diff))
    read = load_manifest_folder(options.locations[0])
    summary = summarise_manifest(read)
    sections = [
        overview(summary),
        Section("Groups", [totals_table("group", summary.groups)]),
        lengths_and_levels(read, summary),
        rejected(summary),
    ]
    return View("manifest", read.folder.rstrip("/"), sections, summary.model_dump(mode="json"))


def overview(summary: ManifestSummary) -> Section:
    """Totals, kinds of tracks, and what the manifest was made from."""
    splits = summary.splits.values()
    figures = Figures(
        [
            (f"{sum(split.hours for split in splits):.3g} h", "audio"),
            (f"{sum(split.tracks for split in splits):,}", "tracks"),
            (f"{len(summary.groups):,}", "groups"),
            (human_bytes(sum(split.bytes for split in splits)), "size of the files"),
            (f"{sum(summary.rejected.values()):,}", "files rejected"),
        ]
    )
    facts = Facts(
        [
            ("audio below", summary.root),
            ("digest", summary.manifest_sha256),
            ("settings", settings_text(summary.config)),
            ("one of several streams taken", f"{summary.one_of_several_streams:,} tracks"),
            ("notes", reasons_text(summary.notes)),
        ]
    )
    tables = [
        totals_table("split", summary.splits),
        totals_table("format", summary.formats),
        totals_table("rate x channels", summary.sample_rates),
    ]
    return Section("Overview", [figures, facts, *tables])


def totals_table(what: str, totals: Mapping[str, TrackTotals]) -> Table:
    """Tracks, hours and bytes by name."""
    rows = [(name, each.tracks, f"{each.hours:.3f}", human_bytes(each.bytes)) for name, each in totals.items()]
    return Table((what, "tracks", "hours", "bytes"), rows, may_be_long=True)


def lengths_and_levels(read: ManifestFolder, summary: ManifestSummary) -> Section:
    """Quantiles over the tracks: lengths, loudness and peak as stored, and clipped share of the mono mix."""
    quantiles = spread_table(
        "tracks",
        {
            "length, seconds": summary.track_seconds,
            "loudness, LUFS": summary.loudness_lufs,
            "peak, dBFS": summary.peak_dbfs,
            "share beyond full scale": summary.clipped_share,
        },
    )
    return Section("Lengths and levels", [quantiles, OnPage(lambda: [Plots(list(track_plots(read)))])])


def track_plots(read: ManifestFolder) -> Iterator[HistogramPlot]:
    """Histograms of lengths and levels. Older manifests have no levels, so their histograms are missing."""
    for name, title, label, unit in (
        ("seconds", "Length of tracks", "seconds", "s"),
        ("loudness_lufs", "Loudness of tracks", "integrated loudness", "LUFS"),
        ("peak_dbfs", "Peaks of tracks", "peak as stored", "dBFS"),
        ("clipped_share", "Clipping", "share of samples beyond full scale", ""),
    ):
        values = read.values[name]
        if values or name == "seconds":
            yield histogram_plot(title, label, unit, "tracks", values)


def rejected(summary: ManifestSummary) -> Section:
    """Files that are not in the manifest, by reason and by name."""
    blocks: list[Block] = [Note(f"files rejected: {reasons_text(summary.rejected)}")]
    if summary.rejected:
        rows = [(reject.path, reject.reason, reject.detail) for reject in summary.rejects]
        blocks.append(Plots([reasons_plot("Files rejected", "files", summary.rejected)]))
        blocks.append(Table(("rejected file", "reason", "detail"), rows, may_be_long=True))
    return Section("Rejected files", blocks)
