"""index.json: the dataset card of a shard folder and the one hand-over from labelling to training.

It is also a `wids` shard index (https://webdataset.github.io/webdataset/wids): `shardlist` with
`url`, `nsamples` and `filesize`. Its file is a pure function of the records, so the SHA-256 of the
file, `ShardIndex.digest`, names the whole set down to the last byte of every tar.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from mert_foundry.pipeline.frames import FRAME_RATE, HOP, SAMPLE_RATE, seconds_to_frames
from mert_foundry.pipeline.shards.catalogue import Catalogue, read_catalogue, read_sums
from mert_foundry.pipeline.shards.format import SHA256_PATTERN, AudioMember, check_specs
from mert_foundry.pipeline.shards.record import (
    NAME_PATTERN,
    SCHEMA_VERSION,
    ShardRecord,
    find_misfits,
    parse_record,
)
from mert_foundry.pipeline.shards.record_sums import RecordSums, ShardState, add_sums
from mert_foundry.pipeline.shards.set_statistics import summarise_all
from mert_foundry.pipeline.shards.statistics import DiscreteCounts, Partial, Summary
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.shards.text import OF_TEXT, TOKENS, TextSpec
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.documents import Document, json_bytes, parse_model
from mert_foundry.pipeline.storage.folder_kinds import SHARDS, explain_missing

RECORDED_CONFIG = "label.yaml"

READERS = 8

INDEX_NAME = "index.json"


class ShardEntry(Document):
    """One shard of the list; the names `url`, `nsamples` and `filesize` are those of wids."""

    url: str = Field(pattern=NAME_PATTERN + r"\.tar$", description="File name of the tar, beside index.json")
    nsamples: int = Field(ge=0, description="Number of examples")
    filesize: int = Field(gt=0, description="Size of the tar in bytes")
    split: str = Field(description="Split of all its tracks")
    num_frames: int = Field(ge=0, description="Target frames, 75 per second")
    seconds: float = Field(ge=0, description="Audio seconds")
    sha256: str = Field(pattern=SHA256_PATTERN, description="SHA-256 of the tar")
    record: str = Field(pattern=NAME_PATTERN + r"\.json$", description="File name of the record")
    record_sha256: str = Field(pattern=SHA256_PATTERN, description="SHA-256 of the record")

    @property
    def name(self) -> str:
        """Shard name, `{split}-{nnnnnn}`."""
        return self.url.removesuffix(".tar")


class SplitTotals(Document):
    """Sums over the shards of one split."""

    shards: int = Field(ge=0, description="Number of shards")
    examples: int = Field(ge=0, description="Number of examples")
    seconds: float = Field(ge=0, description="Audio seconds")
    bytes: int = Field(ge=0, description="Bytes of all tars")


class Selection(Document):
    """Which part of a manifest a set was made from."""

    splits: list[str] | None = Field(default=None, description="Splits taken, sorted, each once; null: all")
    limit_hours: float | None = Field(default=None, gt=0, description="Hours the tracks were limited to; null: all")

    @field_validator("splits")
    @classmethod
    def _sort(cls, splits: list[str] | None) -> list[str] | None:
        return None if splits is None else sorted(set(splits))

    def __str__(self) -> str:
        if self == WHOLE_MANIFEST:
            return "all of it"
        splits = "all splits" if self.splits is None else f"splits {', '.join(self.splits)}"
        return splits if self.limit_hours is None else f"{splits}, limited to {self.limit_hours:g} h"


WHOLE_MANIFEST = Selection()


class Augment(Document):
    """Which copies stand beside the tracks of the split train."""

    semitones: list[Annotated[int, Field(ge=-11, le=11)]] = Field(
        default=[],
        description="One copy of each track of the split train for each of these: shifted in pitch by so many"
        " semitones (-11 to 11, not 0) at its own tempo, and labelled from the shifted sound",
    )

    @field_validator("semitones")
    @classmethod
    def _sort(cls, semitones: list[int]) -> list[int]:
        if 0 in semitones:
            raise ValueError("0 semitones would be the track itself")
        return sorted(set(semitones))

    def __str__(self) -> str:
        if self == NO_COPIES:
            return "none"
        shifts = ", ".join(f"{semitones:+d}" for semitones in self.semitones)
        return f"of each track of train, shifted by {shifts} semitones"


NO_COPIES = Augment()


class ShardIndex(Document):
    """The content of index.json."""

    schema_version: int = Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION, description="Form of this file")
    kind: Literal["wids-shard-index-v1"] = Field(alias="__kind__", description="What wids asks for")
    wids_version: Literal[1] = Field(description="What wids asks for")
    name: str = Field(description="Name of the set")
    manifest_sha256: str = Field(
        pattern=SHA256_PATTERN, description="SHA-256 of manifest.jsonl; of text alone, documents.jsonl"
    )
    selection: Selection = Field(
        default=WHOLE_MANIFEST,
        description="The part of the manifest that was taken; not in the file when that is all of it",
    )
    augment: Augment = Field(
        default=NO_COPIES, description="Which copies stand beside the tracks; not in the file when there are none"
    )
    sample_rate: int = Field(ge=SAMPLE_RATE, le=SAMPLE_RATE, description="Hz")
    hop: int = Field(ge=HOP, le=HOP, description="Samples per target frame")
    segment_seconds: float = Field(gt=0, description="Length of a whole segment, seconds")
    audio_member: AudioMember | None = Field(description="How audio is stored; null: there is none, text alone")
    targets: list[TargetSpec] = Field(description="The targets of every example")
    text: TextSpec | None = Field(
        default=None, description="The text of every example; not in the file when the set has none"
    )
    statistics: dict[str, Summary] = Field(description="By target, over all splits; text.tokens: of the text")
    totals: dict[str, SplitTotals] = Field(description="By split")
    dropped: dict[str, int] = Field(description="Segments dropped, by reason")
    shardlist: list[ShardEntry] = Field(description="All shards, sorted by url")

    @model_validator(mode="after")
    def _agree(self) -> "ShardIndex":
        check_specs(self.targets, self.text)
        if not self.has_audio and [spec.name for spec in self.targets] != [TOKENS]:
            raise ValueError(f"without audio the one target is {TOKENS}, not {[spec.name for spec in self.targets]}")
        urls = [entry.url for entry in self.shardlist]
        if urls != sorted(set(urls)):
            raise ValueError("shardlist is not sorted by url, each url once")
        for entry in self.shardlist:
            if (entry.record, entry.split) != (f"{entry.name}.json", entry.name.rpartition("-")[0]):
                raise ValueError(f"{entry.url}: record {entry.record} and split {entry.split} do not fit its name")
        if self.totals != _totals(self.shardlist):
            raise ValueError("totals do not add up to the shardlist")
        if set(self.statistics) != {spec.name for spec in self.targets} | ({OF_TEXT} if self.text else set()):
            raise ValueError(f"statistics are of {sorted(self.statistics)}, not of the targets")
        return self

    @property
    def has_audio(self) -> bool:
        """Whether its examples have audio; those of text alone have none."""
        return self.audio_member is not None

    @property
    def tokenizer(self) -> str | None:
        """SHA-256 of the tokenizer.json beside the index; None where nothing was tokenised."""
        if not self.has_audio:
            return self.targets[0].fingerprint
        return self.text.fingerprint if self.text else None

    @property
    def segment_frames(self) -> int:
        """Target frames of a whole segment."""
        return seconds_to_frames(self.segment_seconds)

    def shards(self, split: str) -> list[ShardEntry]:
        """The shards of a split, in order. Raises ValueError naming the splits there are."""
        if split not in self.totals:
            raise ValueError(f"no split {split!r} in this shard set, only {', '.join(sorted(self.totals))}")
        return [entry for entry in self.shardlist if entry.split == split]

    def num_frames(self, split: str) -> int:
        """Target frames of a split; of text alone its tokens. 0 where there is no such split."""
        return sum(entry.num_frames for entry in self.shardlist if entry.split == split)

    def to_bytes(self) -> bytes:
        """The content of index.json."""
        # What a set does without is left out, so that the digest of an index of before stays what it was.
        unused = {"selection"} if self.selection == WHOLE_MANIFEST else set()
        unused |= {"augment"} if self.augment == NO_COPIES else set()
        unused |= set() if self.text else {"text"}
        return json_bytes(self.model_dump(mode="json", by_alias=True, exclude=unused))

    def digest(self) -> str:
        """SHA-256 of `to_bytes()`."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def build_index(
    folder: str,
    names: Iterable[str],
    specs: Sequence[TargetSpec],
    *,
    name: str,
    manifest_sha256: str,
    segment_seconds: float,
    audio_member: AudioMember | None,
    selection: Selection = WHOLE_MANIFEST,
    augment: Augment = NO_COPIES,
    text: TextSpec | None = None,
    catalogue: Catalogue | None = None,
) -> ShardIndex:
    """Join what the records of the shards `names` (`train-000000`, ...) say, and publish `folder/index.json`.

    Args:
        catalogue: of the folder as it is now, where one is at hand; else it is read.

    Raises:
        FileNotFoundError: a shard has no record or no tar.
        ValueError: a record made by another teacher, with another audio member, or whose tar has
            another size (all naming the shard and both values); or no example in any shard.
    """
    check_specs(specs, text)
    catalogue = read_catalogue(folder) if catalogue is None else catalogue
    states = [_find_fitting(catalogue, name, specs, audio_member, text) for name in sorted(names)]
    entries = [_entry(state) for state in states]
    statistics, dropped = _sum_states(catalogue, states, specs, text)
    if not any(entry.nsamples for entry in entries):
        raise ValueError(f"{folder}: no example in any of {len(entries)} shards; dropped: {dropped}")
    index = ShardIndex(
        schema_version=SCHEMA_VERSION,
        __kind__="wids-shard-index-v1",
        wids_version=1,
        name=name,
        manifest_sha256=manifest_sha256,
        selection=selection,
        augment=augment,
        sample_rate=SAMPLE_RATE,
        hop=HOP,
        segment_seconds=segment_seconds,
        audio_member=audio_member,
        targets=list(specs),
        text=text,
        statistics=summarise_all(statistics),
        totals=_totals(entries),
        dropped=dropped,
        shardlist=entries,
    )
    files.publish_bytes(files.join(folder, INDEX_NAME), index.to_bytes())
    return index


