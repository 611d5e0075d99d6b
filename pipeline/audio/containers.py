"""Truncated containers of compressed audio, which libraries read without an error: sizes that reach beyond the end of
the file.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from mert_foundry.pipeline.audio.byte_ranges import Seekable, read_at
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.pcm_layout import chunks, is_placeholder

MP4_BOXES = {
    b"ftyp",
    b"moov",
    b"mdat",
    b"moof",
    b"free",
    b"skip",
    b"wide",
    b"udta",
    b"meta",
    b"sidx",
    b"styp",
    b"mfra",
    b"uuid",
}
LAST_VOC_BLOCK = 9
VOC_SAMPLES = {1, 2, 9}  # blocks with samples
VOC_MARK = b"Creative Voice File\x1a"
EBML_MARK, SEGMENT_MARK = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")
SLOPPY_BYTES = 8  # some writers count the head of a chunk or its padding in its size, others do not


def check_sizes(file: Seekable) -> None:
    """Raise DecodeError `truncated` when a part of a container reaches beyond the file's end.

    Known are MP4, RIFF (AVI, WAV), IFF (8SVX), DSDIFF, DSF, Matroska and VOC.
    """
    length = file.seek(0, os.SEEK_END)
    for name, stop in _parts(file, length):
        if stop > length + SLOPPY_BYTES:
            raise DecodeError("truncated", f"{length} bytes, the {name} claims to reach to {stop}")


def _parts(file: Seekable, length: int) -> Iterator[tuple[str, int]]:
    """Names of the outermost parts, and where they claim to end."""
    head = read_at(file, 0, 32)
    if head[4:8] == b"ftyp":
        yield from _mp4_boxes(file, length)
    elif head[:4] in (b"RIFF", b"FORM"):
        size = struct.unpack("<I" if head[:4] == b"RIFF" else ">I", head[4:8])[0]
        if not is_placeholder(size):
            yield f"{head[:4].decode()} chunk", 8 + size
    elif head[:4] == b"FRM8":
        yield "FRM8 chunk", 12 + int.from_bytes(head[4:12], "big")
    elif head[:4] == b"DSD " and len(head) >= 20:
        yield "DSF header", int.from_bytes(head[12:20], "little")
    elif head[:4] == EBML_MARK:
        yield from _matroska_segment(file)
    elif head.startswith(VOC_MARK):
        yield from ((f"VOC block of type {kind}", stop) for kind, stop in _voc_blocks(file, length))


def _mp4_boxes(file: Seekable, length: int) -> Iterator[tuple[str, int]]:
    start = 0
    while start < length:
        head = read_at(file, start, 16)
        size = int.from_bytes(head[:4], "big")
        size = int.from_bytes(head[8:], "big") if size == 1 else size
        if size < 8 or head[4:8] not in MP4_BOXES:  # a box up to the end of the file, or bytes after the last box
            return
        start += size
        yield f"{head[4:8].decode()} box", start


def _matroska_segment(file: Seekable) -> Iterator[tuple[str, int]]:
    """The segment after the EBML head (https://www.rfc-editor.org/rfc/rfc9559): one of unknown size claims nothing."""
    offset, size = _ebml_size(file, len(EBML_MARK))
    offset += size or 0
    if read_at(file, offset, 4) == SEGMENT_MARK:
        offset, size = _ebml_size(file, offset + len(SEGMENT_MARK))
        if size is not None:
            yield "Matroska segment", offset + size


def _ebml_size(file: Seekable, offset: int) -> tuple[int, int | None]:
    """Where the number at `offset` ends, and its value; None when all of its bits are set: unknown."""
    first = int.from_bytes(read_at(file, offset, 1), "big")
    width = 9 - first.bit_length()
    value = int.from_bytes(read_at(file, offset, width), "big") & ((1 << 7 * width) - 1)
    return offset + width, None if value == (1 << 7 * width) - 1 else value


def _voc_blocks(file: Seekable, length: int) -> Iterator[tuple[int, int]]:
    """Type and end of the blocks up to the end mark, or to bytes that are no block: some writers (SoX) state a few
    bytes less than they write.
    """
    offset = int.from_bytes(read_at(file, 20, 2), "little")
    while 20 < offset < length and 0 < (kind := read_at(file, offset, 1)[0]) <= LAST_VOC_BLOCK:
        offset += 4 + int.from_bytes(read_at(file, offset + 1, 3), "little")
        yield kind, offset


def check_voc(file: Seekable) -> None:
    """Raise DecodeError when the samples of a VOC file lie in several blocks: libsndfile would take their heads for
    samples.
    """
    length = file.seek(0, os.SEEK_END)
    blocks = sum(kind in VOC_SAMPLES for kind, _ in _voc_blocks(file, length))
    if blocks != 1:
        raise DecodeError("unreadable", f"a VOC file with samples in {blocks} blocks is not read here")


@dataclass(frozen=True)
class ClaimedAlac:
    """Hz, samples per channel by the packet table, and how many fewer there may be: ffmpeg counts the last packet as
    full.
    """

    sample_rate: float
    num_samples: int
    slack: int


def claimed_alac_samples(file: Seekable) -> ClaimedAlac | None:
    """What the packet table of an ALAC file in CAF states; None for another codec, or without such a table.

    https://developer.apple.com/library/archive/documentation/MusicAudio/Reference/CAFSpec, "Packet Table Chunk".
    """
    packet_samples, sample_rate = 0, 0.0
    for chunk in chunks(file, 8, file.seek(0, os.SEEK_END), 4, ">Q", alignment=1):
        content = read_at(file, chunk.start, 32).ljust(32, b"\0")
        if chunk.name == b"desc":
            if content[8:12] != b"alac":
                return None
            packet_samples, sample_rate = int.from_bytes(content[20:24], "big"), struct.unpack(">d", content[:8])[0]
        if chunk.name == b"pakt":
            valid, remainder = int.from_bytes(content[8:16], "big"), int.from_bytes(content[20:24], "big")
            return ClaimedAlac(sample_rate, valid, 0 if remainder else max(0, packet_samples - 1))
    return None
