"""Cut text files into shards of text alone, with a tokenizer that is there; mert pretrain trains an encoder over their
tokens.

    mert tokenize configs/tokenize.yaml documents.root=FOLDER tokenizer=TOKENIZER_FOLDER out=SHARD_FOLDER

The tokenizer is one that mert tokenizer trained, or any tokenizer.json. A file is a document, a token is a frame, and
there is no
audio: the one target is `tokens`. Documents are UTF-8; files that are not, and copies of others, are rejected and
listed in rejected.jsonl with a reason. documents.jsonl lists the others. A rerun does
only the shards without a valid record; shards of other documents, lengths or another tokenizer are refused unless
overwrite=true. The same files and settings give the same bytes.
"""

import contextlib
import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import yaml
from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.jobs.command.config import UsageError, load_config
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.command.preflight import locked
from mert_foundry.jobs.command.progress import TEXT, Progress
from mert_foundry.pipeline.labelling.document_shards import (
    DocumentSegmentConfig,
    DocumentTask,
    plan_document_shards,
    target_of,
    write_document_shard,
)
from mert_foundry.pipeline.labelling.resume import find_unfinished, remove_unplanned
from mert_foundry.pipeline.manifest.listing import check_apart
from mert_foundry.pipeline.manifest.rows import row_line
from mert_foundry.pipeline.shards.catalogue import Catalogue, read_catalogue
from mert_foundry.pipeline.shards.index import INDEX_NAME, ShardIndex, build_index
from mert_foundry.pipeline.shards.record_sums import summarise_record
from mert_foundry.pipeline.shards.text import TOKENIZER_NAME, TOKENS
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.folder_kinds import SHARDS, FolderError, check_output
from mert_foundry.pipeline.text.documents import DocumentFolder, Documents, find_documents
from mert_foundry.pipeline.text.tokenizer import TextTokenizer, load_tokenizer

DOCUMENTS_NAME = "documents.jsonl"
REJECTED_NAME = "rejected.jsonl"
SETTINGS_NAME = "tokenize.yaml"
BESIDE = (SETTINGS_NAME, TOKENIZER_NAME, DOCUMENTS_NAME, REJECTED_NAME)  # the index


