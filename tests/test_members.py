"""Members of a tar are read whole, as the record has them, or refused by name with both values."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mert_foundry.pipeline.shards.members import Span, find_rows, read_members
from mert_foundry.pipeline.shards.record import ExampleEntry

TAR = bytes(range(256)) * 8


def entry(offset: int, size: int, checksum: int | None = None) -> ExampleEntry:
    found = zlib.crc32(TAR[max(0, offset) : offset + size]) if checksum is None else checksum
    return ExampleEntry(key="a-00000", num_frames=1, members={"flac": (offset, size, found)})


def read(spans: list[Span]) -> list[bytes]:
    return [TAR[span.offset : span.offset + span.size] for span in spans]


@given(st.integers(0, len(TAR)), st.integers(0, len(TAR)))
def test_a_member_within_the_tar_is_its_bytes(start: int, stop: int):
    start, stop = sorted((start, stop))
    assert read_members("", entry(start, stop - start), ["flac"], len(TAR), read) == {"flac": TAR[start:stop]}


@pytest.mark.parametrize(("offset", "size"), [(-1, 10), (10, -1), (len(TAR) - 9, 10), (1 << 60, 1 << 60)])
def test_a_member_beyond_the_tar_is_refused_before_it_is_read(offset: int, size: int):
    with pytest.raises(
        ValueError, match=rf"^train\.tar: flac: {size} bytes at offset {offset}, of a tar of {len(TAR)}"
    ):
        read_members("train.tar: ", entry(offset, size, 0), ["flac"], len(TAR), lambda spans: pytest.fail("it is read"))


def test_what_is_short_or_other_or_not_listed_is_named():
    with pytest.raises(ValueError, match=r"^flac: 100 bytes expected at offset 2000, 48 read; the file is truncated"):
        read_members("", entry(2000, 100), ["flac"], 1 << 20, read)
    with pytest.raises(ValueError, match=rf"^flac: CRC-32 {zlib.crc32(TAR[:9])}, its record says 7"):
        read_members("", entry(0, 9, 7), ["flac"], len(TAR), read)
    with pytest.raises(ValueError, match=r"^codes\.npy: no such member in the record"):
        read_members("", entry(0, 9), ["codes.npy"], len(TAR), read)


@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 3), st.data())
def test_rows_lie_behind_a_header_of_whole_64_bytes(rows: int, row_bytes: int, blocks: int, data: st.DataObject):
    start = data.draw(st.integers(0, rows - 1))
    count = data.draw(st.integers(1, rows - start))
    member = Span("x", 512, 64 * blocks + rows * row_bytes)
    begin = 512 + 64 * blocks + start * row_bytes
    assert find_rows(member, rows, row_bytes, start, count) == Span("x", begin, count * row_bytes)
    with pytest.raises(ValueError, match="cannot hold"):
        find_rows(member._replace(size=member.size + 1), rows, row_bytes, start, count)
