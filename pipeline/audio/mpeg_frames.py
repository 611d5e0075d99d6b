"""The frames of an MPEG audio file (MP1, MP2, MP3), counted without decoding: what the file claims, and what is there.

The header of a frame: ISO 11172-3, section 2.4.1.3, and http://www.mp3-tech.org/programmer/frame_header.html. The count
of frames in the first one, which holds no audio: http://gabriel.mp3-tech.org/mp3infotag.html.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.tags import tag_size

LAYERS = {3: 1, 2: 2, 1: 3}  # by the two bits of a header
RATE_DIVISORS = {3: 1, 2: 2, 0: 4}  # by the two bits of MPEG 1, 2 and 2.5
RATES = (44_100, 48_000, 32_000)  # Hz of MPEG 1
KBIT = {  # kbit/s by the four bits of a header, from 1 on; keys: (is MPEG 1, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
BUFFER_BYTES = 1 << 20
FRAME_START = re.compile(rb"\xff[\xe2-\xff][\x10-\xef]", re.DOTALL)  # sync, a layer, a bit rate
COUNT_BYTES = 200  # from the start of a frame to the end of the count and the delays in it
COUNT_ERROR = 2  # frames: some encoders count the one that holds the count, others do not count the last
LEAST_FRAMES = 10
DECODER_DELAY = 529  # samples of delay that a decoder of layer 3 adds to the encoder's


class FrameHeader(NamedTuple):
    """What the first four bytes of a frame say; sizes in bytes, lengths in samples per channel."""

    size: int
    samples: int
    sample_rate: int
    channels: int
    layer: int
    is_mpeg1: bool


@dataclass
class MpegPart:
    """Frames that belong together, bytes [start, stop).

    `samples`: of a frame, per channel. `claimed`: frames by the count in the first one, None without one. `found`:
    frames that are there. `delay`, `padding`: samples that a decoder cuts at start and end. `is_partial`: whether the
    file ends within the next frame.
    """

    start: int
    stop: int
    samples: int
    claimed: int | None = None
    found: int = 0
    delay: int = 0
    padding: int = 0
    is_partial: bool = False

    @property
    def num_samples(self) -> int:
        """Samples per channel that a decoder should give."""
        return self.found * self.samples - self.delay - self.padding


def read_mpeg_parts(path: Path, start: int, stop: int) -> list[MpegPart]:
    """The parts of an MPEG audio file from its frame headers; more than one where files were joined.

    Empty where there is no frame, as in a file of the free bit rate, whose frames cannot be counted.

    Raises:
        DecodeError: `truncated` or `length_mismatch` when a part has fewer or more frames than it counts; `unreadable`
            when other bytes stand between its frames.
    """
    with open(path, "rb", buffering=BUFFER_BYTES) as file:
        parts: list[MpegPart] = []
        offset, gap, is_tag = start, None, True
        while offset + 4 <= stop:
            file.seek(offset)
            frame = file.read(COUNT_BYTES)
            header = read_header(frame)
            if header is None:
                gap = offset if gap is None else gap
                size = tag_size(file, offset, stop)
                is_tag = is_tag and size > 0
                offset = offset + size if size else _next_frame(file, offset, stop)
                continue
            if offset + header.size > stop:
                if parts:
                    parts[-1].is_partial = True
                break
            _add_frame(parts, offset, header, frame[: header.size], gap, is_tag)
            offset, gap, is_tag = offset + header.size, None, True
    # A part of few frames without a count is random bytes that look like frames.
    parts = [
        part
        for number, part in enumerate(parts)
        if number == 0 or part.claimed is not None or part.found >= LEAST_FRAMES
    ]
    for part in parts:
        _check_count(part)
    return parts


def _check_count(part: MpegPart) -> None:
    is_cut = part.is_partial and part.claimed is not None and part.found < part.claimed
    if part.claimed is None or abs(part.found - part.claimed) <= COUNT_ERROR and not is_cut:
        return
    reason = "truncated" if part.found < part.claimed else "length_mismatch"
    raise DecodeError(
        reason, f"the first frame counts {part.claimed} frames, {part.found} are there ({part.samples} samples each)"
    )


def read_header(head: bytes) -> FrameHeader | None:
    """Read a frame header of four bytes; None for other bytes, and for a frame of the free bit rate."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, LAYERS.get(head[1] >> 1 & 3)
    bit_rate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if layer is None or version not in RATE_DIVISORS or not 0 < bit_rate < 15 or rate == 3:
        return None
    is_mpeg1 = version == 3
    sample_rate = RATES[rate] // RATE_DIVISORS[version]
    bits = 1000 * KBIT[is_mpeg1, layer][bit_rate - 1]
    if layer == 1:
        samples, size = 384, 4 * (12 * bits // sample_rate + padding)
    else:
        samples = 576 if layer == 3 and not is_mpeg1 else 1152
        size = samples // 8 * bits // sample_rate + padding
    return FrameHeader(size, samples, sample_rate, 1 if head[3] >> 6 == 3 else 2, layer, is_mpeg1)


def _add_frame(
    parts: list[MpegPart], offset: int, header: FrameHeader, frame: bytes, gap: int | None, is_tag: bool
) -> None:
    """Count a frame.

    A new part begins when the frame holds a count, follows tags, or follows all frames that the part claims.

    `gap`: where the last frame ended, when it was not here; `is_tag`: whether only tags lie between. Raises DecodeError
    `unreadable` for any other gap.
    """
    new = MpegPart(offset, offset + header.size, header.samples)
    if _read_count(new, header, frame):
        if parts and parts[-1].found == 0:  # some tools write their own count in front of an older one
            parts.pop()
        parts.append(new)
        return
    is_done = bool(parts) and parts[-1].claimed is not None and parts[-1].found >= parts[-1].claimed
    if not parts or (gap is not None and (is_tag or is_done)):
        parts.append(new)
    elif gap is not None:
        raise DecodeError("unreadable", f"damaged: bytes {gap} to {offset} are neither a frame nor a tag")
    parts[-1].found += 1
    parts[-1].stop = new.stop


def _read_count(part: MpegPart, header: FrameHeader, frame: bytes) -> bool:
    """Whether a frame holds a count of frames instead of audio, which makes it the first of a part; its claim goes
    there.
    """
    if header.layer != 3:
        return False
    side = {(True, 1): 17, (True, 2): 32, (False, 1): 9, (False, 2): 17}[header.is_mpeg1, header.channels]
    for offset in (4 + side, 6 + side):  # without and with a checksum
        if frame[offset : offset + 4] in (b"Xing", b"Info"):
            _read_xing(part, frame[offset:])
            return True
    if frame[36:40] == b"VBRI":
        part.claimed = int.from_bytes(frame[50:54], "big")
        return True
    return False


def _read_xing(part: MpegPart, tag: bytes) -> None:
    flags = int.from_bytes(tag[4:8], "big")
    offset = 8
    if flags & 1:
        part.claimed = int.from_bytes(tag[offset : offset + 4], "big") or None  # a streaming writer leaves 0
    offset += 4 * (flags & 1) + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
    delays = tag[offset + 21 : offset + 24]
    if tag[offset : offset + 4] in (b"LAME", b"Lavf", b"Lavc") and len(delays) == 3:
        delay, padding = delays[0] << 4 | delays[1] >> 4, (delays[1] & 15) << 8 | delays[2]
        part.delay = delay + DECODER_DELAY
        part.padding = max(0, padding - DECODER_DELAY)


def _next_frame(file: BinaryIO, offset: int, stop: int) -> int:
    """Where the next frame begins that another one follows, or `stop`."""
    first = offset + 1
    while first < stop:
        file.seek(first)
        chunk = file.read(min(BUFFER_BYTES, stop - first))
        for match in FRAME_START.finditer(chunk):
            file.seek(first + match.start())
            header = read_header(file.read(4))
            if header:
                file.seek(first + match.start() + header.size)
                if read_header(file.read(4)):
                    return first + match.start()
        first += max(1, len(chunk) - 2) if len(chunk) == BUFFER_BYTES else len(chunk)
    return stop
