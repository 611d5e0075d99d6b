"""What `mert inspect` shows of a shard folder."""

from argparse import Namespace
from pathlib import Path

from mert_foundry.jobs.command.config import UsageError
from mert_foundry.jobs.command.text import human_bytes, number, pairs, table
from mert_foundry.jobs.inspection.difference_view import difference_lines
from mert_foundry.pipeline.frames import FRAME_RATE
from mert_foundry.pipeline.inspection.difference import compare_shard_sets
from mert_foundry.pipeline.inspection.examples import (
    ExampleSummary,
    export_example,
    find_examples,
    read_example,
    summarise_example,
)
from mert_foundry.pipeline.inspection.shard_summary import (
    ShardSummary,
    TargetSummary,
    load_shard_set,
    summarise_shard_set,
)
from mert_foundry.pipeline.inspection.spread import Spread
from mert_foundry.pipeline.shards.index import ShardEntry, ShardIndex, load_index, load_listed_record
from mert_foundry.pipeline.shards.record import ShardRecord
from mert_foundry.pipeline.shards.statistics import DiscreteSummary

OPTIONS = {"diff", "shard", "example", "export", "manifest", "html", "examples", "keys", "seed", "codec"}
MOST_ROWS = 10
LEVELS_A_LINE = 16


def inspect(options: Namespace) -> tuple[dict, list[str]]:
    """The answer for machines and the lines for people."""
    folder = options.locations[0]
    if options.diff:
        difference = compare_shard_sets(folder, options.diff)
        return difference.model_dump(mode="json"), difference_lines(difference)
    if options.export:
        return export(folder, *options.export, shard=options.shard)
    if options.example:
        return show_example(folder, options.example, options.shard)
    if options.shard:
        record = load_listed_record(folder, named_shard(load_index(folder), options.shard))
        return record.model_dump(mode="json"), shard_lines(record)
    shard_set = load_shard_set(folder)
    summary = summarise_shard_set(shard_set, rejected_by(options.manifest, shard_set.index))
    return summary.model_dump(mode="json"), summary_lines(summary)


def rejected_by(manifest_folder: str | None, index: ShardIndex) -> dict[str, int] | None:
    """Files that the manifest left out, by reason; None when none is named. Raises ValueError for another set's."""
    if manifest_folder is None:
        return None
    from mert_foundry.pipeline.inspection.manifest_summary import count_by_reason, load_manifest_folder

    read = load_manifest_folder(manifest_folder)
    if read.manifest.sha256 != index.manifest_sha256:
        raise ValueError(
            f"{manifest_folder}: SHA-256 {read.manifest.sha256}, the shards were made from {index.manifest_sha256}"
        )
    return count_by_reason(read.rejects)


def named_shard(index: ShardIndex, name: str) -> ShardEntry:
    """The shard of a name, with or without .tar. Raises UsageError."""
    for entry in index.shardlist:
        if name in (entry.name, entry.url):
            return entry
    begin = ", ".join(entry.name for entry in index.shardlist[:3])
    raise UsageError(f"--shard {name}: not one of {len(index.shardlist)} shards ({begin}, ...)")


def shards_to_search(index: ShardIndex, shard: str | None) -> list[ShardEntry]:
    """The shard that was named, or all."""
    return [named_shard(index, shard)] if shard else index.shardlist


def show_example(folder: str, key: str, shard: str | None) -> tuple[dict, list[str]]:
    """Members of one example."""
    index = load_index(folder)
    place = find_examples(folder, shards_to_search(index, shard), [key])[0]
    summary = summarise_example(index, place, read_example(folder, index, place)[0])
    return summary.model_dump(mode="json"), example_lines(summary)


def export(folder: str, key: str, out: str, shard: str | None) -> tuple[dict, list[str]]:
    """Write the files of one example."""
    index = load_index(folder)
    place = find_examples(folder, shards_to_search(index, shard), [key])[0]
    paths = [str(path) for path in export_example(*read_example(folder, index, place), Path(out))]
    return {"kind": "export", "key": key, "files": paths}, paths


def summary_lines(summary: ShardSummary) -> list[str]:
    """The terminal summary."""
    lines = [f"shards {summary.location}"]
    lines += pairs(
        [
            ("name", summary.name),
            ("index", summary.index_sha256),
            ("manifest", summary.manifest_sha256),
            (
                "segments",
                f"{summary.segment_seconds:g} s, {summary.audio_member} at {summary.sample_rate} Hz, hop {summary.hop}",
            ),
        ]
    )
    lines += ["", *split_lines(summary), "", *target_lines(summary.targets)]
    for target in summary.targets:
        lines += ["", *statistics_lines(target)]
    lines += ["", *length_lines({"examples": summary.example_seconds, "tracks": summary.track_seconds})]
    if summary.records_read < summary.records:
        lines.append(f"  from {summary.records_read} of {summary.records} records, at even distances")
    rejected = (
        "name the manifest with --manifest to see them" if summary.rejected is None else reasons(summary.rejected)
    )
    lines += ["", f"files rejected by the manifest: {rejected}", f"segments dropped: {reasons(summary.dropped)}"]
    for drop in summary.dropped_tracks[:MOST_ROWS]:
        lines.append(f"  {drop.track}: {drop.reason}, {drop.segments} segments: {drop.detail}")
    if len(summary.dropped_tracks) > MOST_ROWS:
        lines.append(f"  and {len(summary.dropped_tracks) - MOST_ROWS} more tracks; --json names all")
    for drop in summary.dropped_segments[:MOST_ROWS]:
        lines.append(f"  {drop.key}: {drop.reason}, from {drop.start_sample / drop.sample_rate:.3f} s: {drop.detail}")
    if len(summary.dropped_segments) > MOST_ROWS:
        lines.append(f"  and {len(summary.dropped_segments) - MOST_ROWS} more segments; --json names all")
    return lines


