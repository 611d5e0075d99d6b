"""One example of a shard set by its key: found in the records, read by byte ranges, checked, described, exported."""

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE
from mert_foundry.pipeline.shards.arrays import decode_array
from mert_foundry.pipeline.shards.format import (
    Example,
    SegmentInfo,
    decode_example,
    decode_flac,
    member_suffixes,
)
from mert_foundry.pipeline.shards.index import ShardEntry, ShardIndex, load_listed_record
from mert_foundry.pipeline.shards.members import Span, read_members
from mert_foundry.pipeline.shards.record import ExampleEntry
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.shards.text import TOKENS, TOKENS_MEMBER, TextSpec
from mert_foundry.pipeline.storage import files

FIRST_VALUES = 8
READERS = 8


class StoredExample(NamedTuple):
    """Where an example is stored: its shard and its entry in the shard's record."""

    shard: ShardEntry
    example: ExampleEntry


class MemberSummary(BaseModel):
    """One member of an example."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Member name without the key")
    offset: int = Field(description="Of the data in the tar, bytes")
    bytes: int = Field(description="Size")
    crc32: int = Field(description="CRC-32 of the data")
    dtype: str | None = Field(default=None, description="NumPy dtype of the decoded array; null for json")
    shape: list[int] | None = Field(default=None, description="Shape of the decoded array")
    unit: str | None = Field(default=None, description="What the numbers are")
    minimum: float | None = Field(default=None, description="Smallest value; of a companded target, expanded")
    maximum: float | None = Field(default=None, description="Largest value")
    mean: float | None = Field(default=None, description="Mean")
    distinct: list[int] | None = Field(default=None, description="Different codes of each codebook, if discrete")
    first: list[float] | list[list[float]] | None = Field(
        default=None, description="First values, by codebook or frame"
    )


class ExampleSummary(BaseModel):
    """What `mert inspect SHARD_FOLDER --example KEY --json` prints."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = Field(default="example", description="What this is")
    key: str = Field(description="Example key")
    shard: str = Field(description="File name of the tar")
    seconds: float | None = Field(description="Audio seconds; null of text alone")
    info: SegmentInfo = Field(description="Content of {key}.json")
    text: str | None = Field(
        default=None,
        description="Content of {key}.txt, or of text alone the text of its tokens; null where the set has no text",
    )
    pieces: list[str] | None = Field(default=None, description="What each token of it stands for")
    members: list[MemberSummary] = Field(description="In the order of the tar")


def find_examples(folder: str, shards: Iterable[ShardEntry], keys: Iterable[str]) -> list[StoredExample]:
    """Where the examples `keys` are stored, in that order. Raises ValueError naming the first key that no shard has."""
    shards, wanted = list(shards), list(dict.fromkeys(keys))
    found: dict[str, StoredExample] = {}
    with ThreadPoolExecutor(READERS) as threads:
        records = threads.map(lambda shard: load_listed_record(folder, shard), shards)
        for shard, record in zip(shards, records, strict=True):
            found |= {entry.key: StoredExample(shard, entry) for entry in record.members if entry.key in wanted}
            if len(found) == len(wanted):
                threads.shutdown(cancel_futures=True)  # the records that were not asked for yet stay unread
                break
    for key in wanted:
        if key not in found:
            raise ValueError(
                f"{folder}: no example {key!r} in {len(shards)} shards; --shard NAME lists the keys of one"
            )
    return [found[key] for key in wanted]


def read_example(folder: str, index: ShardIndex, stored: StoredExample) -> tuple[Example, dict[str, bytes]]:
    """The example and its members' bytes, read by ranges and checked against record and format.

    Raises:
        OSError: no tar, or the storage failed.
        ValueError: a short or damaged member; names shard, key, member and both values.
    """
    members = _read_members(folder, stored, member_suffixes(index.targets, index.audio_member, index.text))
    return decode_example(stored.example.key, members, index.targets, index.audio_member, index.text), members


def read_audio(folder: str, index: ShardIndex, stored: StoredExample) -> np.ndarray:
    """The audio of an example of a set that has audio, int16 `[T]`, without its targets. Raises as `read_example`."""
    assert index.audio_member is not None, "of text alone there is none to read"
    data = _read_members(folder, stored, [index.audio_member])[index.audio_member]
    return _decode_audio(f"{stored.example.key}.{index.audio_member}", data, HOP * stored.example.num_frames)


def _read_members(folder: str, stored: StoredExample, suffixes: list[str]) -> dict[str, bytes]:
    """The bytes of some members, read by ranges and checked against the record. Raises as `read_example`."""
    filesystem, path = files.open_filesystem(files.join(folder, stored.shard.url))

    def read(spans: Sequence[Span]) -> list[bytes]:
        starts = [span.offset for span in spans]
        ends = [span.offset + span.size for span in spans]
        return filesystem.cat_ranges([path] * len(spans), starts, ends, on_error="raise")

    where = f"{stored.shard.url}: {stored.example.key}."
    return read_members(where, stored.example, suffixes, stored.shard.filesize, read)


