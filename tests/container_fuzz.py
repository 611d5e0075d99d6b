"""Audio files of every container with one header field at an extreme, and what other readers make of them.

Every base file is synthesised here, its fields are found by walking its chunks, pages, boxes or frames, and a variant
is a base file with one field overwritten (its checksum made right again or not), or with bytes added, put between
chunks, or cut. The same variants come out on every machine; only the coded audio in them may differ in its last bits.
"""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import soundfile
from audio_files import noise, tone

from mert_foundry.pipeline.audio.decode import AudioDigest, check_length, open_audio
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.sound_file import PcmFile, SoundFile

SEED = 20_261_127
# Base files by name: extension; container, subtype and byte order of libsndfile, or container, encoder and options of
# ffmpeg.
BY_SOUNDFILE = """
wav_s16 wav WAV PCM_16 FILE
wav_s24 wav WAV PCM_24 FILE
wav_u8 wav WAV PCM_U8 FILE
wav_f32 wav WAV FLOAT FILE
wavex_s16 wav WAVEX PCM_16 FILE
rf64_s16 wav RF64 PCM_16 FILE
rifx_s16 wav WAV PCM_16 BIG
w64_s16 w64 W64 PCM_16 FILE
aiff_s16 aiff AIFF PCM_16 FILE
aifc_sowt aiff AIFF PCM_16 LITTLE
aifc_fl32 aiff AIFF FLOAT FILE
au_s16 au AU PCM_16 FILE
caf_s16 caf CAF PCM_16 FILE
caf_alac caf CAF ALAC_16 FILE
flac flac FLAC PCM_16 FILE
ogg_vorbis ogg OGG VORBIS FILE
ogg_opus opus OGG OPUS FILE
mp3_lame mp3 MP3 MPEG_LAYER_III FILE
"""
BY_AV = """
caf_alac_open caf caf alac
ogg_flac oga ogg flac
mp4_aac m4a ipod aac
mp4_alac m4a ipod alac
mp4_fragments mp4 mp4 aac movflags=frag_keyframe+empty_moov
mp3_lavf mp3 mp3 libmp3lame
mp3_bare mp3 mp3 libmp3lame write_xing=0 id3v2_version=0
wavpack wv wv wavpack
tta tta tta tta
"""
LIBRARIES = ["ffmpeg", "libsndfile"]
# How far readers may differ, by the encoder; lossless ones not at all.
ROUNDINGS = {"VORBIS": "vorbis", "OPUS": "lossy", "MPEG_LAYER_III": "lossy", "aac": "lossy", "libmp3lame": "lossy"}
FORMATS = {"flac": "s16", "alac": "s16p", "wavpack": "s16p", "tta": "s16"}  # of PyAV's encoders; some begin with 8 bits
TOLERANCE = 0.2  # seconds, as of the manifest
# Fields, in order: name and bytes (or bits); "-" stands for what is not varied.
FMT = "tag:2 channels:2 rate:4 byte_rate:4 block:2 bits:2 extra:2 valid_bits:2 mask:4 format:4 guid:12"
ALAC_COOKIE = "frame:4 compatible:1 depth:1 pb:1 mb:1 kb:1 channels:1 max_run:2 max_bytes:4 bit_rate:4 rate:4"
RIFF_CHUNKS = {"fmt ": FMT, "fact": "samples:4", "ds64": "riff:8 data:8 samples:8 table:4", "PEAK": "version:4 time:4"}
AIFF_CHUNKS = {
    "COMM": "channels:2 samples:4 bits:2 exponent:2 mantissa:8 compression:4 name:1", "SSND": "offset:4 block:4",
    "FVER": "time:4",
}  # fmt: skip
CAF_CHUNKS = {
    "desc": "rate:8 format:4 flags:4 packet_bytes:4 packet_samples:4 channels:4 bits:4", "kuki": ALAC_COOKIE,
    "data": "edits:4",
    "pakt": "packets:8 valid:8 priming:4 remainder:4 first:2", "chan": "tag:4 bitmap:4 descriptions:4",
}  # fmt: skip
FULL = "version:1 flags:3 "  # of a box
MP4_BOXES = {
    "ftyp": "brand:4 minor:4", "mvhd": FULL + "created:4 modified:4 timescale:4 duration:4 rate:4 volume:2",
    "tkhd": FULL + "created:4 modified:4 track:4 -:4 duration:4 -:8 layer:2 group:2 volume:2",
    "mdhd": FULL + "created:4 modified:4 timescale:4 duration:4 language:2", "hdlr": FULL + "-:4 handler:4",
    "elst": FULL + "entries:4 duration:4 media_time:4 rate:4", "dref": FULL + "entries:4", "url ": FULL,
    "smhd": FULL + "balance:2", "stsd": FULL + "entries:4", "stts": FULL + "entries:4 count:4 delta:4 count_2:4"
    " delta_2:4",
    "stsc": FULL + "entries:4 first_chunk:4 samples:4 description:4", "stsz": FULL + "each:4 count:4 first:4 second:4",
    "stco": FULL + "entries:4 offset:4", "sgpd": FULL + "grouping:4 length:4 entries:4 distance:2",
    "sbgp": FULL + "grouping:4 entries:4 count:4 group:4", "trex": FULL + "track:4 description:4 duration:4 each:4"
    " flags_2:4",
    "mfhd": FULL + "sequence:4", "tfhd": FULL + "track:4 first:4 second:4 third:4", "tfdt": FULL + "time:8",
    "trun": FULL + "count:4 offset:4 first:4 second:4", "mp4a": "-:6 reference:2 version:2 revision:2 vendor:4"
    " channels:2 bits:2 compression:2 packet:2 rate:4", "cookie": FULL + ALAC_COOKIE,
    "esds": FULL + "tag:1 length:4 id:2 flags:1 tag_2:1 length_2:4 object:1 stream:1 buffer:3 most:4 mean:4 "
    "tag_3:1 length_3:4 config:2",
}  # fmt: skip
MP4_BOXES["alac"] = MP4_BOXES["mp4a"]
# Boxes in a box, and the bytes that stand before them.
MP4_PARENTS = dict.fromkeys(["moov", "trak", "edts", "mdia", "minf", "dinf", "stbl", "udta", "mvex", "moof", "traf"], 0)
MP4_PARENTS |= {"meta": 4, "stsd": 8, "dref": 8, "mp4a": 28, "alac": 28}
OGG_PAGE = "capture:4 version:1 flags:1 granule:8 serial:4 number:4 checksum:4 segments:1 lacing:1"
STREAM_INFO = "min_block:2 max_block:2 min_frame:3 max_frame:3"
STREAM_INFO_BITS = "rate:20 channels:3 bits:5 samples:36"
FLAC_FRAME_BITS = "sync:14 reserved:1 blocking:1 block:4 rate:4 channels:4 bits:3 reserved_2:1 number:8"
MPEG_BITS = (
    "sync:11 version:2 layer:2 protection:1 bit_rate:4 rate:2 padding:1 private:1 mode:2 extension:2 copyright:1"
    " original:1 emphasis:2"
)
XING = (
    "id:4 flags:4 frames:4 bytes:4 -:100 quality:4 encoder:4 -:5 vbr:1 lowpass:1 peak:4 gain:2 gain_2:2 method:1"
    " bit_rate:1"
)
XING_TAIL = "misc:1 mp3gain:1 preset:2 length:4 music_crc:2 tag_crc:2"
WAVPACK = "id:4 size:4 version:2 index_high:1 samples_high:1 samples:4 index:4 block:4"
WAVPACK_FLAGS = (
    "dsd:1 false_stereo:1 iir:1 -:2 rate:4 max:5 shift:5 last:1 first:1 balance:1 hybrid_rate:1 int32:1 float:1"
    " shape:1 cross:1 joint:1 hybrid:1 mono:1 bytes:2"
)


