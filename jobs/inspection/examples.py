"""What mert inspect --example and --export show: one example with its members, and the files that were written."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mert_foundry.jobs.command.text import number
from mert_foundry.jobs.inspection.view import Block, Facts, Note, Pitch, Section, Table, View
from mert_foundry.pipeline.frames import HOP
from mert_foundry.pipeline.inspection.examples import (
    ExampleSummary,
    MemberSummary,
    StoredExample,
    export_example,
    find_examples,
    read_example,
    summarise_example,
)
from mert_foundry.pipeline.shards.index import ShardEntry, ShardIndex
from mert_foundry.pipeline.shards.target import TargetSpec, octave_layout
from mert_foundry.pipeline.shards.text import TOKENS_MEMBER


def example_view(folder: str, index: ShardIndex, shards: Sequence[ShardEntry], key: str) -> View:
    """A view of one example: where it comes from, and its members. Raises as `find_examples` and `read_example`."""
    stored = find_examples(folder, shards, [key])[0]
    summary = summarise_example(folder, index, stored, read_example(folder, index, stored)[0])
    beginnings = [table for member in summary.members for table in first_values(member)]
    sections = [Section("Overview", [example_facts(summary), *member_blocks(summary.members), *beginnings])]
    return View("example", key, sections, summary.model_dump(mode="json"))


def export_view(folder: str, index: ShardIndex, shards: Sequence[ShardEntry], key: str, out: Path) -> View:
    """Write the files of one example into the folder `out`; returns a view that names them.

    Raises as `export_example`.
    """
    stored = find_examples(folder, shards, [key])[0]
    files = [str(path) for path in export_example(*read_example(folder, index, stored), out)]
    written = Table(("file",), [(file,) for file in files])
    return View("export", key, [Section("Files", [written])], {"kind": "export", "key": key, "files": [*files]})


def example_facts(summary: ExampleSummary) -> Facts:
    """Where an example comes from."""
    info = summary.info
    text = [("text", summary.text or "none")] if summary.text is not None else []
    start, length = f"token {info.start_sample // HOP:,}", f"{info.num_frames:,} tokens"
    if summary.seconds is not None:
        start = f"{info.start_sample / info.sample_rate:.3f} s"
        length = f"{summary.seconds:.3f} s, {info.num_frames:,} frames, {info.num_samples:,} samples"
    tokens = [("tokens", " | ".join(summary.pieces))] if summary.pieces else []
    return Facts(
        [
            ("shard", summary.shard),
            ("document" if summary.seconds is None else "track", info.track),
            ("segment", f"{info.segment + 1} of {info.segments}, from {start}"),
            ("length", length),
            ("sha256" if summary.seconds is None else "audio sha256", info.audio_sha256),
            *text,
            *tokens,
        ]
    )


def member_blocks(members: Sequence[MemberSummary]) -> list[Block]:
    """A table of the members with their shapes and ranges."""
    rows = [
        (
            member.name,
            member.bytes,
            member.dtype,
            " x ".join(map(str, member.shape)) if member.shape else None,
            member.minimum,
            member.maximum,
            member.mean,
            member.unit,
        )
        for member in members
    ]
    different = [
        Note(f"{member.name}: different codes by codebook: {' '.join(map(str, member.distinct))}")
        for member in members
        if member.distinct
    ]
    return [Table(("member", "bytes", "dtype", "shape", "min", "max", "mean", "unit"), rows), *different]


def first_values(member: MemberSummary) -> list[Table]:
    """The first values of a member, one row for each codebook or frame; no rows for JSON."""
    if not member.first:
        return []
    rows = np.atleast_2d(member.first).tolist()
    header = (f"{member.name} begins", *map(str, range(len(rows[0]))))
    names = "codebook" if member.distinct else "frame" if len(rows) > 1 else "sample"
    names = "token" if member.name == TOKENS_MEMBER else names
    return [Table(header, [(f"{names} {index}", *map(number, row)) for index, row in enumerate(rows)])]


def texts_table(folder: str, index: ShardIndex, chosen: Sequence[StoredExample]) -> Table:
    """The texts of examples of text alone. Raises as `read_example`."""
    summaries = [summarise_example(folder, index, stored, read_example(folder, index, stored)[0]) for stored in chosen]
    return Table(("example", "text"), [(each.key, each.text) for each in summaries])


def pitch_of_bins(spec: TargetSpec) -> Pitch | None:
    """The pitches of a target's bins, to name them as notes; None when the bins are no pitches."""
    layout = octave_layout(spec)
    return Pitch(*layout) if layout else None
