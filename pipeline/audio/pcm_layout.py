"""Plain PCM in WAV, RF64, W64, AIFF, AU, CAF and NIST SPHERE: where its samples lie and how they are stored, from the
container alone.

Libraries read the same headers in different ways: ffmpeg takes the big-endian samples of RIFX for little-endian ones
and counts the padding of an odd AIFF chunk; libsndfile finds no sample where a streaming writer left a size of 0, and
refuses CAF without a length; neither reports a file that ends early. So this module finds the samples, and libsndfile
gets only them.

Sources: WAV and RIFX http://soundfile.sapp.org/doc/WaveFormat/, RF64 https://tech.ebu.ch/docs/tech/tech3306v1_1.pdf,
W64 https://www.ambisonia.com/Members/mleese/sony_wave64.pdf, AIFF-C
https://www.mmsp.ece.mcgill.ca/Documents/AudioFormats/AIFF/AIFF.html, AU
https://pubs.opengroup.org/external/auformat.html, CAF
https://developer.apple.com/library/archive/documentation/MusicAudio/Reference/CAFSpec.
"""

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from mert_foundry.pipeline.audio.byte_ranges import Seekable, read_at
from mert_foundry.pipeline.audio.decode_error import DecodeError

W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
EXTENSIBLE_TAIL = 0, 0x10, bytes.fromhex("800000aa00389b71")  # of the subformat GUIDs that begin with a WAV format tag
WIDTHS = {"int": (1, 2, 3, 4), "float": (4, 8), "alaw": (1,), "mulaw": (1,)}  # bytes of a sample that libsndfile reads
WAV_ENCODINGS = {1: "int", 3: "float", 6: "alaw", 7: "mulaw"}
AIFC_ENCODINGS = {  # compression type: encoding, byte order, bytes of a sample where the type says so
    b"NONE": ("int", ">", 0), b"twos": ("int", ">", 0), b"sowt": ("int", "<", 0), b"in16": ("int", ">", 2),
    b"in24": ("int", ">", 3), b"in32": ("int", ">", 4), b"42ni": ("int", "<", 3), b"23ni": ("int", "<", 4),
    b"fl32": ("float", ">", 4), b"FL32": ("float", ">", 4), b"fl64": ("float", ">", 8), b"FL64": ("float", ">", 8),
    b"raw ": ("int", ">", 1), b"alaw": ("alaw", ">", 1), b"ALAW": ("alaw", ">", 1), b"ulaw": ("mulaw", ">", 1),
    b"ULAW": ("mulaw", ">", 1),
}  # fmt: skip
AU_ENCODINGS = {
    1: ("mulaw", 1), 2: ("int", 1), 3: ("int", 2), 4: ("int", 3), 5: ("int", 4), 6: ("float", 4), 7: ("float", 8),
    27: ("alaw", 1),
}  # fmt: skip
# Sizes that a streaming writer leaves when it does not know them: 0, or a number close to a multiple of 2^31, as
# 0x7FFFFFFF (LAME), 0x7FFFF000 (SoX), 0x80000000 (arecord) and 0xFFFFFFFF (ffmpeg) less the size of a header.
PLACEHOLDER_STEP, PLACEHOLDER_WIDTH = 1 << 31, 1 << 16
SOX_PLACEHOLDER = 0x7F000000  # of AIFF
# Most unknown bytes after the samples that are taken for junk, where no outer size tells whether they are uncounted
# samples.
MOST_JUNK_BYTES, MOST_JUNK_SHARE = 1 << 16, 0.1


