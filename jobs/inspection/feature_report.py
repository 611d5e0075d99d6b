"""The page of `mert inspect STORE.zarr --html`: layers in numbers and curves, tracks as points, who is near whom."""

import random
import shlex
from argparse import Namespace
from collections import Counter
from typing import Any

import numpy as np

from mert_foundry.jobs.inspection.feature_view import layer_rows, read_store
from mert_foundry.jobs.inspection.report_page import ReportPage
from mert_foundry.pipeline.inspection.feature_summary import FeatureRows, FeatureSummary
from mert_foundry.pipeline.inspection.neighbours import nearest, project

NEIGHBOUR_TRACKS = 6
NEIGHBOURS = 5
MOST_GROUPS = 7  # with a colour of their own
MOST_POINTS = 1500  # of a plot of tracks


def report(options: Namespace) -> bytes:
    """The page of --html. Raises as `read_store`, and ValueError for an unknown key."""
    read = read_store(options)
    summary = read.summary
    page = ReportPage(
        kind="feature store",
        title=summary.location.rstrip("/"),
        command=f"mert inspect {shlex.quote(summary.location)} --html {shlex.quote(options.html)}",
    )
    add_overview(page, summary)
    add_layers(page, summary)
    add_projections(page, read)
    add_neighbours(page, read, options)
    return page.render()


def add_overview(page: ReportPage, summary: FeatureSummary) -> None:
    """What the store holds and who made it."""
    section = page.section("Overview")
    section.figures(
        (f"{summary.hours:.3g} h", "audio"),
        (f"{summary.tracks:,}", "tracks"),
        (f"{summary.rows:,}", "frames" if summary.array == "features" else "rows, one a track"),
        (f"{len(summary.layers)} × {summary.dim}", "layers × dimensions"),
        (f"{len(summary.dropped):,}", "tracks without features"),
    )
    section.facts(
        ("model", summary.model.get("fingerprint", "-")),
        ("frame rate", f"{summary.frame_rate:g} a second"),
        ("stored as", summary.dtype),
        *((name.replace("_", " "), value) for name, value in summary.settings.items()),
    )
    if summary.dropped:
        section.table("Tracks without features", ("track", "reason"), list(summary.dropped.items())[:100], "tt")


def add_layers(page: ReportPage, summary: FeatureSummary) -> None:
    """Statistics by layer."""
    section = page.section("Layers")
    layers = [each.layer for each in summary.layers]

    def plot(title: str, label: str, *lines: tuple[str, str], **axis: Any) -> dict[str, Any]:
        series = [
            {"label": name, "x": layers, "y": [getattr(each, field) for each in summary.layers]}
            for name, field in lines
        ]
        return {
            "title": title,
            "kind": "lines",
            "x": {"label": "layer", "format": "count"},
            "y": {"label": label, **axis},
            "series": series,
        }

    page.plots(
        section,
        plot("Mean and deviation", "value", ("mean", "mean"), ("standard deviation", "deviation"), zero=True),
        plot("Largest magnitude", "value", ("largest", "largest"), zero=True),
        plot("Effective rank", f"1 to {summary.dim}", ("effective rank", "effective_rank"), zero=True),
        plot("Dead dimensions", "share of dimensions", ("dead", "dead_share"), zero=True, format="percent"),
    )
    header = ("layer", "mean", "deviation", "largest magnitude", "effective rank", "dead dimensions")
    section.table(
        f"From {summary.rows_read:,} rows of {summary.tracks_read:,} tracks", header, layer_rows(summary), "nnnnnn"
    )


def add_projections(page: ReportPage, read: FeatureRows) -> None:
    """Two principal components of the tracks in each layer, coloured by group."""
    section = page.section("Tracks by group")
    common = [group for group, _ in Counter(read.groups).most_common(MOST_GROUPS)]
    labels = [group if group in common else "other groups" for group in read.groups]
    shown = np.unique(np.linspace(0, len(read.keys) - 1, min(len(read.keys), MOST_POINTS)).round().astype(int)).tolist()
    plots = []
    for place, layer in enumerate(read.summary.layers):
        places, shares = project(read.vectors[:, place])
        series = []
        for label in [*common, "other groups"]:
            members = [track for track in shown if labels[track] == label]
            if members:
                series.append(
                    {
                        "label": label,
                        "x": places[members, 0].tolist(),
                        "y": places[members, 1].tolist(),
                        "names": [read.keys[track] for track in members],
                    }
                )
        plots.append(
            {
                "title": f"Layer {layer.layer}",
                "kind": "points",
                "x": {"label": "first component"},
                "y": {"label": "second component"},
                "hint": f"{shares[0]:.0%} and {shares[1]:.0%} of the variance between tracks",
                "series": series,
            }
        )
    page.plots(section, *plots)
    if not any(read.groups):
        section.note("The store knows no groups, as shards hold none; --manifest names the manifest that does.")
    if len(shown) < len(read.keys):
        section.note(f"{len(shown)} of {len(read.keys)} tracks are drawn.")


def add_neighbours(page: ReportPage, read: FeatureRows, options: Namespace) -> None:
    """The nearest tracks of a few, named by --keys or drawn by --seed."""
    section = page.section("Nearest neighbours")
    count = NEIGHBOUR_TRACKS if options.examples is None else options.examples
    drawn = random.Random(options.seed or 0).sample(read.keys, min(count, len(read.keys)))
    for key in options.keys.split(",") if options.keys else sorted(drawn):
        found = nearest(read, key, NEIGHBOURS)
        rows = [(each.key, each.group or "-", f"{each.similarity:.3f}") for each in found.nearest]
        section.table(
            f"{found.key}{', of ' if found.group else ''}{found.group}",
            ("nearest over all layers", "group", "cosine"),
            rows,
            "ttn",
        )
    section.note(
        "Cosine of vectors whose every dimension has mean 0 and deviation 1 over the tracks;"
        " a track's vector is the mean of its frames."
    )