def _find_fitting(
    catalogue: Catalogue,
    name: str,
    specs: Sequence[TargetSpec],
    audio_member: AudioMember | None,
    text: TextSpec | None,
) -> ShardState:
    """What the record of a shard of this set says. Raises as `build_index`."""
    found = catalogue.find(name)
    if found is None:
        if fault := catalogue.faults.get(name):
            raise ValueError(fault)
        raise FileNotFoundError(f"{files.join(catalogue.folder, name)}.json is not there")
    state, sums = found
    for misfit in find_misfits(sums, specs, audio_member, text):
        raise ValueError(f"{name}: {misfit}")
    size = catalogue.sizes.get(f"{name}.tar")
    if size is None:
        raise FileNotFoundError(f"{files.join(catalogue.folder, name)}.tar is not there")
    if size != state.tar_bytes:
        raise ValueError(f"{name}.tar: {size} bytes, its record says {state.tar_bytes}")
    return state


def _sum_states(
    catalogue: Catalogue, states: Sequence[ShardState], specs: Sequence[TargetSpec], text: TextSpec | None
) -> tuple[dict[str, Partial], dict[str, int]]:
    """What `sum_records` makes of the records of these shards, to the last bit."""
    wanted = {state.name for state in states}
    parts: list[RecordSums] = []
    for sums in catalogue.parts():
        inside = [state.name for state in sums.shards if state.name in wanted]
        parts += [sums] if len(inside) == len(sums.shards) else read_sums(catalogue.folder, inside)
    statistics: dict[str, Partial] = {}
    for spec in specs:
        if spec.kind == "discrete":
            assert spec.codebook_size is not None, "check_specs asks for one"
            statistics[spec.name] = _add_counts(parts, spec.name, (spec.size, spec.codebook_size))
        else:
            statistics[spec.name] = add_sums(state.sums[spec.name] for state in states)
    if text:
        statistics[OF_TEXT] = _add_counts(parts, OF_TEXT, (1, text.vocabulary_size))
    dropped: Counter[str] = Counter()
    for state in states:
        dropped.update(state.dropped)
    return statistics, dict(dropped)


