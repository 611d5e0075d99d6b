"""Ogg page by page: damage that its decoders do not report.

libsndfile and ffmpeg skip damaged and lost pages without an error, and libsndfile reads only the first of chained
streams. Pages carry a checksum and a number (RFC 3533, section 6), so both can be detected.
"""

import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.opus_packets import MOST_TRIMMED, OpusLength

CAPTURE, PAGE_HEADER = b"OggS\0", 27
BUFFER_BYTES = 1 << 20
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
# How the first packet of a stream begins, by codec.
CODEC_MARKS = {
    b"\x01vorbis": "vorbis", b"OpusHead": "opus", b"\x7fFLAC": "flac", b"fLaC": "flac", b"Speex   ": "speex",
    b"\x80theora": "theora", b"\x01video": "video", b"BBCD": "dirac",
}  # fmt: skip
LAST = 4  # flag of a stream's last page
UNFINISHED = -1  # position of a page on which no packet ends
COUNTED = {"vorbis", "opus", "flac", "speex"}  # their positions are samples


@dataclass
class OggPages:
    """What the pages of a file are.

    `streams`: the codec of each, in their order; empty for one that is not known. `ranges`: the bytes [start, stop)
    with pages. `is_repaired`: whether there are bytes between them, or no last page. `opus_samples`: samples per
    channel at 48 kHz of the only stream, when it is Opus.
    """

    streams: list[str] = field(default_factory=list)
    ranges: list[tuple[int, int]] = field(default_factory=list)
    is_repaired: bool = False
    opus_samples: int | None = None

    def add(self, start: int, stop: int) -> None:
        """Take in a page."""
        if self.ranges and self.ranges[-1][1] == start:
            start = self.ranges.pop()[0]
        self.ranges.append((start, stop))


def check_ogg_pages(path: Path, start: int) -> OggPages:
    """Look at every page from byte `start` on.

    Bytes between pages, and a stream without a last page, are accepted when all pages are there: the file counts as
    repaired. Bytes after the end of the streams (tags) are ignored.

    Raises:
        DecodeError: `unreadable` when a checksum is wrong, a page is missing, or a second stream follows the first;
            `truncated` when the last page is not whole.
    """
    with open(path, "rb", buffering=BUFFER_BYTES) as file:
        return _check(file, start, file.seek(0, os.SEEK_END))


def _check(file: BinaryIO, offset: int, length: int) -> OggPages:
    found = OggPages()
    streams: dict[bytes, _Stream] = {}
    while offset < length:
        page = _read_page(file, offset)
        if page is None:
            if streams and all(stream.is_ended for stream in streams.values()):
                break
            offset = _next_page(file, offset)
            found.is_repaired = True
            continue
        if not _is_whole(page):
            raise DecodeError("truncated", f"{length} bytes, they end within the Ogg page at byte {offset}")
        stated, computed = int.from_bytes(page[22:26], "little"), _checksum(page)
        if computed != stated:
            raise DecodeError(
                "unreadable", f"the Ogg page at byte {offset} has checksum {computed:08x}, it states {stated:08x}"
            )
        serial = page[14:18]
        if serial not in streams:
            if any(stream.is_ended for stream in streams.values()):
                raise DecodeError(
                    "unreadable", f"a second stream follows the first at byte {offset}; only one can be read"
                )
            streams[serial] = _Stream(_codec(page[PAGE_HEADER + page[26] :]))
        streams[serial].add(page, offset)
        found.add(offset, offset + len(page))
        offset += len(page)
    found.streams = [stream.codec for stream in streams.values()]
    found.is_repaired |= not all(stream.is_ended for stream in streams.values())
    if found.streams == ["opus"]:
        found.opus_samples = next(iter(streams.values())).opus.num_samples
    return found


class _Stream:
    """What is known of a stream after some of its pages."""

    def __init__(self, codec: str):
        self.codec = codec
        self.opus = OpusLength()
        self.is_ended = False
        self._number: int | None = None
        self._position = 0

    def add(self, page: bytes, offset: int) -> None:
        """Take a page in. Raises DecodeError `unreadable` when it does not follow the one before."""
        number, position = int.from_bytes(page[18:22], "little"), int.from_bytes(page[6:14], "little", signed=True)
        if self._number is not None and number != self._number + 1:
            raise DecodeError("unreadable", f"Ogg page {number} at byte {offset} follows page {self._number}")
        self._number = number
        self.is_ended |= bool(page[5] & LAST)
        # The last page states where the audio ends; positions on earlier pages are not always in order.
        is_trimmed = (
            page[26] == 0 and self._position - position <= MOST_TRIMMED
        )  # an empty last page that cuts the one before
        if self.is_ended and self.codec in COUNTED and UNFINISHED != position < self._position and not is_trimmed:
            raise DecodeError(
                "unreadable",
                f"the last Ogg page, at byte {offset}, states position {position}, one before {self._position}",
            )
        self._position = position if is_trimmed else max(position, self._position)
        if self.codec == "opus":
            body = PAGE_HEADER + page[26]
            self.opus.add(page[PAGE_HEADER:body], page[body:], position, bool(page[5] & LAST))


def _next_page(file: BinaryIO, offset: int) -> int:
    """Where the next whole page with the right checksum begins. Raises DecodeError `unreadable` when there is none."""
    first = after = offset + 1
    while True:
        file.seek(first)
        chunk = file.read(BUFFER_BYTES)
        found = chunk.find(CAPTURE, after - first)
        if found >= 0:
            after = first + found
            page = _read_page(file, after)
            if page is not None and _is_whole(page) and _checksum(page) == int.from_bytes(page[22:26], "little"):
                return after
            after += 1
        elif len(chunk) < BUFFER_BYTES:
            raise DecodeError("unreadable", f"no Ogg page at byte {offset}, where the last one ended, nor after it")
        else:
            first = after = first + len(chunk) - len(CAPTURE) + 1  # the mark may lie across two chunks


def _read_page(file: BinaryIO, offset: int) -> bytes | None:
    """The page that begins at `offset`, as much as there is of it; None when none begins there."""
    file.seek(offset)
    head = file.read(PAGE_HEADER)
    if not head.startswith(CAPTURE) and not CAPTURE.startswith(head):
        return None
    lacing = file.read(head[26]) if len(head) == PAGE_HEADER else b""
    return head + lacing + file.read(sum(lacing))


def _is_whole(page: bytes) -> bool:
    body = PAGE_HEADER + page[26] if len(page) >= PAGE_HEADER else PAGE_HEADER
    return len(page) >= body and len(page) == body + sum(page[PAGE_HEADER:body])


def _codec(packet: bytes) -> str:
    return next((codec for mark, codec in CODEC_MARKS.items() if packet.startswith(mark)), "")


def _checksum(page: bytes) -> int:
    """CRC-32 with the polynomial of zlib, but highest bit first, no inversion: zlib's over bytes of reversed bits."""
    page = page[:22] + bytes(4) + page[26:]  # the checksum is computed with zeros in its own place
    mirrored = zlib.crc32(page.translate(REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