@dataclass(frozen=True)
class PcmForm:
    """How interleaved samples are stored.

    `encoding`: int, float, alaw or mulaw. `byte_order`: < or >. `is_unsigned`: of one-byte integers, in WAV and AIFF-C
    `raw `.

    Raises DecodeError for samples that libsndfile does not know.
    """

    sample_rate: int
    channels: int
    encoding: str
    byte_order: str
    sample_bytes: int
    is_unsigned: bool = False

    def __post_init__(self) -> None:
        if self.sample_rate <= 0 or self.channels <= 0:
            raise DecodeError("unreadable", f"header claims {self.sample_rate} Hz and {self.channels} channels")
        if self.sample_bytes not in WIDTHS[self.encoding]:
            raise DecodeError(
                "unreadable", f"samples of {8 * self.sample_bytes} bits ({self.encoding}) are not read here"
            )

    @property
    def block(self) -> int:
        """Bytes of one sample of all channels."""
        return self.channels * self.sample_bytes

    @property
    def codec(self) -> str:
        """The encoding by ffmpeg's name, for example pcm_s16le."""
        if self.encoding in ("alaw", "mulaw"):
            return f"pcm_{self.encoding}"
        kind = "f" if self.encoding == "float" else "u" if self.is_unsigned else "s"
        order = "" if self.sample_bytes == 1 else {"<": "le", ">": "be"}[self.byte_order]
        return f"pcm_{kind}{8 * self.sample_bytes}{order}"


@dataclass(frozen=True)
class PcmLayout:
    """Where the samples lie: bytes [start, stop), a whole number of samples of all channels.

    `claimed`: samples per channel the header states, None where a streaming writer left its size open.
    """

    container: str
    form: PcmForm
    start: int
    stop: int
    claimed: int | None


@dataclass(frozen=True)
class Chunk:
    name: bytes
    start: int  # of its content
    size: int

    @property
    def stop(self) -> int:
        return self.start + self.size


def read_pcm_layout(file: Seekable) -> PcmLayout | None:
    """The layout of a file of plain PCM; None when it is another kind of file, or its samples are compressed.

    Raises:
        DecodeError: `unreadable` when the header contradicts itself or has no samples; `truncated` when the samples end
            before they should; `length_mismatch` when there are more than the header claims.
    """
    length = file.seek(0, os.SEEK_END)
    head = read_at(file, 0, 40)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return _read_wav(file, length, head)
    if head[:16] == W64_RIFF and head[24:28] == b"wave":
        return _read_w64(file, length, head)
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _read_aiff(file, length, head)
    if head[:4] in (b".snd", b"dns."):
        return _read_au(file, length, head)
    if head[:4] == b"caff":
        return _read_caf(file, length)
    if head[:8] == b"NIST_1A\n":
        return _read_sphere(file, length)
    return None


def _read_wav(file: Seekable, length: int, head: bytes) -> PcmLayout | None:
    order = ">" if head[:4] == b"RIFX" else "<"
    is_large = head[:4] in (b"RF64", b"BW64")
    outer = struct.unpack(f"{order}I", head[4:8])[0]
    form: PcmForm | None = None
    large_outer, large = 0, None
    for chunk in chunks(file, 12, length, 4, f"{order}I", alignment=2):
        if chunk.name == b"ds64" and is_large:
            large_outer, large = struct.unpack("<QQ", _read_exactly(file, chunk.start, 16))
        elif chunk.name == b"fmt ":
            form = _wav_form(read_at(file, chunk.start, min(chunk.size, 40)), order)
            if form is None:
                return None
        elif chunk.name == b"data":
            size = large if large is not None and chunk.size == 0xFFFFFFFF else chunk.size
            outer = large_outer if large is not None and outer == 0xFFFFFFFF else outer
            outer_stop = None if is_placeholder(outer) else 8 + outer
            samples = Chunk(chunk.name, chunk.start, size)
            return _laid_out(
                file, length, "wav", _needed(form, "fmt"), samples, 2, outer_stop, bits=64 if large is not None else 32
            )
    raise DecodeError("unreadable", f"a wav header without a data chunk in {length} bytes")


