"""One example of a shard: its members, their names, bytes and checks, for writer and reader alike.

An example is one segment of a track. Its members, in the order they stand in the tar:

    {key}.{target}.npy   one per target: codes uint16 [K, F], continuous float16 or uint8 [F, bins]
    {key}.flac           24 kHz mono 16-bit; or {key}.pcm.npy, int16 [T]
    {key}.json           the `SegmentInfo`
    {key}.tokens.npy     tokens of its text, uint16 or uint32 [n], where the set has text
    {key}.txt            its text, UTF-8, where the set has text

with `key` = `{track}-{segment:05d}` and T = 320 F exactly, so audio and every target agree to the
frame.

A set of text alone has no audio member. One token is one frame: a track is a document, its one target `tokens` holds
the codes uint16 [1, F]. Lengths stand on the same grid as those of audio, 320 samples and 1/75 of a second a frame, so
that all that counts frames works alike; for such a set seconds mean nothing else, and nobody is shown them. Names and
layout follow WebDataset (https://github.com/webdataset/webdataset): members of one example are adjacent and share what
stands before the first dot.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal

import numpy as np
import soundfile
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mert_foundry.pipeline.frames import FRAME_RATE, HOP, SAMPLE_RATE
from mert_foundry.pipeline.shards.arrays import decode_array, encode_array
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.shards.text import (
    TOKENS,
    Text,
    TextSpec,
    check_text,
    decode_text,
    encode_text,
    text_suffixes,
)
from mert_foundry.pipeline.storage.documents import parse_model

try:
    from miniaudio import ffi, lib
except ModuleNotFoundError:  # there is no wheel of it for ARM under Linux
    lib = None

AudioMember = Literal["flac", "pcm.npy"]  # None stands for no audio: text alone

KEY_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
SHA256_PATTERN = r"^[0-9a-f]{64}$"
LONGEST_NAME = 100  # bytes of a USTAR name field; a longer name would need a slash to split at
FLAC_LEVEL = 5 / 8  # libsndfile maps [0, 1] to the levels 0 to 8; 5 is the reference encoder's default
RESERVED_NAMES = {"audio", "valid", "key", "row", "flac", "pcm", "json"}  # batch keys and other members
NO_AUDIO = np.zeros(0, np.int16)
RESERVED_BESIDE_TEXT = {TOKENS, f"{TOKENS}_valid"}  # in a set with text


class SegmentInfo(BaseModel):
    """What `{key}.json` holds: which part of which track this example is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    track: str = Field(pattern=KEY_PATTERN, description="Track key of the manifest, or of a copy")
    segment: int = Field(ge=0, le=99_999, description="Number of this segment in its track, from 0")
    segments: int = Field(gt=0, description="Number of segments of the track, those dropped included")
    start_sample: int = Field(ge=0, description="First sample in the track at sample_rate")
    num_samples: int = Field(gt=0, description="Samples, 320 * num_frames")
    num_frames: int = Field(gt=0, description="Target frames, 75 per second")
    audio_sha256: str = Field(
        pattern=SHA256_PATTERN, description="Decoded audio of the source track; of text alone, the document"
    )
    sample_rate: int = Field(description="Hz, always 24000")

    @property
    def key(self) -> str:
        """Example key: the name of its members before the first dot."""
        return f"{self.track}-{self.segment:05d}"

    @model_validator(mode="after")
    def _agree(self) -> "SegmentInfo":
        if self.num_samples != HOP * self.num_frames:
            raise ValueError(f"num_samples {self.num_samples} is not {HOP} * num_frames {self.num_frames}")
        if self.start_sample % HOP:
            raise ValueError(f"start_sample {self.start_sample} is not a multiple of {HOP}")
        if self.segment >= self.segments:
            raise ValueError(f"segment {self.segment} of a track of {self.segments} segments")
        if self.sample_rate != SAMPLE_RATE:
            raise ValueError(f"sample_rate {self.sample_rate} Hz is not {SAMPLE_RATE} Hz")
        return self


@dataclass(frozen=True)
class Example:
    """One segment in memory: `audio` int16 `[T]`, `targets` by name in the shape of their spec, its text if the set has
    any.

    In a set without audio, `audio` has no sample.
    """

    info: SegmentInfo
    audio: np.ndarray
    targets: Mapping[str, np.ndarray]
    text: Text | None = None

    @property
    def key(self) -> str:
        """Example key, `{track}-{segment:05d}`."""
        return self.info.key