def summarise_example(folder: str, index: ShardIndex, stored: StoredExample, example: Example) -> ExampleSummary:
    """Members with shapes, dtypes, ranges and first values. Raises as `load_set_tokenizer` where the set has text."""
    arrays = {f"{spec.name}.npy": example.targets[spec.name] for spec in index.targets}
    if index.audio_member:
        arrays[index.audio_member] = example.audio
    specs = {f"{spec.name}.npy": spec for spec in index.targets}
    summaries = []
    for suffix, (offset, size, checksum) in sorted(stored.example.members.items()):
        described = _describe(arrays[suffix], specs.get(suffix)) if suffix in arrays else {}
        if suffix == TOKENS_MEMBER and index.text and example.text:
            described = _describe_tokens(index.text, example.text.tokens)
        summaries.append(MemberSummary(name=suffix, offset=offset, bytes=size, crc32=checksum, **described))
    text, pieces = _read_text(folder, index, example)
    return ExampleSummary(
        key=example.key,
        shard=stored.shard.url,
        seconds=example.info.num_samples / SAMPLE_RATE if index.has_audio else None,
        info=example.info,
        text=text,
        pieces=pieces,
        members=summaries,
    )


def _read_text(folder: str, index: ShardIndex, example: Example) -> tuple[str | None, list[str] | None]:
    """The text of an example, and what each of its tokens stands for; None in a set without text."""
    if index.tokenizer is None:
        return None, None
    # Not at the top: sets without text are looked at without that package.
    from mert_foundry.pipeline.text.tokenizer import load_set_tokenizer

    tokenizer = load_set_tokenizer(folder, index.tokenizer)
    if example.text:
        return example.text.text, tokenizer.pieces(example.text.tokens)
    tokens = example.targets[TOKENS][0]
    return tokenizer.decode(tokens), tokenizer.pieces(tokens)


def _describe(array: np.ndarray, spec: TargetSpec | None) -> dict[str, Any]:
    """Fields of the summary of an array: audio `[T]`, which has no spec, or the target of one."""
    if spec is None:
        values, unit = array.astype(np.float64), "16-bit samples"
        first = values[:FIRST_VALUES]
    elif spec.kind == "discrete":
        values, unit = array.astype(np.float64), f"codes of {spec.codebook_size}"
        first = values[:, :FIRST_VALUES]
    else:
        values, unit = spec.values(array), "expanded from levels" if spec.companding else "values"
        first = values[:2, :FIRST_VALUES]
    return {
        "dtype": str(array.dtype.newbyteorder("=")),
        "shape": list(array.shape),
        "unit": unit,
        "minimum": values.min(),
        "maximum": values.max(),
        "mean": values.mean(),
        "distinct": [len(np.unique(level)) for level in array] if spec and spec.kind == "discrete" else None,
        "first": first.tolist(),
    }


def _describe_tokens(spec: TextSpec, tokens: np.ndarray) -> dict[str, Any]:
    """Fields of the summary of tokens `[n]`."""
    return {
        "dtype": spec.dtype,
        "shape": list(tokens.shape),
        "unit": f"tokens of {spec.vocabulary_size}",
        "first": tokens[:FIRST_VALUES].tolist(),
    }


def export_example(example: Example, members: dict[str, bytes], out: Path) -> list[Path]:
    """Write `{key}.flac` or `.wav`, `{key}.{target}.npy`, text where there is some, and `{key}.json` into the folder
    `out`.

    Members are written as they are stored, but for PCM, which becomes a WAV file. Nothing is overwritten.

    Raises:
        FileExistsError: a file of that name is there; then none is written.
    """
    contents = {f"{example.key}.{suffix}": data for suffix, data in members.items() if suffix != "pcm.npy"}
    if "pcm.npy" in members:
        contents[f"{example.key}.wav"] = _wav(example.audio)
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / name for name in sorted(contents)]
    for path in paths:
        # Keys and target names have no slash and no dot of their own, so this holds unless the format changes.
        assert path.parent == out and path.name in contents
        if path.exists() or path.is_symlink():
            raise FileExistsError(f"{path}: is already there; nothing was written")
    for path in paths:
        with open(path, "xb") as file:
            file.write(contents[path.name])
    return paths


def _decode_audio(name: str, data: bytes, num_samples: int) -> np.ndarray:
    if name.endswith(".flac"):
        return decode_flac(name, data, num_samples, 0, num_samples)
    return decode_array(name, data, "int16", (num_samples,))


def _wav(audio: np.ndarray) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, audio, SAMPLE_RATE, "PCM_16", format="WAV")
    return stream.getvalue()