class TokenizeConfig(BaseModel):
    """What `mert tokenize` needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    documents: DocumentFolder = Field(description="The files")
    tokenizer: str = Field(description="Folder of mert tokenizer, or any tokenizer.json of at most 65,536 tokens")
    out: str = Field(description="Folder or fsspec URL for the shards")
    segments: DocumentSegmentConfig = Field(
        default=DocumentSegmentConfig(), description="How documents are cut and grouped"
    )
    overwrite: bool = Field(
        default=False, description="Throw away shards of other documents, lengths or another tokenizer"
    )

    def recorded(self) -> dict:
        """The settings that shape the result, without folders."""
        return self.model_dump(mode="json", include={"documents": {"names", "seed", "splits"}, "segments": True})


CONFIG = TokenizeConfig


def main(arguments: list[str]) -> int:
    config = load_config(CONFIG, arguments)
    check_output(config.out, SHARDS)
    try:
        tokenizer = load_tokenizer(config.tokenizer)
        tokenizer.keep_whole()  # documents are cut into segments, and nothing of them is lost
        target_of(tokenizer)
    except (OSError, ValueError) as error:
        raise UsageError(f"tokenizer: {error}") from error
    check_apart(config.out, config.documents.root)
    documents = find_documents(config.documents)
    if not documents.rows:
        raise ValueError(f"{config.documents.root}: no document; rejected: {reasons(count_rejects(documents))}")
    tasks = plan_document_shards(documents.rows, config.segments)
    # Before the lock, whose file is the first thing written.
    find_work(config, tasks, tokenizer, read_catalogue(config.out))
    is_local = files.is_local(config.out)
    with locked(files.local_path(config.out), "tokenising") if is_local else contextlib.nullcontext():
        index = tokenize(config, documents, tasks, tokenizer)
    totals = {
        split: {**found.model_dump(include={"shards", "examples", "bytes"}), "tokens": index.num_frames(split)}
        for split, found in index.totals.items()
    }
    result = {
        "out": config.out,
        "documents": len(documents.rows),
        "rejected": count_rejects(documents),
        "totals": totals,
        "dropped": index.dropped,
    }
    console.finish(result, summary_lines(config, documents, index, totals))
    return 0


def find_work(
    config: TokenizeConfig, tasks: Sequence[DocumentTask], tokenizer: TextTokenizer, catalogue: Catalogue
) -> list[DocumentTask]:
    """The tasks that are to do; writes nothing.

    Raises as `find_unfinished`, and FolderError when the folder has a file of the name of one of ours that stands
    beside no shard, and so is somebody's own.
    """
    for name in BESIDE:
        if name in catalogue.sizes and not catalogue.shard_names:
            location = files.join(config.out, name)
            raise FolderError(f"{location} is not ours: there is no shard beside it, and tokenising would overwrite it")
    return find_unfinished(config.out, tasks, [target_of(tokenizer)], None, config.overwrite, catalogue)


def tokenize(
    config: TokenizeConfig, documents: Documents, tasks: Sequence[DocumentTask], tokenizer: TextTokenizer
) -> ShardIndex:
    """Do what the plan lacks and write the index."""
    catalogue = read_catalogue(config.out)
    unfinished = find_work(config, tasks, tokenizer, catalogue)
    files.sweep_temporary(config.out)
    remove_unplanned(catalogue, tasks)
    catalogue.forget([task.name for task in unfinished])
    total = sum(row.bytes for row in documents.rows)
    console.say(
        f"{len(documents.rows)} documents, {total / 1e6:.1f} MB, in {len(tasks)} shards, {len(unfinished)} to do;"
        f" rejected: {reasons(count_rejects(documents))}"
    )
    if unfinished:
        # An index must not stand beside shards that are about to change.
        files.remove(files.join(config.out, INDEX_NAME))
        with Progress("tokenize", sum(task.bytes for task in unfinished), unit=TEXT) as progress:
            for task in unfinished:
                record = write_document_shard(task, config.documents.root, config.out, tokenizer)
                catalogue.add(summarise_record(record))
                progress.update(progress.done + task.bytes)
    catalogue.publish()
    return write_index(config, documents, tasks, tokenizer, catalogue)


def write_index(
    config: TokenizeConfig,
    documents: Documents,
    tasks: Sequence[DocumentTask],
    tokenizer: TextTokenizer,
    catalogue: Catalogue,
) -> ShardIndex:
    """Write what stands beside the index of a finished set, and the index. Raises as `build_index`."""
    rows = b"".join(map(row_line, documents.rows))
    contents = {
        SETTINGS_NAME: yaml.safe_dump(config.recorded()).encode(),
        TOKENIZER_NAME: tokenizer.content,
        DOCUMENTS_NAME: rows,
        REJECTED_NAME: b"".join(map(row_line, documents.rejects)),
    }
    for name, content in contents.items():
        files.publish_bytes(files.join(config.out, name), content)
    return build_index(
        config.out,
        [task.name for task in tasks],
        [target_of(tokenizer)],
        name="mert-foundry",
        manifest_sha256=hashlib.sha256(rows).hexdigest(),
        segment_seconds=config.segments.segment_seconds,
        audio_member=None,
        catalogue=catalogue,
    )


def count_rejects(documents: Documents) -> dict[str, int]:
    """How many files were rejected, by reason."""
    return Counter(each.reason for each in documents.rejects)


def reasons(counts: Mapping[str, int]) -> str:
    """Counts by reason, in words."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "none"


def summary_lines(
    config: TokenizeConfig, documents: Documents, index: ShardIndex, totals: Mapping[str, Mapping[str, int]]
) -> Iterator[str]:
    """Examples, tokens and bytes by split, use of the vocabulary, and what was dropped."""
    for split, count in totals.items():
        yield (
            f"{split}: {count['shards']} shards, {count['examples']} examples, {count['tokens']:,} tokens,"
            f" {count['bytes'] / 1e6:.1f} MB"
        )
    summary, target = index.statistics[TOKENS], index.targets[0]
    assert summary.kind == "discrete", "tokens are codes"
    yield (
        f"vocabulary of {target.codebook_size}, {summary.usage[0]:.1%} of it used, perplexity"
        f" {summary.perplexity[0]:.0f}"
    )
    yield f"files rejected: {reasons(count_rejects(documents))}, see {files.join(config.out, REJECTED_NAME)}"
    yield f"documents dropped: {reasons(index.dropped)}"
    yield f"shards: {config.out}"


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__, CONFIG))