def _read_w64(file: Seekable, length: int, head: bytes) -> PcmLayout | None:
    outer = struct.unpack("<Q", head[16:24])[0]
    form = None
    for chunk in chunks(file, 40, length, 16, "<Q", alignment=8, own_head=24):
        if chunk.name[:4] == b"fmt ":
            form = _wav_form(read_at(file, chunk.start, min(chunk.size, 40)), "<")
            if form is None:
                return None
        elif chunk.name[:4] == b"data":
            outer_stop = None if is_placeholder(outer, 64) else outer
            return _laid_out(file, length, "w64", _needed(form, "fmt"), chunk, 8, outer_stop, bits=64)
    raise DecodeError("unreadable", f"a w64 header without a data chunk in {length} bytes")


def _read_aiff(file: Seekable, length: int, head: bytes) -> PcmLayout | None:
    outer = struct.unpack(">I", head[4:8])[0]
    form: PcmForm | None = None
    samples: Chunk | None = None
    stated = 0
    for chunk in chunks(file, 12, length, 4, ">I", alignment=2):
        if chunk.name == b"COMM":
            content = read_at(file, chunk.start, min(chunk.size, 22))
            stated, form = _aiff_form(content, is_aifc=head[8:12] == b"AIFC")
            if form is None:
                return None
        elif chunk.name == b"SSND":
            samples = chunk
        if form and samples:
            break
    if samples is None:
        raise DecodeError("unreadable", f"an aiff header without an SSND chunk in {length} bytes")
    form = _needed(form, "COMM")
    offset = struct.unpack(">I", _read_exactly(file, samples.start, 4))[0]
    size = max(0, samples.size - 8 - offset)
    if is_placeholder(samples.size):
        size = 0 if is_placeholder(stated) else stated * form.block
    elif not is_placeholder(stated):
        if not stated * form.block <= size <= stated * form.block + 1:  # some count the padding
            raise DecodeError("length_mismatch", f"COMM states {stated} samples, SSND holds {size // form.block}")
        size = stated * form.block
    outer_stop = None if is_placeholder(outer) else 8 + outer
    return _laid_out(file, length, "aiff", form, Chunk(samples.name, samples.start + 8 + offset, size), 2, outer_stop)