def check_specs(specs: Sequence[TargetSpec], text: TextSpec | None = None) -> None:
    """Raise ValueError when the targets of a shard set, with this text or none, are not storable together."""
    names = [spec.name for spec in specs]
    taken = RESERVED_NAMES | (RESERVED_BESIDE_TEXT if text else set())
    for spec in specs:
        if names.count(spec.name) > 1 or spec.name in taken:
            reserved = ", ".join(sorted(taken))
            raise ValueError(f"target {spec.name}: the name is taken ({reserved} are reserved)")
        if spec.frame_rate != FRAME_RATE:
            raise ValueError(f"target {spec.name}: frame rate {spec.frame_rate} Hz, shards hold {FRAME_RATE} Hz")
        dtype = "uint16" if spec.kind == "discrete" else "uint8" if spec.companding else "float16"
        if spec.dtype != dtype:
            how = " with companding" if spec.companding else ""
            raise ValueError(f"target {spec.name}: a {spec.kind} target{how} is {dtype}, not {spec.dtype}")
        if spec.kind == "discrete" and spec.companding:
            raise ValueError(f"target {spec.name}: a discrete target has no companding, it has {spec.companding}")
        if spec.kind == "discrete" and not 1 <= (spec.codebook_size or 0) <= 1 << 16:
            raise ValueError(f"target {spec.name}: codebook size {spec.codebook_size} is not within 1 to 65536")


def member_suffixes(
    specs: Sequence[TargetSpec], audio_member: AudioMember | None, text: TextSpec | None = None
) -> list[str]:
    """Member names without `{key}.`, in the order of the tar."""
    audio = [audio_member] if audio_member else []
    return sorted([f"{spec.name}.npy" for spec in specs] + [*audio, "json", *text_suffixes(text)])


def check_key(key: str, suffixes: Sequence[str]) -> None:
    """Raise ValueError when `key` cannot name members of a tar: letters, digits, `_`, `-`; USTAR length."""
    if not re.fullmatch(KEY_PATTERN, key):
        raise ValueError(f"example key {key!r}: only ASCII letters, digits, _ and - are allowed")
    longest = len(key) + 1 + max(map(len, suffixes))
    if longest > LONGEST_NAME:
        raise ValueError(f"example key {key}: a member name of {longest} bytes, USTAR holds {LONGEST_NAME}")


def check_example(
    example: Example, specs: Sequence[TargetSpec], text: TextSpec | None = None, has_audio: bool = True
) -> None:
    """Raise ValueError naming key, member and both values when an example breaks the format."""
    key, info = example.key, example.info
    num_samples = info.num_samples if has_audio else 0
    if example.audio.dtype != np.int16 or example.audio.shape != (num_samples,):
        raise ValueError(
            f"{key}: audio is {example.audio.dtype} {example.audio.shape}, expected int16 ({num_samples},)"
        )
    if set(example.targets) != {spec.name for spec in specs}:
        raise ValueError(f"{key}: targets {sorted(example.targets)}, expected {sorted(spec.name for spec in specs)}")
    for spec in specs:
        check_target(f"{key}.{spec.name}", example.targets[spec.name], spec, info.num_frames)
    check_text(key, example.text, text)


def check_target(name: str, array: np.ndarray, spec: TargetSpec, num_frames: int) -> None:
    """Raise ValueError when a target has another dtype or shape than its spec, or impossible values."""
    shape = spec.shape(num_frames)
    if array.dtype != np.dtype(spec.dtype) or array.shape != shape:
        raise ValueError(f"{name}: {array.dtype} {array.shape}, expected {spec.dtype} {shape}")
    if spec.kind == "discrete" and spec.codebook_size is not None and int(array.max()) >= spec.codebook_size:
        raise ValueError(f"{name}: code {int(array.max())}, the codebook has {spec.codebook_size} entries")
    if spec.kind == "continuous" and not np.isfinite(array).all():
        raise ValueError(f"{name}: {int((~np.isfinite(array)).sum())} of {array.size} values are not finite")


def encode_example(
    example: Example, specs: Sequence[TargetSpec], audio_member: AudioMember | None, text: TextSpec | None = None
) -> dict[str, bytes]:
    """Member suffix to bytes, in the order of the tar. Raises ValueError as `check_example` does."""
    check_key(example.key, member_suffixes(specs, audio_member, text))
    check_example(example, specs, text, audio_member is not None)
    members = {f"{spec.name}.npy": encode_array(example.targets[spec.name]) for spec in specs}
    if audio_member:
        members[audio_member] = encode_flac(example.audio) if audio_member == "flac" else encode_array(example.audio)
    members["json"] = encode_info(example.info)
    if example.text is not None:
        members |= encode_text(example.text)
    return dict(sorted(members.items()))