def _add_counts(parts: Iterable[RecordSums], name: str, shape: tuple[int, int]) -> DiscreteCounts:
    counts = np.zeros(shape, np.int64)
    for sums in parts:
        counts += sums.counts[name]
    return DiscreteCounts(counts=counts.tolist())


def load_index(folder: str) -> ShardIndex:
    """Read `folder/index.json`.

    Raises:
        FolderError: the folder is of another kind.
        FileNotFoundError: there is no index, or no folder.
        ValueError: the file is not an index; file and fault are named.
    """
    location = files.join(folder, INDEX_NAME)
    try:
        content = files.read_bytes(location)
    except (FileNotFoundError, NotADirectoryError):
        raise explain_missing(folder, SHARDS) from None
    return parse_model(location, content, ShardIndex)


def _entry(state: ShardState) -> ShardEntry:
    return ShardEntry(
        url=f"{state.name}.tar",
        nsamples=state.examples,
        filesize=state.tar_bytes,
        split=state.name.rpartition("-")[0],
        num_frames=state.num_frames,
        seconds=state.num_frames / FRAME_RATE,
        sha256=state.sha256,
        record=f"{state.name}.json",
        record_sha256=state.record_sha256,
    )


def _totals(entries: Iterable[ShardEntry]) -> dict[str, SplitTotals]:
    by_split: dict[str, list[ShardEntry]] = {}
    for entry in entries:
        by_split.setdefault(entry.split, []).append(entry)
    return {
        split: SplitTotals(
            shards=len(members),
            examples=sum(entry.nsamples for entry in members),
            # From the frames, because a sum of rounded seconds would depend on its order.
            seconds=sum(entry.num_frames for entry in members) / FRAME_RATE,
            bytes=sum(entry.filesize for entry in members),
        )
        for split, members in by_split.items()
    }


