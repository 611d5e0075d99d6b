"""What `mert inspect` shows of a feature store."""

from argparse import Namespace
from dataclasses import replace

from mert_foundry.jobs.command.text import number, pairs, table
from mert_foundry.pipeline.inspection.feature_summary import FeatureRows, FeatureSummary, read_features
from mert_foundry.pipeline.inspection.neighbours import NeighbourSummary, nearest

OPTIONS = {"track", "html", "examples", "keys", "seed", "manifest"}
MOST_ROWS = 10


def inspect(options: Namespace) -> tuple[dict, list[str]]:
    """The answer for machines and the lines for people."""
    read = read_store(options)
    if options.track:
        neighbours = nearest(read, options.track)
        return neighbours.model_dump(mode="json"), neighbour_lines(neighbours)
    return read.summary.model_dump(mode="json"), summary_lines(read.summary)


def read_store(options: Namespace) -> FeatureRows:
    """The store; with --manifest in its groups, which shards do not hold. Raises ValueError for another's manifest."""
    named = options.keys.split(",") if options.keys else [options.track] if options.track else []
    read = read_features(options.locations[0], named)
    if options.manifest is None:
        return read
    from mert_foundry.pipeline.manifest.rows import load_manifest

    groups = {track.key: track.group for track in load_manifest(options.manifest).tracks}
    for key in read.keys:
        if key not in groups:
            raise ValueError(f"{options.manifest}: it has no track {key}, which is in {options.locations[0]}")
    return replace(read, groups=[groups[key] for key in read.keys])


def summary_lines(summary: FeatureSummary) -> list[str]:
    """The terminal summary."""
    what = "frames" if summary.array == "features" else "tracks, pooled"
    lines = [f"features {summary.location}"]
    lines += pairs(
        [
            ("rows", f"{summary.rows} {what}; {len(summary.layers)} layers of {summary.dim}, {summary.dtype}"),
            ("audio", f"{summary.tracks} tracks, {summary.hours:.3f} h; {summary.frame_rate:g} frames a second"),
            ("model", summary.model.get("fingerprint", "-")),
            ("settings", ", ".join(f"{name}={value}" for name, value in summary.settings.items())),
        ]
    )
    lines += [
        "",
        *table(("layer", "mean", "deviation", "largest", "effective rank", "dead dimensions"), layer_rows(summary)),
    ]
    lines.append(f"  from {summary.rows_read} rows of {summary.tracks_read} tracks")
    lines += ["", f"tracks without features: {len(summary.dropped) or 'none'}"]
    lines += [f"  {key}: {reason}" for key, reason in list(summary.dropped.items())[:MOST_ROWS]]
    if len(summary.dropped) > MOST_ROWS:
        lines.append(f"  and {len(summary.dropped) - MOST_ROWS} more; --json names all")
    return lines


def layer_rows(summary: FeatureSummary) -> list[tuple[object, ...]]:
    """Table rows of the statistics by layer."""
    return [
        (
            each.layer,
            number(each.mean),
            number(each.deviation),
            number(each.largest),
            f"{each.effective_rank:.1f}",
            f"{each.dead_share:.1%}",
        )
        for each in summary.layers
    ]


def neighbour_lines(neighbours: NeighbourSummary) -> list[str]:
    """The nearest tracks, over all layers and in each."""
    lines = [f"track {neighbours.key} of group {neighbours.group or '-'}, among {neighbours.compared} others"]
    rows = [(each.key, each.group or "-", f"{each.similarity:.3f}") for each in neighbours.nearest]
    lines += ["", *table(("nearest over all layers", "group", "cosine"), rows)]
    rows = [
        (layer, *(f"{each.key} {each.similarity:.2f}" for each in found[:3]))
        for layer, found in neighbours.by_layer.items()
    ]
    places = ("nearest", "second", "third")[: min(3, neighbours.compared)]
    return [*lines, "", *table(("layer", *places), rows)]
