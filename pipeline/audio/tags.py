"""Where the audio of a file begins and ends when tags stand around it.

ID3v2 (https://id3.org/id3v2.4.0-structure) and APEv2 (https://wiki.hydrogenaud.io/index.php?title=APEv2_specification) in front;
ID3v1, its "enhanced" form, APEv2, Lyrics3 (https://id3.org/Lyrics3v2) and ID3v2 with a footer behind, in any order.
"""

import os
from pathlib import Path
from typing import BinaryIO

from mert_foundry.pipeline.audio.byte_ranges import read_at

ID3V1_BYTES, ENHANCED_BYTES = 128, 227
APE_BYTES, ID3V2_BYTES = 32, 10
LONGEST_LYRICS = 5100  # of Lyrics3 version 1, which states no size


def audio_range(path: Path) -> tuple[int, int]:
    """The bytes [start, stop) between the tags in front and those behind."""
    with open(path, "rb") as file:
        start, stop = 0, file.seek(0, os.SEEK_END)
        while start < stop and (size := leading_tag(file, start)):
            start = min(start + size, stop)
        while start < stop and (size := _trailing_tag(file, start, stop)):
            stop = max(stop - size, start)
    return start, stop


def leading_tag(file: BinaryIO, place: int) -> int:
    """Bytes of the ID3v2 or APEv2 tag that begins at `place`; 0 when there is none."""
    head = read_at(file, place, APE_BYTES)
    if head[:3] == b"ID3" and len(head) >= ID3V2_BYTES and max(head[6:10]) < 0x80 and head[3] != 0xFF:
        footer = ID3V2_BYTES if head[5] & 0x10 else 0
        return ID3V2_BYTES + _syncsafe(head[6:10]) + footer
    if head[:8] == b"APETAGEX" and len(head) == APE_BYTES:
        return APE_BYTES + int.from_bytes(head[12:16], "little")
    return 0


def _trailing_tag(file: BinaryIO, start: int, stop: int) -> int:
    """Bytes of the tag that ends at `stop`; 0 when there is none."""
    if stop - start >= ID3V1_BYTES and read_at(file, stop - ID3V1_BYTES, 3) == b"TAG":
        enhanced = stop - ID3V1_BYTES - ENHANCED_BYTES
        return ID3V1_BYTES + (ENHANCED_BYTES if enhanced >= start and read_at(file, enhanced, 4) == b"TAG+" else 0)
    footer = read_at(file, max(start, stop - APE_BYTES), min(APE_BYTES, stop - start))
    if footer[:8] == b"APETAGEX":
        header = APE_BYTES if footer[23] & 0x80 else 0
        return int.from_bytes(footer[12:16], "little") + header
    if footer[-9:] == b"LYRICS200" and (digits := footer[-15:-9]).isdigit():
        return int(digits) + 15
    if footer[-9:] == b"LYRICSEND":
        first = max(start, stop - LONGEST_LYRICS)
        found = read_at(file, first, stop - first).rfind(b"LYRICSBEGIN")
        return stop - first - found if found >= 0 else 0
    if footer[-10:-7] == b"3DI" and max(footer[-4:]) < 0x80:
        return 2 * ID3V2_BYTES + _syncsafe(footer[-4:])
    return 0


def _syncsafe(digits: bytes) -> int:
    """An integer of seven bits a byte, the highest first."""
    return sum(byte << shift for byte, shift in zip(digits, (21, 14, 7, 0), strict=True))