class Field(NamedTuple):
    """Bits of a file: `bits` of them, from `shift` on, in the integer of `width` bytes at `start`."""

    name: str
    start: int
    width: int
    order: str
    shift: int
    bits: int

    def value(self, content: bytes) -> int:
        return int.from_bytes(content[self.start : self.start + self.width], self.order) >> self.shift & self.mask

    def overwritten(self, content: bytes, value: int) -> bytes:
        old = int.from_bytes(content[self.start : self.start + self.width], self.order)
        new = old & ~(self.mask << self.shift) | value << self.shift
        return content[: self.start] + new.to_bytes(self.width, self.order) + content[self.start + self.width :]

    @property
    def mask(self) -> int:
        return (1 << self.bits) - 1


@dataclass
class Base:
    """A whole file.

    `rounding`: how far two readers of it may differ: lossless, vorbis or lossy. `source`: the samples that were put in,
    float32 [channels, T], where the format is lossless and none but ffmpeg reads it. `seams`: where a chunk, page, box
    or frame begins. `chunk`: a chunk of junk as the container has them. `repair`: makes the checksums of a changed file
    right again.
    """

    name: str
    extension: str
    content: bytes
    rounding: str = "lossless"
    source: np.ndarray | None = None
    fields: list[Field] = field(default_factory=list)
    seams: list[int] = field(default_factory=list)
    chunk: bytes = b""
    repair: Callable[[bytes], bytes] | None = None

    def add(self, name: str, start: int, form: str, order: str, stop: int | None = None) -> int:
        """Fields of whole bytes, one behind the other as far as `stop`; the place behind them."""
        for part in form.split():
            label, width = part.split(":")
            if stop is not None and start + int(width) > stop:
                break
            if label != "-":
                self.fields.append(Field(f"{name}.{label}", start, int(width), order, 0, 8 * int(width)))
            start += int(width)
        return start

    def add_bits(self, name: str, start: int, form: str, order: str = "big") -> int:
        """Fields of bits, the highest first, that fill whole bytes together; the place behind them."""
        parts = [(label, int(bits)) for label, bits in (part.split(":") for part in form.split())]
        left = sum(bits for _, bits in parts)
        width = left // 8
        for label, bits in parts:
            left -= bits
            if label != "-":
                self.fields.append(Field(f"{name}.{label}", start, width, order, left, bits))
        return start + width