def decode_example(
    key: str,
    members: Mapping[str, bytes],
    specs: Sequence[TargetSpec],
    audio_member: AudioMember | None,
    text: TextSpec | None = None,
) -> Example:
    """The example that `encode_example` wrote, checked. Raises ValueError naming key and both values."""
    expected = member_suffixes(specs, audio_member, text)
    if sorted(members) != expected:
        raise ValueError(f"{key}: members {sorted(members)}, expected {expected}")
    info = decode_info(f"{key}.json", members["json"])
    if info.key != key:
        raise ValueError(f"{key}.json: describes {info.key}")
    audio = NO_AUDIO
    if audio_member:
        audio = _decode_audio(f"{key}.{audio_member}", members[audio_member], audio_member, info.num_samples)
    targets = {
        spec.name: decode_array(
            f"{key}.{spec.name}.npy", members[f"{spec.name}.npy"], spec.dtype, spec.shape(info.num_frames)
        )
        for spec in specs
    }
    example = Example(info, audio, targets, decode_text(key, members, text) if text else None)
    check_example(example, specs, text, audio_member is not None)
    return example


def encode_info(info: SegmentInfo) -> bytes:
    """The content of `{key}.json`."""
    return json.dumps(info.model_dump(), sort_keys=True).encode()


def decode_info(name: str, data: bytes) -> SegmentInfo:
    """Parse `{key}.json`. Raises ValueError naming the member."""
    return parse_model(name, data, SegmentInfo)


def _decode_audio(name: str, data: bytes, audio_member: AudioMember, num_samples: int) -> np.ndarray:
    if audio_member == "flac":
        return decode_flac(name, data, num_samples, 0, num_samples)
    return decode_array(name, data, "int16", (num_samples,))


def encode_flac(audio: np.ndarray) -> bytes:
    """int16 `[T]` at 24 kHz to FLAC, 16-bit mono."""
    stream = io.BytesIO()
    soundfile.write(stream, audio, SAMPLE_RATE, "PCM_16", format="FLAC", compression_level=FLAC_LEVEL)
    return stream.getvalue()


def decode_flac(name: str, data: bytes, num_samples: int, start: int, count: int) -> np.ndarray:
    """Samples [start, start + count) of a FLAC member that holds `num_samples` in all, by libsndfile.

    Returns:
        int16 `[count]`. Raises ValueError naming the member and both values.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_flac(name, (file.samplerate, file.channels, file.frames), num_samples)
            file.seek(start)
            audio = file.read(count, dtype="int16")
    except soundfile.SoundFileError as error:
        raise ValueError(f"{name}: cannot be decoded ({error})") from error
    _check_decoded(name, len(audio), start, count)
    return audio


def decode_intact_flac(name: str, data: bytes, num_samples: int, places: Sequence[tuple[int, np.ndarray]]) -> None:
    """What `decode_flac` gives from each sample on, into its array, int16 `[count]`, in half the time, by dr_flac (in
    miniaudio).

    The caller has checked the CRC-32 of `data`: dr_flac passes over a damaged frame without a word and goes on with the
    next, so that the samples would be those of a later time. Without that package libsndfile decodes, to the same bits.
    What several arrays have in common is decoded once, and copied. Raises ValueError as `decode_flac`.
    """
    if lib is None:
        for start, audio in places:
            audio[:] = decode_flac(name, data, num_samples, start, len(audio))
        return
    flac = lib.ma_dr_flac_open_memory(ffi.from_buffer(data), len(data), ffi.NULL)
    if flac == ffi.NULL:
        raise ValueError(f"{name}: cannot be decoded (it does not begin as FLAC does)")
    try:
        _check_flac(name, (flac.sampleRate, flac.channels, flac.totalPCMFrameCount), num_samples)
        _decode_in_order(name, flac, sorted(places, key=itemgetter(0)))
    finally:
        lib.ma_dr_flac_close(flac)


def _decode_in_order(name: str, flac: Any, places: Sequence[tuple[int, np.ndarray]]) -> None:
    """Arrays in the order of their first samples; `position` is the decoder's, where the last but
    longest array ended.
    """
    position, last_start, last = 0, 0, np.empty(0, np.int16)
    for start, audio in places:
        known = min(max(0, position - start), len(audio))
        audio[:known] = last[start - last_start :][:known]
        if known == len(audio):
            continue
        samples = ffi.from_buffer("ma_dr_flac_int16[]", audio[known:], require_writable=True)
        found = start + known == position or bool(lib.ma_dr_flac_seek_to_pcm_frame(flac, start + known))
        decoded = lib.ma_dr_flac_read_pcm_frames_s16(flac, len(audio) - known, samples) if found else 0
        _check_decoded(name, known + decoded, start, len(audio))
        position, last_start, last = start + len(audio), start, audio


def _check_flac(name: str, found: tuple[int, int, int], num_samples: int) -> None:
    if found != (SAMPLE_RATE, 1, num_samples):
        raise ValueError(f"{name}: (Hz, channels, samples) {found}, expected {(SAMPLE_RATE, 1, num_samples)}")


def _check_decoded(name: str, decoded: int, start: int, count: int) -> None:
    if decoded != count:
        raise ValueError(f"{name}: {decoded} samples decoded from sample {start}, expected {count}")