def split_lines(summary: ShardSummary) -> list[str]:
    """Totals by split."""
    rows = [
        (
            name,
            each.shards,
            each.examples,
            f"{each.hours:.3f}",
            human_bytes(each.bytes),
            f"{each.bytes_per_second / 1000:.1f}",
        )
        for name, each in summary.splits.items()
    ]
    return table(("split", "shards", "examples", "hours", "bytes", "kB a second"), rows)


def target_lines(targets: list[TargetSummary]) -> list[str]:
    """What each target is, and who made it."""
    rows = [
        (
            target.name,
            target.kind,
            target.dtype,
            target.frame_rate,
            f"{target.size} x {target.codebook_size}" if target.codebook_size else f"{target.size} bins",
            teacher_name(target),
            target.fingerprint[:12],
        )
        for target in targets
    ]
    return table(("target", "kind", "dtype", "frames a second", "size", "teacher", "fingerprint"), rows)


def teacher_name(target: TargetSummary) -> str:
    """Kind of the teacher, and its weights where it has any."""
    return " ".join(str(target.teacher[name]) for name in ("kind", "weights") if name in target.teacher) or "unknown"


def statistics_lines(target: TargetSummary) -> list[str]:
    """Usage and perplexity by codebook, or range, mean and deviation."""
    statistics = target.statistics
    if not isinstance(statistics, DiscreteSummary):
        return [
            f"{target.name}: {number(statistics.minimum)} to {number(statistics.maximum)};"
            f" by bin, mean {number(min(statistics.mean))} to {number(max(statistics.mean))},"
            f" deviation {number(min(statistics.deviation))} to {number(max(statistics.deviation))}"
        ]
    lines = []
    for first in range(0, target.size, LEVELS_A_LINE):
        levels = range(first, min(first + LEVELS_A_LINE, target.size))
        rows = [
            ("used %", *(f"{statistics.usage[level] * 100:.1f}" for level in levels)),
            ("perplexity", *(f"{statistics.perplexity[level]:.0f}" for level in levels)),
        ]
        lines += table((f"{target.name}, codebook", *map(str, levels)), rows)
    return lines


def length_lines(spreads: dict[str, Spread | None]) -> list[str]:
    """Quantiles of lengths by what they are lengths of."""
    header = ("lengths, seconds", "count", "shortest", "5 %", "median", "mean", "95 %", "longest")
    rows = []
    for name, each in spreads.items():
        if each:
            values = (each.minimum, each.percentile_5, each.median, each.mean, each.percentile_95, each.maximum)
            rows.append((name, each.count, *(number(value, 5) for value in values)))
    return table(header, rows)


def reasons(counts: dict[str, int]) -> str:
    """`2 silent, 1 truncated`, or `none`."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"


def shard_lines(record: ShardRecord) -> list[str]:
    """One shard: what it holds, and its examples."""
    lines = [f"shard {record.name}"]
    lines += pairs(
        [
            ("examples", record.examples),
            ("hours", f"{record.seconds / 3600:.3f}"),
            ("bytes", human_bytes(record.bytes)),
            ("sha256", record.sha256),
            ("plan", record.plan_fingerprint),
            ("dropped", reasons(record.dropped)),
            *((f"teacher of {name}", fingerprint) for name, fingerprint in record.teachers.items()),
        ]
    )
    suffixes = sorted({suffix for entry in record.members for suffix in entry.members})
    rows = [
        (
            entry.key,
            entry.num_frames,
            f"{entry.num_frames / FRAME_RATE:.3f}",
            *(entry.members[suffix][1] if suffix in entry.members else "-" for suffix in suffixes),
        )
        for entry in record.members
    ]
    return [*lines, "", *table(("example", "frames", "seconds", *(f"{suffix}, bytes" for suffix in suffixes)), rows)]


def example_lines(summary: ExampleSummary) -> list[str]:
    """One example: where it comes from, and its members."""
    info = summary.info
    lines = [f"example {summary.key}"]
    lines += pairs(
        [
            ("shard", summary.shard),
            ("track", info.track),
            ("segment", f"{info.segment + 1} of {info.segments}, from {info.start_sample / info.sample_rate:.3f} s"),
            ("length", f"{summary.seconds:.3f} s, {info.num_frames} frames, {info.num_samples} samples"),
            ("audio sha256", info.audio_sha256),
        ]
    )
    rows = [
        (
            member.name,
            member.bytes,
            member.dtype or "-",
            " x ".join(map(str, member.shape)) if member.shape else "-",
            number(member.minimum),
            number(member.maximum),
            number(member.mean),
            member.unit or "-",
        )
        for member in summary.members
    ]
    lines += ["", *table(("member", "bytes", "dtype", "shape", "min", "max", "mean", "unit"), rows)]
    for member in summary.members:
        if member.distinct:
            lines.append(f"  {member.name}: different codes by codebook: {' '.join(map(str, member.distinct))}")
    for member in summary.members:
        lines += first_lines(member.name, member.first) if member.first else []
    return lines


def first_lines(name: str, first: list) -> list[str]:
    """The first values, a line a codebook or frame."""
    rows = first if isinstance(first[0], list) else [first]
    return ["", f"  {name} begins", *(f"    {' '.join(number(value) for value in row)}" for row in rows)]
