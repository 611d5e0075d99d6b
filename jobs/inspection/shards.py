"""What mert inspect shows of a shard folder: the set, one shard, one example, or how two sets differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mert_foundry.jobs.command.config import UsageError
from mert_foundry.jobs.command.text import human_bytes, number
from mert_foundry.jobs.inspection.blocks import histogram_plot, reasons_plot, reasons_text, spread_table
from mert_foundry.jobs.inspection.difference import difference_view
from mert_foundry.jobs.inspection.examples import example_view, export_view, pitch_of_bins, texts_table
from mert_foundry.jobs.inspection.options import ShardOptions
from mert_foundry.jobs.inspection.view import (
    Axis,
    BarPlot,
    Bars,
    Block,
    Cell,
    Facts,
    Figures,
    Line,
    LinePlot,
    Note,
    OnPage,
    Plot,
    Plots,
    Section,
    Table,
    View,
)
from mert_foundry.pipeline.frames import FRAME_RATE
from mert_foundry.pipeline.inspection.manifest_summary import count_by_reason, load_manifest_folder
from mert_foundry.pipeline.inspection.shard_summary import (
    ShardSet,
    ShardSummary,
    TargetSummary,
    TextSummary,
    compare_shard_sets,
    load_shard_set,
    summarise_shard_set,
)
from mert_foundry.pipeline.shards.index import ShardEntry, ShardIndex, load_index, load_listed_record
from mert_foundry.pipeline.shards.record import ShardRecord
from mert_foundry.pipeline.shards.statistics import ContinuousSummary, DiscreteCounts, DiscreteSummary

MOST_RANKS = 80  # points of a curve


class Words(NamedTuple):
    """How things are called in a set with audio, or of text alone.

    tracks: what examples are segments of. unit, symbol: of their lengths. rejected: the files that are not in the set;
    where_rejected: where to see them.
    """

    tracks: str
    unit: str
    symbol: str
    rejected: str
    where_rejected: str


OF_AUDIO = Words(
    tracks="tracks",
    unit="seconds",
    symbol="s",
    rejected="files rejected by the manifest",
    where_rejected="name the manifest with --manifest to see them",
)
OF_TEXT_ALONE = Words(
    tracks="documents",
    unit="tokens",
    symbol="",
    rejected="files rejected",
    where_rejected="rejected.jsonl beside the index lists them",
)


def words_of(audio_member: str | None) -> Words:
    """Those of a set with this audio member."""
    return OF_AUDIO if audio_member else OF_TEXT_ALONE


def build_view(options: ShardOptions) -> View:
    """The view that the options ask for.

    Raises UsageError for an unknown shard, ValueError for an unknown key, and as readers do.
    """
    folder = options.locations[0]
    if options.diff:
        return difference_view(compare_shard_sets(folder, options.diff))
    if options.export or options.example or options.shard:
        index = load_index(folder)
        shards = [named_shard(index, options.shard)] if options.shard else index.shardlist
        if options.export:
            key, out = options.export
            return export_view(folder, index, shards, key, Path(out))
        if options.example:
            return example_view(folder, index, shards, options.example)
        return shard_view(load_listed_record(folder, shards[0]))
    return set_view(options)


def named_shard(index: ShardIndex, name: str) -> ShardEntry:
    """The shard of this name, which may end in .tar. Raises UsageError if there is none."""
    for entry in index.shardlist:
        if name in (entry.name, entry.url):
            return entry
    begin = ", ".join(entry.name for entry in index.shardlist[:3])
    raise UsageError(f"--shard {name}: not one of {len(index.shardlist)} shards ({begin}, ...)")


def set_view(options: ShardOptions) -> View:
    """A view of the whole set."""
    shard_set = load_shard_set(options.locations[0])
    summary = summarise_shard_set(shard_set, rejected_by(options.manifest, shard_set.index))
    sections = [
        overview(summary),
        lengths_and_loudness(shard_set, summary, options.seed),
        *(target_section(shard_set, target) for target in summary.targets),
        *([text_section(summary.text)] if summary.text else []),
        dropped_and_rejected(summary),
        Section("Examples", [OnPage(lambda: examples_of(shard_set, options))]),
    ]
    return View("shards", shard_set.folder.rstrip("/"), sections, summary.model_dump(mode="json"))


def rejected_by(manifest_folder: str | None, index: ShardIndex) -> dict[str, int] | None:
    """Files that the manifest rejected, by reason; None if no manifest is named.

    Raises ValueError for the manifest of another set.
    """
    if manifest_folder is None:
        return None
    read = load_manifest_folder(manifest_folder)
    if read.sha256 != index.manifest_sha256:
        raise ValueError(f"{manifest_folder}: SHA-256 {read.sha256}, the shards were made from {index.manifest_sha256}")
    return count_by_reason(read.rejects)


def overview(summary: ShardSummary) -> Section:
    """Totals, splits, targets, and what the set was made from."""
    splits = summary.splits.values()
    figures = Figures(
        [
            amount(summary),
            (f"{sum(split.examples for split in splits):,}", "examples"),
            (
                f"{summary.tracks:,}{'' if summary.records == summary.records_read else '+'}",
                words_of(summary.audio_member).tracks,
            ),
            *([(f"{summary.copies:,}", "shifted copies among them")] if summary.copies else []),
            (f"{summary.records:,}", "shards"),
            (human_bytes(sum(split.bytes for split in splits)), "on disk"),
            (f"{sum(summary.dropped.values()):,}", "segments dropped"),
        ]
    )
    facts = Facts([("name", summary.name), *origin(summary)])
    return Section("Overview", [figures, facts, split_table(summary), target_table(summary)])


def amount(summary: ShardSummary) -> tuple[str, str]:
    """How much there is in all splits: hours of audio, or tokens."""
    if summary.audio_member is None:
        return f"{sum(split.tokens or 0 for split in summary.splits.values()):,}", "tokens"
    return f"{sum(split.hours or 0.0 for split in summary.splits.values()):.3g} h", "audio"


def origin(summary: ShardSummary) -> list[tuple[str, str]]:
    """How segments are stored, and what they were made from."""
    index = ("index", summary.index_sha256)
    if summary.audio_member is None:
        tokens = f"{round(summary.segment_seconds * FRAME_RATE)} tokens, no audio"
        return [("segments", tokens), index, ("documents.jsonl", summary.manifest_sha256)]
    audio = f"{summary.segment_seconds:g} s, {summary.audio_member} at {summary.sample_rate} Hz, hop {summary.hop}"
    return [
        ("segments", audio),
        index,
        ("manifest", summary.manifest_sha256),
        ("part of the manifest", str(summary.selection)),
        ("copies", str(summary.augment)),
    ]


def split_table(summary: ShardSummary) -> Table:
    """Totals by split."""
    if summary.audio_member is None:
        counts = [
            (name, each.shards, each.examples, f"{each.tokens:,}", human_bytes(each.bytes))
            for name, each in summary.splits.items()
        ]
        return Table(("split", "shards", "examples", "tokens", "bytes"), counts)
    rows = [
        (
            name,
            each.shards,
            each.examples,
            f"{each.hours:.3f}",
            human_bytes(each.bytes),
            f"{(each.bytes_per_second or 0.0) / 1000:.1f}",
        )
        for name, each in summary.splits.items()
    ]
    return Table(("split", "shards", "examples", "hours", "bytes", "kB per second"), rows)


def target_table(summary: ShardSummary) -> Table:
    """What each target is, and which teacher made it."""
    rows = [
        (
            target.name,
            target.kind,
            target.dtype,
            target.frame_rate if summary.audio_member else None,
            f"{target.size} x {target.codebook_size}" if target.codebook_size else f"{target.size} bins",
            teacher_name(target),
            target.fingerprint[:12],
        )
        for target in summary.targets
    ]
    return Table(("target", "kind", "dtype", "frames per second", "size", "teacher", "fingerprint"), rows)


def teacher_name(target: TargetSummary) -> str:
    """Kind of the teacher, and its weights if it has any."""
    return " ".join(str(target.teacher[name]) for name in ("kind", "weights") if name in target.teacher) or "unknown"


def lengths_and_loudness(shard_set: ShardSet, summary: ShardSummary, seed: int) -> Section:
    """Lengths of tracks and examples; on the page also the loudness of examples, where there is audio."""
    words = words_of(summary.audio_member)
    lengths = {
        "examples": summary.example_seconds or summary.example_tokens,
        words.tracks: summary.track_seconds or summary.track_tokens,
    }
    blocks: list[Block] = [spread_table(f"lengths, {words.unit}", lengths)]
    if summary.records_read < summary.records:
        blocks.append(Note(f"from {summary.records_read:,} of {summary.records:,} records, at even distances"))
    title = "Lengths and loudness" if summary.audio_member else "Lengths"
    return Section(title, [*blocks, OnPage(lambda: [length_plots(shard_set, seed)])])


def length_plots(shard_set: ShardSet, seed: int) -> Plots:
    """Histograms of lengths, and of loudness where there is audio."""
    words = words_of(shard_set.index.audio_member)
    plots: list[Plot] = [
        histogram_plot(f"Length of {counted}", words.unit, words.symbol, counted, lengths)
        for counted, lengths in ((words.tracks, shard_set.track_lengths), ("examples", shard_set.example_lengths))
    ]
    if shard_set.index.has_audio:
        from mert_foundry.jobs.inspection.players import loudness_plot  # imports torch, which text does not need

        plots.append(loudness_plot(shard_set, seed))
    return Plots(plots)


def examples_of(shard_set: ShardSet, options: ShardOptions) -> list[Block]:
    """Players of the examples that the options ask for, or their texts."""
    # It imports torch, which the summary in a terminal does not need.
    from mert_foundry.jobs.inspection.players import chosen_examples, player_blocks

    if shard_set.index.has_audio:
        return player_blocks(shard_set, options)
    return [texts_table(shard_set.folder, shard_set.index, chosen_examples(shard_set, options))]


def target_section(shard_set: ShardSet, target: TargetSummary) -> Section:
    """Statistics of a target: use of its codebooks, or range, mean and standard deviation of its bins."""
    blocks: list[Block] = []
    statistics, partial = target.statistics, shard_set.partials[target.name]
    if isinstance(statistics, DiscreteSummary) and isinstance(partial, DiscreteCounts):
        plots: list[Plot] = [usage_plot(target, statistics), rank_plot(target, np.array(partial.counts))]
        blocks = [usage_table(target, statistics), Plots(plots)]
    if isinstance(statistics, ContinuousSummary):
        plots_of_bins = [bin_plot(shard_set, target, statistics)] if target.size > 1 else []
        blocks = [range_table(target, statistics), Plots(plots_of_bins)]
    return Section(f"Target {target.name}", blocks)


def text_section(text: TextSummary) -> Section:
    """What the text is made of, how much of its vocabulary is used, how long it is, and how many examples have none."""
    spec = text.spec
    facts = Facts(
        [
            ("columns", ", ".join(spec.columns)),
            ("template", spec.template or "joined by commas"),
            ("tokenizer", spec.fingerprint),
            (
                "vocabulary",
                f"{spec.vocabulary_size} tokens, {100 * text.usage:.1f} % used, perplexity {text.perplexity:.0f}",
            ),
            ("without text", f"{text.without_text:,} of {text.examples:,} examples"),
        ]
    )
    return Section("Text", [facts, spread_table("tokens", {"examples with text": text.tokens})])


def range_table(target: TargetSummary, statistics: ContinuousSummary) -> Table:
    """Range of the values; ranges of the bins' means and standard deviations."""
    rows = [
        ("values", statistics.minimum, statistics.maximum),
        ("mean", min(statistics.mean), max(statistics.mean)),
        ("standard deviation", min(statistics.deviation), max(statistics.deviation)),
    ]
    return Table((f"{target.name}, by bin", "lowest", "highest"), rows)


