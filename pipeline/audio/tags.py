"""Where the audio of a file begins and ends, without the tags before and after it.

ID3v2 (https://id3.org/id3v2.4.0-structure) and APEv2 (https://wiki.hydrogenaud.io/index.php?title=APEv2_specification)
before it; ID3v1, its "enhanced" form, APEv2, Lyrics3 (https://id3.org/Lyrics3v2) and ID3v2 with a footer after it, in
any order.
"""

import os
import re
from pathlib import Path

from mert_foundry.pipeline.audio.byte_ranges import Seekable, read_at

ID3V1_BYTES, ENHANCED_BYTES = 128, 227
APE_BYTES, ID3V2_BYTES = 32, 10
LONGEST_LYRICS = 5100  # of Lyrics3 version 1, which states no size


def audio_range(path: Path) -> tuple[int, int]:
    """The bytes [start, stop) between leading and trailing tags."""
    with open(path, "rb") as file:
        start, stop = 0, file.seek(0, os.SEEK_END)
        while start < stop and (size := leading_tag(file, start)):
            start = min(start + size, stop)
        while start < stop and (size := _trailing_tag(file, start, stop)):
            stop = max(stop - size, start)
    return start, stop


def leading_tag(file: Seekable, offset: int) -> int:
    """Bytes of the ID3v2 or APEv2 tag that begins at `offset`; 0 when there is none."""
    head = read_at(file, offset, APE_BYTES)
    if head[:3] == b"ID3" and len(head) >= ID3V2_BYTES and max(head[6:10]) < 0x80 and head[3] != 0xFF:
        footer = ID3V2_BYTES if head[5] & 0x10 else 0
        return ID3V2_BYTES + _syncsafe(head[6:10]) + footer
    if head[:8] == b"APETAGEX" and len(head) == APE_BYTES:
        return APE_BYTES + int.from_bytes(head[12:16], "little")
    return 0


def tag_size(file: Seekable, offset: int, stop: int) -> int:
    """Bytes of the tag that begins at `offset`, of any kind, as between files that were joined; 0 when
    there is none.
    """
    if size := leading_tag(file, offset):
        return size
    head = read_at(file, offset, LONGEST_LYRICS)
    if head[:3] == b"TAG" and head[:4] != b"TAG+":
        return min(ID3V1_BYTES, stop - offset)
    if head[:4] == b"TAG+":
        return min(ENHANCED_BYTES, stop - offset)
    ends = [head.find(mark) + len(mark) for mark in (b"LYRICSEND", b"LYRICS200") if head.find(mark) >= 0]
    return min(ends) if head[:11] == b"LYRICSBEGIN" and ends else 0


def _trailing_tag(file: Seekable, start: int, stop: int) -> int:
    """Bytes of the tag that ends at `stop`; 0 when there is none."""
    if stop - start >= ID3V1_BYTES and read_at(file, stop - ID3V1_BYTES, 3) == b"TAG":
        enhanced = stop - ID3V1_BYTES - ENHANCED_BYTES
        return ID3V1_BYTES + (ENHANCED_BYTES if enhanced >= start and read_at(file, enhanced, 4) == b"TAG+" else 0)
    footer = read_at(file, max(start, stop - APE_BYTES), min(APE_BYTES, stop - start))
    size = 0
    if footer[:8] == b"APETAGEX" and len(footer) == APE_BYTES:
        has_header = footer[23] & 0x80
        size = int.from_bytes(footer[12:16], "little") + (APE_BYTES if has_header else 0)
        begins = b"APETAGEX" if has_header else None
    elif footer[-9:] == b"LYRICS200" and (digits := footer[-15:-9]).isdigit():
        size, begins = int(digits) + 15, b"LYRICSBEGIN"
    elif footer[-9:] == b"LYRICSEND":
        first = max(start, stop - LONGEST_LYRICS)
        found = read_at(file, first, stop - first).rfind(b"LYRICSBEGIN")
        return stop - first - found if found >= 0 else 0
    elif footer[-10:-7] == b"3DI" and max(footer[-4:]) < 0x80:
        size, begins = 2 * ID3V2_BYTES + _syncsafe(footer[-4:]), b"ID3"
    # If a size does not lead back to the beginning of a tag, it is damaged, and these bytes may be music.
    return size if size and start <= stop - size and _begins_with(file, stop - size, begins) else 0


def _begins_with(file: Seekable, offset: int, mark: bytes | None) -> bool:
    """Whether a tag begins with its mark, or (None) with an item of APEv2: size, flags, and a key of
    printable letters.
    """
    if mark is not None:
        return read_at(file, offset, len(mark)) == mark
    return re.fullmatch(rb".{8}[ -~]{2,255}\0.*", read_at(file, offset, 270), re.DOTALL) is not None


def _syncsafe(digits: bytes) -> int:
    """An integer of seven bits a byte, the highest first."""
    return sum(byte << shift for byte, shift in zip(digits, (21, 14, 7, 0), strict=True))
