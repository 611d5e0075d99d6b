"""Documents to shards of text alone: which go into which shard, and each shard from text to record.

One token is one frame (pipeline/shards/format.py), so that a document is cut as a track is.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version

from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.pipeline.frames import FRAME_RATE, HOP, SAMPLE_RATE, segment_lengths
from mert_foundry.pipeline.labelling.shard_writer import Outcome, write_shard
from mert_foundry.pipeline.shards.format import NO_AUDIO, Example, SegmentInfo
from mert_foundry.pipeline.shards.record import DroppedTrack, ShardRecord
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.shards.text import MOST_TOKENS, TOKENS, token_target
from mert_foundry.pipeline.text.documents import DocumentRow, read_texts
from mert_foundry.pipeline.text.tokenizer import TextTokenizer


class DocumentSegmentConfig(BaseModel):
    """How documents are cut and grouped into shards."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    segment_tokens: int = Field(default=1024, gt=0, description="Length of an example, tokens")
    shortest_tokens: int = Field(
        default=32,
        gt=0,
        description="A shorter remainder of a document joins its last segment; a shorter document is dropped; tokens",
    )
    bytes_per_shard: int = Field(
        default=1_000_000, gt=0, description="A shard is full from so many bytes of text on; documents stay whole"
    )

    @property
    def segment_seconds(self) -> float:
        """What index.json says of the length, where a frame counts as 1/75 s."""
        return self.segment_tokens / FRAME_RATE


class DocumentTask(BaseModel):
    """The documents of one shard, in order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="Shard name, {split}-{nnnnnn}")
    documents: list[DocumentRow] = Field(description="In the order of the shard")
    config: DocumentSegmentConfig = Field(description="How they are cut")

    def fingerprint(self) -> str:
        """SHA-256 over everything that decides the shard's examples, except the tokenizer."""
        content = {
            "name": self.name,
            "documents": [(row.key, row.sha256) for row in self.documents],
            "config": self.config.model_dump(exclude={"bytes_per_shard"}),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """Bytes of the text."""
        return sum(row.bytes for row in self.documents)


def plan_document_shards(rows: Sequence[DocumentRow], config: DocumentSegmentConfig) -> list[DocumentTask]:
    """Shards of every split, each of whole documents, in an order that mixes folders."""
    by_split: dict[str, list[list[DocumentRow]]] = {}
    room: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: hashlib.sha256(row.key.encode()).digest()):
        shards = by_split.setdefault(row.split, [])
        if room.get(row.split, 0) <= 0:
            shards.append([])
            room[row.split] = config.bytes_per_shard
        shards[-1].append(row)
        room[row.split] -= row.bytes
    return [
        DocumentTask(name=f"{split}-{number:06d}", documents=documents, config=config)
        for split, shards in sorted(by_split.items())
        for number, documents in enumerate(shards)
    ]


def target_of(tokenizer: TextTokenizer) -> TargetSpec:
    """The one target of text alone. Raises ValueError naming the tokenizer when its tokens do not fit in 16 bits."""
    if tokenizer.vocabulary_size > MOST_TOKENS:
        raise ValueError(
            f"{tokenizer.location}: vocabulary of {tokenizer.vocabulary_size} tokens, text alone takes {MOST_TOKENS}"
            " at most"
        )
    return token_target(tokenizer.vocabulary_size, tokenizer.fingerprint)


def write_document_shard(task: DocumentTask, root: str, out: str, tokenizer: TextTokenizer) -> ShardRecord:
    """Tokenise the documents of one shard and publish it in the folder `out`.

    Raises OSError when a document or the folder cannot be reached, and ValueError for a document that has changed since
    it was found, or that the tokenizer cannot encode.
    """
    return write_shard(
        out,
        task.name,
        _outcomes(task, root, tokenizer),
        [target_of(tokenizer)],
        audio_member=None,
        plan_fingerprint=task.fingerprint(),
        backend={"tokenizers": version("tokenizers")},
    )


def _outcomes(task: DocumentTask, root: str, tokenizer: TextTokenizer) -> Iterator[Outcome]:
    for row, text in zip(task.documents, read_texts(root, task.documents), strict=True):
        tokens = tokenizer.encode(text).tokens
        lengths = segment_lengths(len(tokens), *_bounds(task.config))
        if not lengths:
            detail = f"{len(tokens)} tokens, the shortest segment has {task.config.shortest_tokens}"
            yield DroppedTrack(track=row.key, reason="too_short", detail=detail, segments=1)
        start = 0
        for number, length in enumerate(lengths):
            info = SegmentInfo(
                track=row.key,
                segment=number,
                segments=len(lengths),
                start_sample=start * HOP,
                num_samples=length * HOP,
                num_frames=length,
                audio_sha256=row.sha256,
                sample_rate=SAMPLE_RATE,
            )
            yield Example(info, NO_AUDIO, {TOKENS: tokens[None, start : start + length]})
            start += length


def _bounds(config: DocumentSegmentConfig) -> tuple[int, int]:
    """Tokens of a segment, and of the shortest one."""
    return config.segment_tokens, min(config.segment_tokens, config.shortest_tokens)
