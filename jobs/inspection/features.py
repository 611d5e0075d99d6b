"""What mert inspect shows of a feature store: statistics and curves by layer, tracks as points, and
nearest neighbours.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mert_foundry.jobs.inspection.blocks import settings_text
from mert_foundry.jobs.inspection.options import FeatureOptions
from mert_foundry.jobs.inspection.view import (
    Axis,
    Block,
    Cell,
    Facts,
    Figures,
    Line,
    LinePlot,
    Note,
    OnPage,
    Plots,
    PointPlot,
    Points,
    Section,
    Table,
    View,
)
from mert_foundry.pipeline.inspection.feature_summary import FeatureRows, FeatureSummary, read_features
from mert_foundry.pipeline.inspection.neighbours import Neighbour, NeighbourSummary, nearest, project
from mert_foundry.pipeline.manifest.rows import load_manifest
from mert_foundry.pipeline.manifest.shifted_track import split_key

NEIGHBOURS = 5
MOST_GROUPS = 7  # with a colour of their own
OTHERS = "other groups"
MOST_POINTS = 1500  # of a plot of tracks
VALUES = Axis("value", zero=True)
# Plots of the layers: title, axis, and lines by label and field.
LAYER_PLOTS = (
    ("Mean and standard deviation", VALUES, {"mean": "mean", "standard deviation": "standard_deviation"}),
    ("Largest magnitude", VALUES, {"largest": "largest"}),
    ("Effective rank", Axis("dimensions", zero=True), {"effective rank": "effective_rank"}),
    ("Dead dimensions", Axis("share of dimensions", "percent", zero=True), {"dead": "dead_share"}),
)


def build_view(options: FeatureOptions) -> View:
    """A view of the store, or of the neighbours of one track.

    Raises as `read_store`, and ValueError for an unknown key.
    """
    read = read_store(options)
    if options.track:
        return neighbour_view(nearest(read, options.track))
    summary = read.summary
    sections = [
        overview(summary),
        layers(summary),
        Section("Tracks by group", [OnPage(lambda: group_blocks(read))]),
        Section("Nearest neighbours", [OnPage(lambda: neighbour_blocks(read, options))]),
        dropped(summary),
    ]
    return View("features", summary.location.rstrip("/"), sections, summary.model_dump(mode="json"))


def read_store(options: FeatureOptions) -> FeatureRows:
    """The store, with the groups of the manifest if one is named.

    Raises ValueError if that is a manifest of other tracks.
    """
    named = options.keys or ([options.track] if options.track else [])
    read = read_features(options.locations[0], named)
    if options.manifest is None:
        return read
    groups = {track.key: track.group for track in load_manifest(options.manifest).tracks}
    tracks = [split_key(key)[0] for key in read.keys]  # a copy is of the group of its track
    for key, track in zip(read.keys, tracks, strict=True):
        if track not in groups:
            raise ValueError(f"{options.manifest}: it has no track {key}, which is in {options.locations[0]}")
    return replace(read, groups=[groups[track] for track in tracks])


def overview(summary: FeatureSummary) -> Section:
    """What the store holds, and the model and settings that made it."""
    figures = Figures(
        [
            (f"{summary.tokens:,}", "tokens") if summary.hours is None else (f"{summary.hours:.3g} h", "audio"),
            (f"{summary.tracks:,}", "documents" if summary.hours is None else "tracks"),
            (f"{summary.rows:,}", "frames" if summary.array == "features" else "rows, one for each track"),
            (f"{len(summary.layers)} × {summary.dim}", "layers × dimensions"),
            (f"{len(summary.dropped):,}", "tracks without features"),
        ]
    )
    facts = Facts(
        [
            ("model", str(summary.model.get("fingerprint", "-"))),
            ("frame rate", "a frame is a token" if summary.hours is None else f"{summary.frame_rate:g} Hz"),
            ("stored as", summary.dtype),
            ("settings", settings_text(summary.settings)),
        ]
    )
    return Section("Overview", [figures, facts])


def layers(summary: FeatureSummary) -> Section:
    """Statistics by layer."""
    numbers = [each.layer for each in summary.layers]
    plots = [
        LinePlot(
            title,
            [Line(label, numbers, [getattr(each, field) for each in summary.layers]) for label, field in lines.items()],
            Axis("layer", format="count"),
            y,
        )
        for title, y, lines in LAYER_PLOTS
    ]
    rows = [
        (
            each.layer,
            each.mean,
            each.standard_deviation,
            each.largest,
            f"{each.effective_rank:.1f}",
            f"{each.dead_share:.1%}",
        )
        for each in summary.layers
    ]
    header = ("layer", "mean", "standard deviation", "largest", "effective rank", "dead dimensions")
    source = f"from {summary.rows_read:,} rows of {summary.tracks_read:,} tracks"
    return Section("Layers", [Plots(plots), Table(header, rows, source)])


def dropped(summary: FeatureSummary) -> Section:
    """Tracks without features."""
    if not summary.dropped:
        return Section("Tracks without features", [Note("tracks without features: none")])
    rows = list(summary.dropped.items())
    return Section("Tracks without features", [Table(("track", "reason"), rows, may_be_long=True)])


def group_blocks(read: FeatureRows) -> list[Block]:
    """Two principal components of the tracks in each layer, coloured by group."""
    common = [group for group, _ in Counter(read.groups).most_common(MOST_GROUPS)]
    labels = [group if group in common else OTHERS for group in read.groups]
    shown = np.unique(np.linspace(0, len(read.keys) - 1, min(len(read.keys), MOST_POINTS)).round().astype(int)).tolist()
    members = {
        label: [track for track in shown if labels[track] == label] for label in dict.fromkeys([*common, OTHERS])
    }
    blocks: list[Block] = [Plots([layer_plot(read, index, members) for index in range(len(read.summary.layers))])]
    if not any(read.groups):
        blocks.append(Note("The store knows no groups, as shards hold none; --manifest names the manifest that does."))
    if len(shown) < len(read.keys):
        blocks.append(Note(f"{len(shown):,} of {len(read.keys):,} tracks are drawn."))
    return blocks


def layer_plot(read: FeatureRows, index: int, members: dict[str, list[int]]) -> PointPlot:
    """Tracks as points in one layer.

    `index` is the layer's number in the store, `members` the tracks to draw, by group.
    """
    components, shares = project(read.vectors[:, index])
    series = [
        Points(
            label,
            components[tracks, 0].tolist(),
            components[tracks, 1].tolist(),
            [read.keys[track] for track in tracks],
        )
        for label, tracks in members.items()
        if tracks
    ]
    return PointPlot(
        f"Layer {read.summary.layers[index].layer}",
        series,
        Axis("first component"),
        Axis("second component"),
        hint=f"{shares[0]:.0%} and {shares[1]:.0%} of the variance between tracks",
    )


def neighbour_blocks(read: FeatureRows, options: FeatureOptions) -> list[Block]:
    """The nearest tracks of a few tracks, which the options name or a seed draws."""
    keys: Sequence[str] = options.keys
    if not keys:
        keys = sorted(random.Random(options.seed).sample(read.keys, min(options.examples, len(read.keys))))
    blocks: list[Block] = []
    for key in keys:
        found = nearest(read, key, NEIGHBOURS)
        blocks.append(neighbour_table(found.nearest, f"{found.key}{', of ' if found.group else ''}{found.group}"))
    text = (
        "Cosine of vectors whose every dimension has mean 0 and standard deviation 1 over the tracks;"
        " a track's vector is the mean of its frames."
    )
    return [*blocks, Note(text)]


def neighbour_table(neighbours: Sequence[Neighbour], caption: str = "") -> Table:
    """A table of the nearest tracks over all layers."""
    rows = [(each.key, each.group or "-", f"{each.similarity:.3f}") for each in neighbours]
    return Table(("nearest over all layers", "group", "cosine"), rows, caption)


def neighbour_view(neighbours: NeighbourSummary) -> View:
    """A view of the tracks nearest to one track, over all layers and in each layer."""
    rows: list[Sequence[Cell]] = [
        (layer, *(f"{each.key} {each.similarity:.2f}" for each in found[:3]))
        for layer, found in neighbours.by_layer.items()
    ]
    ranks = ("nearest", "second", "third")[: min(3, neighbours.compared)]
    title = f"{neighbours.key} of group {neighbours.group or '-'}, among {neighbours.compared} others"
    blocks = [neighbour_table(neighbours.nearest), Table(("layer", *ranks), rows)]
    return View("track", title, [Section("Neighbours", blocks)], neighbours.model_dump(mode="json"))