class Variant(NamedTuple):
    """A base file, changed. `repeats`: how many times the base file's samples are in it."""

    base: str
    change: str
    content: bytes
    repeats: int = 1

    def __str__(self) -> str:
        return f"{self.base} with {self.change}"


def write_base(base: Base, folder: Path) -> tuple[Path, Path]:
    """Write the file, and one whose samples are those in it: the same file, or the source as WAV."""
    path = folder / f"{base.name}.{base.extension}"
    path.write_bytes(base.content)
    if base.source is None:
        return path, path
    source = folder / f"{base.name} source.wav"
    soundfile.write(source, base.source.T, 24_000, "FLOAT")
    return path, source


def make_bases() -> dict[str, Base]:
    """A small file of every container, with its fields."""
    bases = []
    for line in BY_SOUNDFILE.strip().splitlines():
        name, extension, container, subtype, order = line.split()
        bases.append(
            Base(name, extension, _by_soundfile(container, subtype, order), ROUNDINGS.get(subtype, "lossless"))
        )
    for line in BY_AV.strip().splitlines():
        name, extension, container, codec, *options = line.split()
        content, source = _by_av(container, codec, dict(option.split("=") for option in options))
        rounding = ROUNDINGS.get(codec, "lossless")
        bases.append(Base(name, extension, content, rounding, source if rounding == "lossless" else None))
    find = {
        "au": _find_au, "flac": _find_flac, "ogg": _find_ogg, "mp3": _find_mpeg, "mp4": _find_boxes,
        "wavpack": _find_wavpack,
        "tta": _find_tta,
    }  # fmt: skip
    for base in bases:
        find.get(base.name.split("_")[0], _find_chunks)(base)
    return {base.name: base for base in bases}


def header_variants(bases: dict[str, Base], number: int | None) -> list[Variant]:
    """Variants of one field each, the same share of every base file; all that there are when `number` is None."""
    dice = random.Random(SEED)
    every = {name: list(_with_extremes(base)) for name, base in bases.items()}
    if number is None:
        return [variant for variants in every.values() for variant in variants]
    for variants in every.values():
        dice.shuffle(variants)
    in_turn = [variant for turn in zip_longest(*every.values()) for variant in turn if variant is not None]
    return in_turn[:number]


