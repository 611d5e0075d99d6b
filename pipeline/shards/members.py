"""One member of a shard's tar: where its record says it lies, and whether the bytes read there are its own.

Whoever reads members does it by these functions, be it by ranges of a URL or from an open file.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mert_foundry.pipeline.shards.record import ExampleEntry


class Span(NamedTuple):
    """Bytes of a tar: a member, or some rows of its array. `name` is for errors; offset and size in bytes."""

    name: str
    offset: int
    size: int


ReadSpans = Callable[[Sequence[Span]], Sequence[bytes]]  # the bytes of each; fewer where the tar ends


def find_member(where: str, entry: ExampleEntry, suffix: str, tar_bytes: int) -> Span:
    """The span of a member of an example; `where` goes before its suffix in errors.

    Raises:
        ValueError: the record has no such member, or one that does not lie within a tar of `tar_bytes`.
    """
    if suffix not in entry.members:
        raise ValueError(f"{where}{suffix}: no such member in the record")
    offset, size, _ = entry.members[suffix]
    if not 0 <= offset <= offset + size <= tar_bytes:
        raise ValueError(f"{where}{suffix}: {size} bytes at offset {offset}, of a tar of {tar_bytes} bytes")
    return Span(where + suffix, offset, size)


def find_rows(member: Span, rows: int, row_bytes: int, start: int, count: int) -> Span:
    """Rows [start, start + count) of a `.npy` member whose array has `rows` rows of `row_bytes`."""
    header = member.size - rows * row_bytes
    if header <= 0 or header % 64:  # the .npy format pads its header to 64 bytes
        raise ValueError(f"{member.name}: {member.size} bytes cannot hold {rows} rows of {row_bytes} bytes")
    return Span(member.name, member.offset + header + start * row_bytes, count * row_bytes)


def read_spans(spans: Sequence[Span], read: ReadSpans) -> Sequence[bytes]:
    """The bytes of each span. Raises ValueError naming the member when the tar ends before."""
    contents = read(spans)
    for span, content in zip(spans, contents, strict=True):
        check_size(span, len(content))
    return contents


def check_size(span: Span, found: int) -> None:
    """Raise ValueError naming the member when `found` bytes were read of a span: the tar ends before."""
    if found != span.size:
        raise ValueError(
            f"{span.name}: {span.size} bytes expected at offset {span.offset}, {found} read; the file is truncated"
        )


def check_checksum(name: str, content: bytes, checksum: int) -> None:
    """Raise ValueError naming the member when the CRC-32 of its bytes is not the recorded one."""
    found = zlib.crc32(content)
    if found != checksum:
        raise ValueError(f"{name}: CRC-32 {found}, its record says {checksum}")


def read_members(
    where: str, entry: ExampleEntry, suffixes: Sequence[str], tar_bytes: int, read: ReadSpans
) -> dict[str, bytes]:
    """Whole members of an example by suffix, of the recorded size and CRC-32. Raises as the functions above."""
    spans = [find_member(where, entry, suffix, tar_bytes) for suffix in suffixes]
    members = dict(zip(suffixes, map(bytes, read_spans(spans, read)), strict=True))
    for suffix, content in members.items():
        check_checksum(where + suffix, content, entry.members[suffix][2])
    return members