def _aiff_form(content: bytes, is_aifc: bool) -> tuple[int, PcmForm | None]:
    """Samples per channel and form that a COMM chunk states; None for the form when the samples are compressed."""
    if len(content) < (22 if is_aifc else 18):
        raise DecodeError("unreadable", f"a COMM chunk of {len(content)} bytes")
    channels, stated, bits = struct.unpack(">hIh", content[:8])
    kind = content[18:22] if is_aifc else b"NONE"
    if kind not in AIFC_ENCODINGS:
        return stated, None
    encoding, order, width = AIFC_ENCODINGS[kind]
    form = PcmForm(
        _extended(content[8:18]), channels, encoding, order, width or -(-bits // 8), is_unsigned=kind == b"raw "
    )
    return stated, form


def _read_au(file: Seekable, length: int, head: bytes) -> PcmLayout | None:
    order = ">" if head[:4] == b".snd" else "<"
    start, size, code, rate, channels = struct.unpack(f"{order}5I", head[4:24].ljust(20, b"\0"))
    if code not in AU_ENCODINGS:
        return None
    encoding, width = AU_ENCODINGS[code]
    if start < 24:
        raise DecodeError("unreadable", f"an au header of {start} bytes, 24 is the least")
    return _laid_out(
        file, length, "au", PcmForm(rate, channels, encoding, order, width), Chunk(b"data", start, size), 1, None
    )


def _read_caf(file: Seekable, length: int) -> PcmLayout | None:
    form = None
    for chunk in chunks(file, 8, length, 4, ">Q", alignment=1):
        if chunk.name == b"desc":
            rate, kind, flags, packet, _, channels, bits = struct.unpack(">d4s5I", _read_exactly(file, chunk.start, 32))
            encodings = {b"lpcm": "float" if flags & 1 else "int", b"alaw": "alaw", b"ulaw": "mulaw"}
            if kind not in encodings:
                return None
            if not 0 < rate < 1 << 31 or rate != int(rate):
                raise DecodeError("unreadable", f"header claims {rate} Hz")
            width = -(-bits // 8) if kind == b"lpcm" else 1
            if packet != channels * width:
                raise DecodeError("unreadable", f"{packet} bytes for {channels} channels of {bits} bits")
            form = PcmForm(int(rate), channels, encodings[kind], "<" if flags & 2 and kind == b"lpcm" else ">", width)
        elif chunk.name == b"data":
            is_open = chunk.size == (1 << 64) - 1
            samples = Chunk(
                chunk.name, chunk.start + 4, 0 if is_open else chunk.size - 4
            )  # an edit count stands before them
            return _laid_out(file, length, "caf", _needed(form, "desc"), samples, 1, None, bits=64)
    raise DecodeError("unreadable", f"a caf header without a data chunk in {length} bytes")


def _read_sphere(file: Seekable, length: int) -> PcmLayout | None:
    """NIST SPHERE: a text of `name -type value` lines, padded to the number of bytes that its second line states."""
    match = re.match(rb"NIST_1A\s+(\d{1,9})\s", read_at(file, 0, 32))
    if not match:
        raise DecodeError("unreadable", "the SPHERE header does not state its size")
    start = int(match[1])
    fields = dict(
        re.findall(r"^(\w+) -\w+ (\S+)", read_at(file, 0, min(start, 1 << 16)).decode("latin-1"), re.MULTILINE)
    )
    coding = fields.get("sample_coding", "pcm")
    if coding not in ("pcm", "ulaw", "alaw"):
        return None
    try:
        rate, channels, width, count = (
            int(fields[name]) for name in ("sample_rate", "channel_count", "sample_n_bytes", "sample_count")
        )
    except KeyError as error:
        raise DecodeError("unreadable", f"the SPHERE header of {start} bytes lacks {error}") from error
    except ValueError as error:
        raise DecodeError("unreadable", f"the SPHERE header of {start} bytes: {error}") from error
    order = ">" if fields.get("sample_byte_format", "01").startswith("1") else "<"
    encoding = {"pcm": "int", "ulaw": "mulaw", "alaw": "alaw"}[coding]
    form = PcmForm(rate, channels, encoding, order, width)
    return _laid_out(file, length, "nistsphere", form, Chunk(b"data", start, count * form.block), 1, None)


def _wav_form(content: bytes, order: str) -> PcmForm | None:
    """What a fmt chunk says; None when the samples are compressed."""
    if len(content) < 16:
        raise DecodeError("unreadable", f"a fmt chunk of {len(content)} bytes")
    tag, channels, rate, _, block, bits = struct.unpack(f"{order}HHIIHH", content[:16])
    if tag == 0xFFFE:
        guids = [
            struct.unpack(f"{each}IHH8s", content[24:40].ljust(16, b"\0")) for each in (order, "<")
        ]  # SoX has it little-endian
        tag = next((tag for tag, *tail in guids if tuple(tail) == EXTENSIBLE_TAIL), 0)
    if tag not in WAV_ENCODINGS:
        return None
    width = block // channels if channels else 0
    if not channels or block % channels or width != -(-bits // 8):
        raise DecodeError(
            "unreadable", f"a fmt chunk of {channels} channels, {bits} bits and {block} bytes for all of them"
        )
    return PcmForm(rate, channels, WAV_ENCODINGS[tag], order, width, is_unsigned=width == 1 and tag == 1)


def _laid_out(
    file: Seekable,
    length: int,
    container: str,
    form: PcmForm,
    chunk: Chunk,
    alignment: int,
    outer_stop: int | None,
    bits: int = 32,
) -> PcmLayout:
    """The samples of a chunk, when its size, the outer size and the file's length agree.

    Args:
        outer_stop: where the container says it ends, bytes; None when it does not.
        bits: width of this container's size fields, on which the placeholders depend.
    """
    held = max(0, length - chunk.start)
    if is_placeholder(chunk.size, bits) and (chunk.size > held or chunk.size == 0):
        if held % form.block:
            raise DecodeError(
                "truncated",
                f"the size was left open, and {held} bytes are not a whole number of samples of {form.block} bytes",
            )
        return PcmLayout(container, form, chunk.start, length, None)
    claimed = chunk.size // form.block
    if chunk.size > held:
        raise DecodeError("truncated", f"header claims {claimed} samples, the file holds {held // form.block}")
    if _has_uncounted(file, length, chunk, alignment, outer_stop):
        raise DecodeError("length_mismatch", f"header claims {claimed} samples, the file holds {held // form.block}")
    return PcmLayout(container, form, chunk.start, chunk.start + claimed * form.block, claimed)


def _has_uncounted(file: Seekable, length: int, chunk: Chunk, alignment: int, outer_stop: int | None) -> bool:
    """Whether the bytes after the samples must be samples that the header does not count."""
    stop = chunk.stop + -chunk.size % alignment
    after = length - stop
    if outer_stop in (chunk.stop, stop):
        # Two sizes agree, so the rest is not part of this container, unless both sizes have lost their upper bits.
        return after >= PLACEHOLDER_STEP
    most = min(MOST_JUNK_BYTES, MOST_JUNK_SHARE * chunk.size)
    if outer_stop is not None and outer_stop > stop:
        after, most = min(after, outer_stop - stop), 4
    return after > most and not _may_be_chunk(read_at(file, stop, 4))


def chunks(
    file: Seekable, offset: int, length: int, name_bytes: int, size_form: str, alignment: int, own_head: int = 0
) -> Iterator[Chunk]:
    """The chunks from `offset` on, as far as their sizes lead; `own_head` bytes of a size are the chunk's own head."""
    head_bytes = name_bytes + struct.calcsize(size_form)
    while offset + head_bytes <= length:
        head = read_at(file, offset, head_bytes)
        if not head.strip(b"\0"):  # zeros: space was allocated and never written
            return
        size = max(0, struct.unpack(size_form, head[name_bytes:])[0] - own_head)
        yield Chunk(head[:name_bytes], offset + head_bytes, size)
        offset += head_bytes + size + -size % alignment


def is_placeholder(size: int, bits: int = 32) -> bool:
    """Whether a size field of so many bits holds a placeholder of a streaming writer."""
    if bits == 64 and size >= (1 << 63) - PLACEHOLDER_WIDTH:
        return True
    if abs(size - SOX_PLACEHOLDER) <= PLACEHOLDER_WIDTH:
        return True
    is_near = (size + PLACEHOLDER_WIDTH) % PLACEHOLDER_STEP <= 2 * PLACEHOLDER_WIDTH
    return size == 0 or size >= PLACEHOLDER_STEP - PLACEHOLDER_WIDTH and is_near


def _may_be_chunk(name: bytes) -> bool:
    """Whether these bytes can be the name of a chunk, or padding."""
    return len(name) < 4 or re.fullmatch(rb"[ -~]{3,4}.?", name, re.DOTALL) is not None or not name.strip(b"\0")


def _needed(form: PcmForm | None, name: str) -> PcmForm:
    if form is None:
        raise DecodeError("unreadable", f"no {name} chunk stands before the samples")
    return form


def _extended(digits: bytes) -> int:
    """An 80-bit IEEE float as a whole number of Hz. Raises DecodeError when it is not a whole number."""
    exponent, mantissa = struct.unpack(">HQ", digits)
    shift = 63 - (exponent - 16383)
    if not 0 <= shift <= 63 or mantissa & ((1 << shift) - 1):
        raise DecodeError("unreadable", f"header claims a rate of {mantissa} / 2^{shift} Hz")
    return mantissa >> shift


def _read_exactly(file: Seekable, offset: int, count: int) -> bytes:
    data = read_at(file, offset, count)
    if len(data) < count:
        raise DecodeError("truncated", f"{offset + len(data)} bytes, the header goes on to {offset + count}")
    return data