def _with_extremes(base: Base) -> Iterator[Variant]:
    for place in base.fields:
        old, top = place.value(base.content), place.mask
        extremes = {
            "0": 0, "1": 1, "all ones": top, "the high bit": top ^ top >> 1, "all but the high bit": top >> 1,
            "less one": old - 1,
            "and one": old + 1, "twice": 2 * old, "half": old // 2,
        }  # fmt: skip
        seen = {old}
        for name, value in extremes.items():
            if (value := value & top) in seen:
                continue
            seen.add(value)
            content = place.overwritten(base.content, value)
            change = f"{place.name}={value:#x} ({name}, was {old:#x})"
            yield Variant(base.name, change, content)
            if base.repair and (repaired := base.repair(content)) != content:
                yield Variant(base.name, f"{change}, checksum right", repaired)


def structure_variants(bases: dict[str, Base]) -> list[Variant]:
    """Junk behind and between, cuts, and a file behind itself."""
    dice = random.Random(SEED)
    made = []
    for base in bases.values():
        whole, junk = base.content, dice.randbytes(300)
        made += [
            Variant(base.name, "300 random bytes behind", whole + junk),
            Variant(base.name, "300 zeros behind", whole + bytes(300)),
            Variant(base.name, "text behind", whole + b"made by hand\n" * 30),
            Variant(base.name, "itself behind", whole + whole, 2),
        ]
        for seam in dice.sample(base.seams, min(3, len(base.seams))):
            made.append(Variant(base.name, f"64 random bytes at {seam}", whole[:seam] + junk[:64] + whole[seam:]))
            if base.chunk:
                made.append(Variant(base.name, f"a chunk of junk at {seam}", whole[:seam] + base.chunk + whole[seam:]))
        for kept in (len(whole) - 1, len(whole) * 9 // 10, len(whole) // 2, dice.randrange(4, 100)):
            made.append(Variant(base.name, f"only its first {kept} bytes", whole[:kept]))
    return made


# What others make of a file.


class Reading(NamedTuple):
    sample_rate: int
    samples: np.ndarray  # float32 [channels, T]


class Outcome(NamedTuple):
    """What the project makes of a file.

    `verdict`: accepted, refused or fault, an exception that is no DecodeError. `library`: the one whose own parsing of
    the file gave the samples; empty when two had a part in it.
    """

    verdict: str
    detail: str
    reason: str = ""
    format: str = ""
    library: str = ""


def try_file(path: Path) -> Outcome:
    """Decode a file through the project's own door."""
    try:
        reading, codec, library = _read_ours(path)
    except DecodeError as error:
        return Outcome("refused", error.detail, error.reason)
    except Exception as error:
        return Outcome("fault", f"{type(error).__name__}: {error}")
    return Outcome("accepted", _describe(reading), format=codec, library=library)


def agrees(path: Path, reader: str, base: Path, rounding: str, repeats: int = 1) -> bool:
    """Whether a reader (a library, or "base": of another file) gives the samples that the project does."""
    ours, _, _ = _read_ours(path)
    others = [_read_base(base, repeat) for repeat in {1, repeats}] if reader == "base" else [_read_with(reader, path)]
    return any(other is not None and _are_close(ours, other, rounding) for other in others)


def reads(path: Path, reader: str, base: Path, rounding: str) -> bool:
    """Whether a library reads a file that holds the samples of another one."""
    reading = _read_with(reader, path)
    return reading is not None and _are_close(reading, _read_base(base, 1), rounding)


def describe_reading(reader: str, path: Path) -> str:
    """What a reader makes of a file, in words."""
    reading = _read_with(reader, path)
    return "nothing" if reading is None else _describe(reading)


def _describe(reading: Reading) -> str:
    rate, samples = reading
    return f"{samples.shape[1]} samples x {len(samples)} at {rate} Hz, standard deviation {samples.std():.4g}"


@lru_cache(maxsize=1)
def _read_ours(path: Path) -> tuple[Reading, str, str]:
    with open_audio(path) as audio:
        digest = AudioDigest(audio.header)
        blocks = list(digest.follow(audio.blocks()))
    check_length(audio.header, digest.num_samples, TOLERANCE)
    codec = audio.header.format.rpartition("/")[2]
    # Of plain PCM libsndfile saw the bare samples only, so its own parsing of the file is another reader's.
    # And ffmpeg's own decoder of Opus is not libopus.
    library = (
        ""
        if isinstance(audio, PcmFile) or codec == "opus"
        else "libsndfile"
        if isinstance(audio, SoundFile)
        else "ffmpeg"
    )
    return Reading(audio.header.sample_rate, np.concatenate(blocks, axis=1)), codec, library


@lru_cache(maxsize=64)
def _read_base(path: Path, repeats: int) -> Reading:
    reading = _read_with("libsndfile", path) or _read_with("ffmpeg", path)
    return Reading(reading.sample_rate, np.tile(reading.samples, repeats))


def _read_with(reader: str, path: Path) -> Reading | None:
    """None where the reader refuses the file, in whatever way."""
    try:
        return {"libsndfile": _read_with_soundfile, "ffmpeg": _read_with_av}[reader](path)
    except Exception:
        return None


def _read_with_soundfile(path: Path) -> Reading:
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return Reading(rate, samples.T)


def _read_with_av(path: Path) -> Reading:
    converter, rates, parts = av.AudioResampler(format="flt"), set(), []
    with av.open(str(path), metadata_errors="ignore") as container:
        for frame in container.decode(audio=0):
            rates.add(frame.sample_rate)
            parts += [part.to_ndarray().reshape(-1, part.layout.nb_channels) for part in converter.resample(frame)]
    (rate,) = rates
    return Reading(rate, np.concatenate(parts).T)


def _are_close(ours: Reading, other: Reading, rounding: str) -> bool:
    """Whether two readings differ by rounding only."""
    if ours.sample_rate != other.sample_rate or ours.samples.shape != other.samples.shape:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        difference = np.abs(ours.samples - other.samples)
        if rounding == "lossy":
            return bool(np.std(difference) <= 0.01 * np.std(other.samples))
        limit = 1e-5 if rounding == "vorbis" else np.spacing(np.abs(other.samples))
        return bool((difference <= limit).all())


# Base files.


def _sound(rate: int, seconds: float) -> np.ndarray:
    return 0.5 * noise(seconds, rate, channels=2) + tone(440, seconds, rate)[:, None] * np.float32([0.5, 0.25])


def _by_soundfile(container: str, subtype: str, order: str) -> bytes:
    rate, seconds = {"OPUS": (48_000, 0.4), "MPEG_LAYER_III": (44_100, 0.6), "VORBIS": (24_000, 0.6)}.get(
        subtype, (24_000, 0.3)
    )
    file = io.BytesIO()
    # At a constant bit rate libsndfile knows how much there is even where a header does not say; it reads as much as it
    # guesses.
    constant = {"bitrate_mode": "CONSTANT", "compression_level": 0.5} if container == "MP3" else {}
    soundfile.write(file, _sound(rate, seconds), rate, subtype, order, container, **constant)
    content = file.getvalue()
    return _with_serial(content) if container == "OGG" else content


def _by_av(container: str, codec: str, options: dict[str, str]) -> tuple[bytes, np.ndarray]:
    """The file, and the samples in it."""
    rate, seconds = (44_100, 0.6) if codec in ("aac", "libmp3lame") else (24_000, 0.3)
    integers = np.rint(_sound(rate, seconds) * 32768).astype("<i2")
    frame = av.AudioFrame.from_ndarray(integers.reshape(1, -1), format="s16", layout="stereo")
    frame.sample_rate, frame.pts = rate, 0
    memory = io.BytesIO()
    with av.open(memory, "w", format=container, options={"fflags": "+bitexact", **options}) as file:
        stream = file.add_stream(codec, rate=rate, layout="stereo")
        if codec in FORMATS:
            stream.format = FORMATS[codec]
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    return memory.getvalue(), integers.T / np.float32(32768)


# Where the fields are.


def _find_chunks(base: Base) -> None:
    """Fields of WAV, RF64, RIFX, W64, AIFF and CAF."""
    content, order = base.content, "little"
    if content[:4] == b"riff":
        name_bytes, size_bytes, own_head, alignment, forms = 16, 8, 24, 8, RIFF_CHUNKS
        start = base.add("riff", 0, "id:4 guid:12 size:8 form:4 form_guid:12", order)
    elif content[:4] == b"caff":
        name_bytes, size_bytes, own_head, alignment, forms, order = 4, 8, 0, 1, CAF_CHUNKS, "big"
        start = base.add("caff", 0, "id:4 version:2 flags:2", order)
    else:
        name_bytes, size_bytes, own_head, alignment, forms = 4, 4, 0, 2, RIFF_CHUNKS
        if content[:4] in (b"FORM", b"RIFX"):
            forms, order = AIFF_CHUNKS if content[:4] == b"FORM" else RIFF_CHUNKS, "big"
        start = base.add("outer", 0, "id:4 size:4 form:4", order)
    guid = content[44:56] if name_bytes == 16 else b""
    base.chunk = b"junk" + guid + (10 + own_head).to_bytes(size_bytes, order) + b"ten bytes!" + bytes(-10 % alignment)
    while start + name_bytes + size_bytes <= len(content):
        name = content[start : start + 4].decode()
        base.seams.append(start)
        inner = base.add(name, start, f"id:{name_bytes} size:{size_bytes}", order)
        size = int.from_bytes(content[inner - size_bytes : inner], order)
        size = min(size - own_head, len(content) - inner)  # RF64 has all ones
        if content[inner + 4 : inner + 8] == b"frma":
            inner, size = inner + 24, size - 24  # the cookie as an atom of QuickTime, behind another one
        if name == "PEAK":
            base.content = content = content[: inner + 4] + bytes(4) + content[inner + 8 :]  # when it was made
        base.add(name, inner, forms.get(name, ""), order, inner + size)
        start = inner + size + -size % alignment


def _find_au(base: Base) -> None:
    base.seams.append(base.add("au", 0, "id:4 start:4 size:4 code:4 rate:4 channels:4", "big"))


def _find_flac(base: Base) -> None:
    start, is_last = base.add("flac", 0, "id:4", "big"), False
    while not is_last:
        base.seams.append(start)
        is_last, kind = base.content[start] >> 7, base.content[start] & 127
        inner = base.add_bits(f"block {kind}", start, "last:1 type:7 length:24")
        if kind == 0:
            _find_stream_info(base, inner)
        start = inner + int.from_bytes(base.content[start + 1 : inner], "big")
    _, size = _packets(base)[0]
    base.seams += [start, start + size]
    base.add_bits("frame", start, FLAC_FRAME_BITS)
    base.add("frame", start + size - 2, "checksum:2", "big")
    base.repair = lambda content: _with_flac_checksums(content, start, size)


def _find_stream_info(base: Base, start: int) -> None:
    bits = base.add("stream", start, STREAM_INFO, "big")
    base.add("stream", base.add_bits("stream", bits, STREAM_INFO_BITS), "md5:16", "big")


def _with_flac_checksums(content: bytes, start: int, size: int) -> bytes:
    """With the two checksums of the first frame; its header has six bytes here, or as many more as its fields claim."""
    block, rate = content[start + 2] >> 4, content[start + 2] & 15
    head = start + 5 + {6: 1, 7: 2}.get(block, 0) + {12: 1, 13: 2, 14: 2}.get(rate, 0)
    content = content[:head] + bytes([_crc(content[start:head], 8, 0x07)]) + content[head + 1 :]
    stop = start + size - 2
    return content[:stop] + _crc(content[start:stop], 16, 0x8005).to_bytes(2, "big") + content[stop + 2 :]


def _find_mpeg(base: Base) -> None:
    start, content = 0, base.content
    if content[:3] == b"ID3":
        start = base.add("id3", 0, "id:3 major:1 revision:1 flags:1 size:4", "big") + content[9]
        base.seams.append(start)
    base.add_bits("frame 1", start, MPEG_BITS)
    audio = [place for place, _ in _packets(base)]
    tag = next((place for mark in (b"Xing", b"Info") if (place := content.find(mark, start, audio[0])) >= 0), None)
    if tag is not None:
        place = base.add("xing", tag, XING, "big")
        place = base.add_bits("xing", place, "delay:12 padding:12")
        base.add("xing", place, XING_TAIL, "big")
    base.add_bits("frame 2", audio[0] if tag is not None else audio[1], MPEG_BITS)
    base.seams += audio[:4]


def _find_boxes(base: Base) -> None:
    base.chunk = struct.pack(">I4s", 18, b"free") + b"ten bytes!"
    _find_boxes_between(base, "", 0, len(base.content))


def _find_boxes_between(base: Base, parent: str, start: int, stop: int) -> None:
    while start + 8 <= stop:
        size, name = struct.unpack(">I4s", base.content[start : start + 8])
        name = name.decode()
        form = MP4_BOXES["cookie"] if name == parent == "alac" else MP4_BOXES.get(name, "")
        base.seams.append(start)
        inner = base.add(f"{parent}/{name}", start, "size:4 type:4", "big")
        base.add(f"{parent}/{name}", inner, form, "big", start + size)
        if name in MP4_PARENTS and name != parent:
            _find_boxes_between(base, name, inner + MP4_PARENTS[name], start + size)
        start += size


def _find_ogg(base: Base) -> None:
    base.seams = _ogg_pages(base.content)
    for number in (0, 1, len(base.seams) - 1):
        base.add(f"page {number}", base.seams[number], OGG_PAGE, "little")
    packet = base.seams[0] + 28
    if base.content[packet:].startswith(b"OpusHead"):
        base.add("opus", packet, "id:8 version:1 channels:1 skip:2 rate:4 gain:2 family:1", "little")
    elif base.content[packet:].startswith(b"\x7fFLAC"):
        place = base.add("flac", packet, "id:5 major:1 minor:1 packets:2 mark:4 type:1 length:3", "big")
        _find_stream_info(base, place)
    else:
        place = base.add("vorbis", packet, "id:7 version:4 channels:1 rate:4 most:4 nominal:4 least:4", "little")
        base.add("vorbis", base.add_bits("vorbis", place, "long_block:4 short_block:4"), "framing:1", "little")
    base.repair = lambda content: _with_page_checksums(content, base.seams)


def _find_wavpack(base: Base) -> None:
    for number, (start, _) in enumerate(_packets(base)[:2]):
        place = base.add(f"block {number}", start, WAVPACK, "little")
        flags = Base("", "", base.content)
        flags.add_bits(f"block {number}.flags", place, WAVPACK_FLAGS)
        base.fields += [place._replace(order="little") for place in flags.fields]
        base.add(f"block {number}", base.add("", place, "-:4", "little"), "checksum:4 item:1 item_size:1", "little")
        base.seams.append(start)


def _find_tta(base: Base) -> None:
    place = base.add("tta", 0, "id:4 format:2 channels:2 bits:2 rate:4 samples:4 checksum:4 first:4", "little")
    base.seams = [18, 22, place]
    base.repair = lambda content: content[:18] + zlib.crc32(content[:18]).to_bytes(4, "little") + content[22:]


def _packets(base: Base) -> list[tuple[int, int]]:
    """Place and size of each packet of audio."""
    with av.open(io.BytesIO(base.content)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]


# Checksums.


@cache
def _crc_table(bits: int, polynomial: int) -> list[int]:
    table = []
    for byte in range(256):
        value = byte << bits - 8
        for _ in range(8):
            value = (value << 1 ^ polynomial * (value >> bits - 1)) & (1 << bits) - 1
        table.append(value)
    return table


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    """Highest bit first, from zero, not inverted: as Ogg has it (32 bits, 0x04C11DB7) and FLAC (8, 0x07 and 16,
    0x8005).
    """
    table, value, mask = _crc_table(bits, polynomial), 0, (1 << bits) - 1
    for byte in data:
        value = value << 8 & mask ^ table[value >> bits - 8 ^ byte]
    return value


def _ogg_pages(content: bytes) -> list[int]:
    places, start = [], 0
    while start < len(content):
        places.append(start)
        start += _page_bytes(content, start)
    return places


def _page_bytes(content: bytes, start: int) -> int:
    segments = content[start + 26]
    return 27 + segments + sum(content[start + 27 : start + 27 + segments])


def _with_page_checksums(content: bytes, places: list[int]) -> bytes:
    content = bytearray(content)
    for start in places:
        content[start + 22 : start + 26] = bytes(4)
        page = content[start : start + _page_bytes(content, start)]
        content[start + 22 : start + 26] = _crc(page, 32, 0x04C11DB7).to_bytes(4, "little")
    return bytes(content)


def _with_serial(content: bytes) -> bytes:
    """With the same number of the stream on every machine; writers throw dice for it."""
    places, changed = _ogg_pages(content), bytearray(content)
    for start in places:
        changed[start + 14 : start + 18] = b"mert"
    return _with_page_checksums(bytes(changed), places)
