"""What decoders keep silent about: containers read byte by byte for truncation, damage and lying lengths."""

import re
import struct
import zlib
from pathlib import Path

OGG_PAGE_HEADER = 27
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class DecodeError(ValueError):
    """Audio that cannot be used. `reason` is one of the manifest's, `detail` names both values."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)  # what it is made with, so that it can pass between processes
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def check_ogg_pages(path: Path) -> None:
    """Raise DecodeError unless every page is whole, in sequence and right by its checksum (RFC 3533, section 6).

    libsndfile passes over damaged pages without a word, and reads only the first of chained streams.
    Bytes after the end of the streams (tags) are let be.
    """
    numbers: dict[bytes, int] = {}
    ended: set[bytes] = set()
    with open(path, "rb") as file:
        while head := file.read(OGG_PAGE_HEADER):
            place = f"byte {file.tell() - len(head)}"
            if ended == set(numbers) != set() and head[:4] != b"OggS":
                return
            if len(head) == OGG_PAGE_HEADER and head[:5] != b"OggS\0":
                raise DecodeError("unreadable", f"no Ogg page at {place}, where the last one ended")
            lacing = file.read(head[26]) if len(head) == OGG_PAGE_HEADER else b""
            body = file.read(sum(lacing))
            if len(head) < OGG_PAGE_HEADER or len(lacing) < head[26] or len(body) < sum(lacing):
                raise DecodeError("truncated", f"{file.tell()} bytes, they end within the Ogg page at {place}")
            found = _ogg_checksum(head[:22] + bytes(4) + head[26:] + lacing + body)
            stated, stream, number = int.from_bytes(head[22:26], "little"), head[14:18], int.from_bytes(head[18:22], "little")
            if found != stated:
                raise DecodeError("unreadable", f"the Ogg page at {place} has checksum {found:08x}, it states {stated:08x}")
            if stream not in numbers and ended:
                raise DecodeError("unreadable", f"a second stream follows the first at {place}; only one can be read")
            if number != numbers.get(stream, number - 1) + 1:
                raise DecodeError("unreadable", f"Ogg page {number} at {place} follows page {numbers[stream]}")
            numbers[stream] = number
            if head[5] & 4:
                ended.add(stream)
        if ended != set(numbers):
            raise DecodeError("truncated", f"{file.tell()} bytes end without the page that marks the end of the stream")


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 with the polynomial of zlib, but highest bit first, no inversion: zlib's over bytes of reversed bits."""
    mirrored = zlib.crc32(page.translate(REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def check_mp4_boxes(path: Path) -> None:
    """Raise DecodeError `truncated` when a top-level box of an MP4 file reaches beyond the file's end."""
    length = path.stat().st_size
    start = 0
    with open(path, "rb") as file:
        while start < length:
            file.seek(start)
            head = file.read(16)
            size = int.from_bytes(head[:4], "big")
            size = int.from_bytes(head[8:], "big") if size == 1 else size
            if start == 0 and head[4:8] != b"ftyp" or size < 8:
                return
            if start + size > length:
                name = head[4:8].decode("latin-1")
                raise DecodeError("truncated", f"{length} bytes, the {name} box claims to reach to {start + size}")
            start += size


def claimed_wav_samples(path: Path, container_name: str) -> int | None:
    """Samples per channel that the size of the data chunk stands for; None when it was left open (streamed).

    ffmpeg says less without a word when the file is shorter.

    Raises:
        DecodeError: `length_mismatch` when what follows the data chunk is no chunk but more audio, as when a
            recorder's size overflows.
    """
    is_w64 = container_name == "w64"
    name_bytes, size_form, alignment = (16, "<Q", 8) if is_w64 else (4, "<I", 2)
    head_bytes = name_bytes + struct.calcsize(size_form)
    length = path.stat().st_size
    start = 40 if is_w64 else 12
    block = large = 0
    with open(path, "rb") as file:
        while start + head_bytes <= length:
            file.seek(start)
            head = file.read(head_bytes)
            size = struct.unpack(size_form, head[name_bytes:])[0] - (head_bytes if is_w64 else 0)
            body = start + head_bytes
            if head[:4] == b"ds64":
                large = int.from_bytes(file.read(16)[8:], "little")
            if head[:4] == b"fmt ":
                block = int.from_bytes(file.read(14)[12:], "little")
            if head[:4] == b"data":
                size = large if size == 0xFFFFFFFF else size
                end = body + size + -size % alignment
                file.seek(end)
                after = file.read(4)
                if not block or size <= 0:
                    return None
                if len(after) == 4 and not re.fullmatch(rb"[ -~]{3,4}.?", after, re.DOTALL) and after.strip(b"\0"):
                    held = (length - body) // block
                    raise DecodeError("length_mismatch", f"header claims {size // block} samples, the file holds {held}")
                return size // block
            start = body + size + -size % alignment
    return None


def has_xing_tag(path: Path) -> bool:
    """Whether the first frame of an MP3 has a Xing or Info tag, which holds the number of frames.

    See http://gabriel.mp3-tech.org/mp3infotag.html; an ID3v2 tag may stand before it.
    """
    with open(path, "rb") as file:
        head = file.read(10)
        if head[:3] == b"ID3":
            file.seek(10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0))))
            head = b""
        return re.search(rb"Xing|Info", head + file.read(4096)) is not None
