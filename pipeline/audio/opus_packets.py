"""The length of an Opus stream by its packets and by the positions its pages state (RFC 6716, section
3.1; RFC 7845).
"""

from mert_foundry.pipeline.audio.decode_error import DecodeError

# Samples at 48 kHz of a frame, by the upper five bits of a packet's first byte.
FRAME_SAMPLES = [*[480, 960, 1920, 2880] * 3, *[480, 960] * 2, *[120, 240, 480, 960] * 4]
MOST_TRIMMED = 2 * 5760  # samples of the last page that are not played: two of the longest packets
HEAD_PACKETS = 2  # OpusHead and OpusTags hold no audio
SEGMENT_BYTES = 255  # of a segment that another one of the same packet follows
HEAD_BYTES = 20  # of a packet; the longest that is looked at is OpusHead


class OpusLength:
    """Counts the samples that a decoder should give of one stream, page by page."""

    def __init__(self) -> None:
        self._packets = 0
        self._unfinished = b""
        self._samples = 0  # of all finished packets
        self._pre_skip = 0
        self._start: int | None = None
        self._position = 0
        self._is_ended = False

    def add(self, segments: bytes, body: bytes, position: int, is_last: bool) -> None:
        """Count a page.

        Args:
            segments: sizes of its segments, bytes. body: their content. position: as the page states it, samples.

        Raises DecodeError `unreadable` when the last page states an end that its packets do not have.
        """
        before = self._samples
        for packet in self._finish(segments, body):
            self._packets += 1
            if self._packets == 1:
                self._pre_skip = int.from_bytes(packet[10:12], "little")
            elif self._packets > HEAD_PACKETS:
                self._samples += packet_samples(packet)
        self._is_ended = is_last and position >= 0  # an empty last page may state none
        if position < 0 or self._samples == before and not is_last:
            return
        if self._start is None:
            # If the first page is also the last, samples are cut at its end, not at its start.
            self._start = 0 if self._is_ended else position - self._samples
        self._position = position
        reached = self._start + self._samples
        if self._is_ended and not reached - MOST_TRIMMED <= position <= reached:
            raise DecodeError(
                "unreadable", f"the last Ogg page states position {position}, the packets up to it end at {reached}"
            )

    @property
    def num_samples(self) -> int:
        """Samples per channel at 48 kHz; samples after the position of the last page are not played."""
        played = self._position - (self._start or 0) if self._is_ended else self._samples
        return max(0, played - self._pre_skip)

    def _finish(self, segments: bytes, body: bytes) -> list[bytes]:
        """The first bytes of the packets that end on a page."""
        packets, offset = [], 0
        for size in segments:
            self._unfinished += body[offset : offset + size][: HEAD_BYTES - len(self._unfinished)]
            offset += size
            if size < SEGMENT_BYTES:
                packets.append(self._unfinished)
                self._unfinished = b""
        return packets


def packet_samples(packet: bytes) -> int:
    """Samples per channel at 48 kHz of a packet, from its first two bytes; 0 for an empty one."""
    if not packet:
        return 0
    frames = {0: 1, 1: 2, 2: 2}.get(packet[0] & 3)
    if frames is None:
        frames = packet[1] & 63 if len(packet) > 1 else 0
    return frames * FRAME_SAMPLES[packet[0] >> 3]