def usage_table(target: TargetSummary, statistics: DiscreteSummary) -> Table:
    """Entries in use and perplexity, one row for each codebook."""
    rows = [
        (level, f"{100 * usage:.1f}", f"{perplexity:.0f}")
        for level, (usage, perplexity) in enumerate(zip(statistics.usage, statistics.perplexity, strict=True))
    ]
    return Table((f"{target.name}, codebook", "used %", f"perplexity of {target.codebook_size}"), rows)


def usage_plot(target: TargetSummary, statistics: DiscreteSummary) -> BarPlot:
    """Share of entries in use, and perplexity as a share of the entries, by codebook."""
    entries = target.codebook_size or 1
    lowest, highest = min(statistics.perplexity), max(statistics.perplexity)
    series = [
        Bars("entries in use", statistics.usage),
        Bars("perplexity / entries", [value / entries for value in statistics.perplexity]),
    ]
    return BarPlot(
        f"{target.name}: use of each codebook",
        [str(level) for level in range(target.size)],
        series,
        Axis("codebook"),
        Axis("share of entries", format="percent", most=1),
        hint=f"{entries} entries; perplexity {lowest:.0f} to {highest:.0f}",
    )


def rank_plot(target: TargetSummary, counts: np.ndarray) -> LinePlot:
    """How often the most frequent, second, ... entry of each codebook is chosen; `counts` `[codebooks, entries]`."""
    ranks = np.unique(np.geomspace(1, counts.shape[1], MOST_RANKS).round().astype(int))
    shares = -np.sort(-counts, axis=1) / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    last = max(len(counts) - 1, 1)
    series = [
        Line(
            f"codebook {level}",
            ranks.tolist(),
            [share if share > 0 else None for share in shares[level][ranks - 1].tolist()],
            shade=level / last,
        )
        for level in range(len(counts))
    ]
    return LinePlot(
        f"{target.name}: how evenly entries are chosen",
        series,
        Axis("rank of the entry", log=True),
        Axis("share of frames", log=True, format="percent"),
        hint="a flat line uses all entries alike",
    )