def load_records(folder: str, entries: Sequence[ShardEntry]) -> list[ShardRecord]:
    """The records of these shards, in order, read in threads. Raises as `load_listed_record`."""
    with ThreadPoolExecutor(READERS) as threads:
        return list(threads.map(lambda entry: load_listed_record(folder, entry), entries))


def load_listed_record(folder: str, entry: ShardEntry) -> ShardRecord:
    """The record that the index names. Raises as `load_record`, and ValueError for another one."""
    location = files.join(folder, entry.record)
    return parse_listed_record(location, files.read_bytes(location), entry)


def parse_listed_record(location: str, content: bytes, entry: ShardEntry) -> ShardRecord:
    """The record that the index names, of the content of a file. Raises ValueError naming `location`."""
    record = parse_record(location, content, entry.name)
    if fault := find_digest_fault(entry, hashlib.sha256(content).hexdigest()):
        raise ValueError(f"{location}: {fault}")
    return record


def find_digest_fault(entry: ShardEntry, digest: str) -> str:
    """Why a file with this SHA-256 is not the record that the index names; empty when it is."""
    return "" if digest == entry.record_sha256 else f"SHA-256 {digest}, the index says {entry.record_sha256}"


def find_record_faults(record: ShardRecord, entry: ShardEntry, index: ShardIndex) -> Iterator[str]:
    """How a record differs from what the index says of its shard, a line for each difference."""
    pairs = {
        "url": (record.url, entry.url),
        "examples": (record.examples, entry.nsamples),
        "num_frames": (record.num_frames, entry.num_frames),
        "bytes": (record.bytes, entry.filesize),
        "sha256": (record.sha256, entry.sha256),
    }
    for field, (stated, wanted) in pairs.items():
        if stated != wanted:
            yield f"{field} {stated}, the index says {wanted}"
    yield from find_misfits(record, index.targets, index.audio_member, index.text)