def bin_plot(shard_set: ShardSet, target: TargetSummary, statistics: ContinuousSummary) -> LinePlot:
    """Mean and standard deviation over the bins, which are notes where the teacher says so."""
    pitch = pitch_of_bins(next(spec for spec in shard_set.index.targets if spec.name == target.name))
    bins = list(range(target.size))
    return LinePlot(
        f"{target.name}: mean and standard deviation by bin",
        [Line("mean", bins, statistics.mean), Line("standard deviation", bins, statistics.deviation)],
        Axis("pitch of the bin" if pitch else "bin", pitch=pitch),
        Axis("value", zero=True),
        hint=f"values from {number(statistics.minimum)} to {number(statistics.maximum)}",
        wide=True,
    )


def dropped_and_rejected(summary: ShardSummary) -> Section:
    """Segments dropped and files rejected, by reason, and the tracks and segments that were dropped."""
    words = words_of(summary.audio_member)
    rejected = words.where_rejected if summary.rejected is None else reasons_text(summary.rejected)
    plots = [
        reasons_plot(title, counted, counts)
        for title, counted, counts in (
            ("Segments dropped by the labellers", "segments", summary.dropped),
            ("Files rejected by the manifest", "files", summary.rejected),
        )
        if counts
    ]
    tracks = [(drop.track, drop.reason, drop.segments, drop.detail) for drop in summary.dropped_tracks]
    segments = [
        (drop.key, drop.reason, f"{drop.start_sample / drop.sample_rate:.3f}", drop.detail)
        for drop in summary.dropped_segments
    ]
    blocks: list[Block] = [
        Note(f"{words.rejected}: {rejected}"),
        Note(f"segments dropped: {reasons_text(summary.dropped)}"),
        Plots(plots),
        Table(
            (words.tracks.removesuffix("s"), "reason", "segments", "detail"),
            tracks,
            f"Dropped {words.tracks}",
            may_be_long=True,
        ),
        Table(
            ("segment", "reason", "from, seconds", "detail"),
            segments,
            "Dropped segments of other tracks",
            may_be_long=True,
        ),
    ]
    return Section("Dropped and rejected", blocks)


def shard_view(record: ShardRecord) -> View:
    """A view of one shard and its examples."""
    facts = Facts(
        [
            ("examples", record.examples),
            ("hours", f"{record.seconds / 3600:.3f}") if record.audio_member else ("tokens", f"{record.num_frames:,}"),
            ("bytes", human_bytes(record.bytes)),
            ("sha256", record.sha256),
            ("plan", record.plan_fingerprint),
            ("dropped", reasons_text(record.dropped)),
            *((f"teacher of {name}", fingerprint) for name, fingerprint in record.teachers.items()),
        ]
    )
    suffixes = sorted({suffix for entry in record.members for suffix in entry.members})
    rows: list[Sequence[Cell]] = [
        (
            entry.key,
            entry.num_frames,
            *([f"{entry.num_frames / FRAME_RATE:.3f}"] if record.audio_member else []),
            *(entry.members[suffix][1] if suffix in entry.members else None for suffix in suffixes),
        )
        for entry in record.members
    ]
    lengths = ("frames", "seconds") if record.audio_member else ("tokens",)
    table = Table(("example", *lengths, *(f"{suffix}, bytes" for suffix in suffixes)), rows)
    return View("shard", record.name, [Section("Overview", [facts, table])], record.model_dump(mode="json"))
